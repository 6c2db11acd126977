import pytest
import torch
from PIL import Image

from visattn.backbones import SwinTransformer, VisionTransformer, local_hybrid_tiny
from visattn.data import Preprocess
from visattn.heads import CaptionDecoder, ImageCaptioner
from visattn.text import CaptionTokenizer

captions = ["a small red dog runs on the grass", "two people ride a red horse on the beach", "a dog and a horse"]


def captioner(kind="vit", encoder_depth=None, **options):
    torch.manual_seed(0)
    backbones = {
        "vit": lambda: VisionTransformer(32, 8, 24, 1, 2),
        "swin": lambda: SwinTransformer(32, 2, 12, (1, 1), (2, 4), window_size=4),
        "hybrid": lambda: local_hybrid_tiny(32, dims=(16, 24), depths=(1, 1), num_heads=(2, 2), stem_dim=8),
    }
    tokenizer = CaptionTokenizer.train_words(captions, min_count=1)
    memory_dim = 24 if encoder_depth is None else 36
    decoder = CaptionDecoder(tokenizer.vocabulary_size, memory_dim, dim=24, depth=2, num_heads=3, max_length=23)
    for parameter in decoder.parameters():  # far from uniform words
        torch.nn.init.normal_(parameter, std=0.3)
    model = ImageCaptioner(
        backbones[kind](), decoder, tokenizer, encoder_depth=encoder_depth, encoder_heads=3, **options
    )
    model.preprocess = Preprocess(32)
    return model.eval()
