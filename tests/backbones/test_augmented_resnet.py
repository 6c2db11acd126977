import pytest
import torch
from torch import nn

from visattn.backbones import augmented_resnet50, augmented_resnet_32
from visattn.backbones.augmented_resnet import AugmentedConvolution
from visattn.backbones.residual import Place
from visattn.checkpoints import load_pretrained, save_pretrained
from visattn.heads import ImageClassifier
from visattn.interpret import record_attention

small = {"widths": (16, 24, 32), "depths": (1, 2, 1), "stem_width": 8, "num_heads": 2}
basic = {"widths": (64, 128, 256, 512), "bottleneck": None}


@pytest.mark.parametrize(
    ("options", "millions"),
    [
        ({}, 25.8),
        ({"depths": (3, 4, 23, 3)}, 45.4),
        ({"depths": (3, 8, 36, 3)}, 61.6),
        ({"key_ratio": 0.25, "value_ratio": 0.25}, 24.3),  # more and more attention, until no convolution is left
        ({"key_ratio": 0.5, "value_ratio": 0.5}, 22.3),
        ({"key_ratio": 0.75, "value_ratio": 0.75}, 20.7),
        ({"key_ratio": 1.0, "value_ratio": 1.0}, 19.4),
        (basic | {"key_ratio": 0.25, "value_ratio": 0.25}, 20.7),  # AA-ResNet-34
    ],
)
def test_networks_have_the_published_numbers_of_parameters(options, millions):
    with torch.device("meta"):
        model = ImageClassifier(augmented_resnet50(224, **options), 1000)
    assert round(sum(parameter.numel() for parameter in model.parameters()) / 1e6, 1) == millions


def augmented(stride, value_dim=1, channels=7):
    torch.manual_seed(0)
    place = Place(0, 0, 6, channels, stride, (5, 4))
    layer = AugmentedConvolution(place, 2, key_dim=3, value_dim=value_dim, dropout=0.0, activation="relu").eval()
    layer.norm = nn.Identity()
    return layer


def test_channels_of_the_convolution_stand_before_those_of_the_heads():
    layer, cells = augmented(1), torch.randn(2, 6, 5, 4)
    output = layer(cells)
    torch.testing.assert_close(output[:, :5], layer.convolution(cells).relu())
    attended = layer.attention(cells.flatten(2).transpose(1, 2), (5, 4)).transpose(1, 2).unflatten(2, (5, 4))
    torch.testing.assert_close(output[:, 5:], attended.relu())


def test_at_a_stride_attention_reads_the_means_of_nine_cells():
    layer, cells = augmented(2), torch.randn(2, 6, 5, 4)
    means = torch.stack(
        [cells[:, :, max(y - 1, 0) : y + 2, max(x - 1, 0) : x + 2].mean((2, 3)) for y in (0, 2, 4) for x in (0, 2)],
        dim=1,
    )  # (2, 6, channels)
    assert layer.attention.row_positions.shape == (5, 3)
    assert layer.attention.column_positions.shape == (3, 3)
    attended = layer.attention(means, (3, 2)).transpose(1, 2).unflatten(2, (3, 2))
    torch.testing.assert_close(layer(cells)[:, 5:], attended.relu())


def test_heads_may_take_all_channels():
    layer = augmented(2, value_dim=3, channels=6)
    assert layer.convolution is None
    assert layer(torch.randn(2, 6, 5, 4)).shape == (2, 6, 3, 2)


def test_presets_serve_small_and_large_images():
    with torch.device("meta"):
        assert augmented_resnet_32().strides == (2, 4, 8)
        assert augmented_resnet_32(224).strides == (4, 8, 16)
        assert augmented_resnet50().strides == (4, 8, 16, 32)


def test_a_saved_network_comes_back_and_fits_another_size(tmp_path):
    torch.manual_seed(0)
    model = ImageClassifier(augmented_resnet_32(32, **small), 5).eval()
    save_pretrained(model, tmp_path)
    loaded, fitted = load_pretrained(tmp_path), load_pretrained(tmp_path, image_size=(48, 40))
    assert fitted.backbone.image_size == (48, 40)
    images = torch.randn(2, 3, 48, 40)
    torch.testing.assert_close(loaded(images), model(images))
    torch.testing.assert_close(fitted(images), model(images), rtol=1e-4, atol=1e-5)


def test_its_attention_can_be_seen():
    torch.manual_seed(0)
    backbone = augmented_resnet_32(32, **small, augmented_stages=(1, 2)).eval()
    images = torch.randn(2, 3, 32, 48)
    with torch.no_grad(), record_attention(backbone) as maps:
        recorded = backbone(images).pooled
    assert [weights.shape for weights in maps.values()] == [(2, 2, n, n) for n in (8 * 12, 8 * 12, 4 * 6)]
    torch.testing.assert_close(recorded, backbone(images).pooled.detach(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"augmented_stages": (2, 3)}, r"augmented_stages \(2, 3\) must be among 0 to 2"),
        ({"value_ratio": 0.05}, "2 heads of 0 values can't give a part of 24 channels"),
        ({"value_ratio": 1.5}, "can't give a part of 24 channels"),
        ({"widths": (16, 24)}, "3 depths don't fit 2 widths"),
        ({"patch_size": 1}, "choose a power of two"),
    ],
)
def test_what_does_not_fit_is_an_error(options, message):
    with pytest.raises(ValueError, match=message):
        augmented_resnet_32(32, **(small | options))
