"""Small models that answer questions; untrained, but far from uniform."""

import torch

from visattn.backbones import SwinTransformer, VisionTransformer
from visattn.data import Preprocess
from visattn.heads import QuestionEncoder, VisualQuestionAnswerer
from visattn.text import CaptionTokenizer

questions = ("what is red?", "where is the red shape, seen from the blue one?", "is it large or small?")
answers = ("yes", "no", "2", "circle", "left of")
kinds = ("class token", "encoder", "swin", "byte pairs")


def answerer_of(kind):
    torch.manual_seed(0)
    if kind == "byte pairs":
        tokenizer = CaptionTokenizer.train_bpe(questions, 262, max_length=None)
    else:
        tokenizer = CaptionTokenizer.train_words(questions, min_count=1)
    swin = kind == "swin"
    model = VisualQuestionAnswerer(
        SwinTransformer(32, 2, 12, (1, 1), (2, 4), window_size=4) if swin else VisionTransformer(32, 8, 24, 2, 2),
        QuestionEncoder(
            tokenizer.vocabulary_size, 36, dim=24, depth=2, num_heads=3, max_length=70, end_id=tokenizer.end_id
        ),
        tokenizer,
        answers,
        encoder_depth=2 if kind == "encoder" else 0,
        encoder_heads=3,
    )
    for parameter in model.parameters():
        parameter.data.add_(torch.randn_like(parameter) * 0.3)
    model.preprocess = Preprocess(32, resize=36)
    return model.eval()
