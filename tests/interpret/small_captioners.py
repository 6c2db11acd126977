"""Small captioners, with cross-attention or a prefix, words or byte pairs; untrained, but far from uniform."""

import torch

from visattn.backbones import SwinTransformer, VisionTransformer
from visattn.data import Preprocess
from visattn.heads import CaptionDecoder, ImageCaptioner
from visattn.text import CaptionTokenizer

captions = ["a small red dog runs on the grass", "two people ride a red horse on the beach", "a dog and a horse"]
kinds = ("cross", "encoder", "prefix", "swin", "byte pairs")


def captioner_of(kind):
    torch.manual_seed(0)
    if kind == "byte pairs":
        tokenizer = CaptionTokenizer.train_bpe(captions, 262)
    else:
        tokenizer = CaptionTokenizer.train_words(captions, min_count=1)
    swin = kind == "swin"
    model = ImageCaptioner(
        SwinTransformer(32, 2, 12, (1, 1), (2, 4), window_size=4) if swin else VisionTransformer(32, 8, 24, 2, 2),
        CaptionDecoder(
            tokenizer.vocabulary_size,
            36 if kind == "encoder" else 24,
            dim=24,
            depth=2,
            num_heads=3,
            max_length=30,
            style="prefix" if kind == "prefix" else "cross",
        ),
        tokenizer,
        encoder_depth=2 if kind == "encoder" else None,
        encoder_heads=3,
    )
    for parameter in model.parameters():
        parameter.data.add_(torch.randn_like(parameter) * 0.3)
    # Neither end nor other ids that are no words are likely, so that captions have as many words as they may.
    specials = [tokenizer.start_id, tokenizer.end_id, tokenizer.padding_id, tokenizer.unknown_id]
    model.decoder.embedding.weight.data[[number for number in specials if number is not None]] = 0
    model.preprocess = Preprocess(32, resize=36)
    return model.eval()
