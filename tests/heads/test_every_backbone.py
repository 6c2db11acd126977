"""Every backbone of the zoo for small images learns and answers with a head of each kind."""

import pytest
import torch
from torch import Tensor, nn

import visattn
from visattn.backbones import Backbone
from visattn.data.image_batch import pad_images
from visattn.heads import (
    CaptionDecoder,
    DeformableDetrHead,
    DetrHead,
    FcosHead,
    ImageCaptioner,
    ImageClassifier,
    MaskRcnnHead,
    ObjectDetector,
    QuestionEncoder,
    RtDetrHead,
    VisualQuestionAnswerer,
)
from visattn.text import CaptionTokenizer

backbones = [*visattn.list_models("*_32"), "swin_tiny", "vit_tiny", "vit_local_tiny"]
transformer = {"dim": 16, "num_heads": 2}
heads = {
    "detr": lambda maps: DetrHead(*maps, 2, num_queries=5, encoder_depth=1, decoder_depth=1, **transformer),
    "deformable_detr": lambda maps: DeformableDetrHead(*maps, 2, num_queries=5, decoder_depth=1, **transformer),
    "rt_detr": lambda maps: RtDetrHead(
        *maps, 2, num_queries=5, depth=1, encoder_dim=16, encoder_heads=2, **transformer
    ),
    "fcos": lambda maps: FcosHead(*maps, 2, out_channels=32),
    "mask_rcnn": lambda maps: MaskRcnnHead(*maps, 2, out_channels=16, hidden=24, mask_channels=8),
}
texts = ["a red dog", "what is red?"]


def backbone_of(name: str) -> Backbone:
    torch.manual_seed(0)
    backbone = visattn.create_model(name, num_classes=None, image_size=64)
    assert isinstance(backbone, Backbone)
    return backbone


def backbone_learns(model: nn.Module, loss: Tensor, without: tuple[str, ...] = ()) -> bool:
    """Whether gradients reach the backbone's first weights, all of them numbers."""
    loss.backward()
    gradients = [p.grad for p in model.backbone.parameters() if p.grad is not None]
    first = next(parameter for parameter in model.backbone.parameters() if parameter.requires_grad)
    return first.grad is not None and bool(first.grad.any()) and all(bool(g.isfinite().all()) for g in gradients)


@pytest.mark.parametrize("name", backbones)
def test_classifies(name):
    model = ImageClassifier(backbone_of(name), 5)
    assert backbone_learns(model, model(torch.randn(2, 3, 64, 64)).square().sum())


@pytest.mark.parametrize("name", backbones)
@pytest.mark.parametrize("kind", heads)
def test_finds_objects(name, kind):
    backbone = backbone_of(name)
    model = ObjectDetector(backbone, heads[kind]((backbone.channels, backbone.strides)), ("ant", "bee"))
    batch = pad_images([torch.randn(3, 50, 64), torch.randn(3, 64, 40)])
    boxes, masks = torch.tensor([[8.0, 9.0, 30.0, 40.0]]), torch.zeros(1, 64, 64, dtype=torch.uint8)
    masks[:, 9:40, 8:30] = 1
    target = {"boxes": boxes, "labels": torch.tensor([1])}
    targets = [target | {"masks": masks[:, :50]}, target | {"masks": masks[..., :40]}]
    assert backbone_learns(model, torch.stack(list(model.loss(batch, targets).values())).sum())
    with torch.no_grad():
        found = model.eval().predict(batch)
    assert [len(one.scores) == len(one.boxes) for one in found] == [True, True]


@pytest.mark.parametrize("name", backbones)
def test_writes_captions(name):
    backbone, tokenizer = backbone_of(name), CaptionTokenizer.train_words(texts, min_count=1)
    decoder = CaptionDecoder(tokenizer.vocabulary_size, 16, dim=16, depth=1, num_heads=2, max_length=8)
    model = ImageCaptioner(backbone, decoder, tokenizer, encoder_depth=1, encoder_heads=2).train()
    images = torch.randn(2, 3, 64, 64)
    assert backbone_learns(model, model(images, tokenizer.batch(texts)).square().sum())
    assert len(model.eval().caption(images, num_beams=2, max_new_tokens=4)) == 2


@pytest.mark.parametrize("name", backbones)
def test_answers_questions(name):
    backbone, tokenizer = backbone_of(name), CaptionTokenizer.train_words(texts, min_count=1)
    questions = QuestionEncoder(
        tokenizer.vocabulary_size, backbone.channels[-1], dim=16, depth=1, num_heads=2, end_id=tokenizer.end_id
    )
    model = VisualQuestionAnswerer(backbone, questions, tokenizer, ("yes", "no"), encoder_heads=2)
    nn.init.normal_(model.head.weight, std=0.5)  # zeros at the start, through which nothing comes back
    token_ids = tokenizer.batch(texts).unflatten(0, (2, 1))
    assert backbone_learns(model, model(torch.randn(2, 3, 64, 64), token_ids).square().sum())
