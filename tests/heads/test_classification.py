import pytest
import torch

from visattn.backbones import vit_tiny
from visattn.heads import ImageClassifier


def small(**overrides):
    torch.manual_seed(0)
    return vit_tiny(32, patch_size=8, dim=24, depth=1, **overrides)


def test_logits_are_linear_in_the_pooled_features():
    model = ImageClassifier(small(), 7).eval()
    images = torch.randn(5, 3, 32, 32)
    assert model(images).shape == (5, 7)
    torch.testing.assert_close(model(images), model.head(model.features(images).pooled))
    assert model.classes is None
    assert model.preprocess is None


def test_distilled_logits_are_the_mean_of_both_heads():
    model = ImageClassifier(small(distillation_token=True), 7).eval()
    images = torch.randn(5, 3, 32, 32)
    tokens = model.features(images).tokens
    expected = (model.head(tokens[:, 0]) + model.distillation_head(tokens[:, 1])) / 2
    torch.testing.assert_close(model(images), expected)


def test_dropout_belongs_to_training_alone():
    model = ImageClassifier(small(), 7, dropout=0.5)
    images = torch.randn(5, 3, 32, 32)
    assert not torch.equal(model(images), model(images))
    model.eval()
    assert torch.equal(model(images), model(images))


def test_no_classes_is_an_error():
    with pytest.raises(ValueError, match="num_classes 0 is too few"):
        ImageClassifier(small(), 0)
