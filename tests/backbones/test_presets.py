"""The named models, all of them, without computing anything: their tensors have shapes and no contents."""

import pytest
import torch

from visattn import backbones

presets = {
    "vit_tiny": 5.5,
    "vit_small": 21.7,
    "vit_base": 85.8,
    "vit_local_tiny": 1.7,
    "vit_local_small": 10.0,
    "vit_local_base": 39.8,
    "swin_tiny": 27.5,
    "swin_small": 48.8,
    "swin_base": 86.7,
    "swin_v2_32": 2.7,
    "swin_v2_tiny": 27.6,
    "swin_v2_small": 49.0,
    "swin_v2_base": 86.9,
    "vig_32": 3.4,
    "vig_tiny": 6.2,
    "pyramid_vig_tiny": 9.7,
    "local_hybrid_32": 2.5,
    "local_hybrid_tiny": 3.7,
    "local_hybrid_small": 17.5,
    "pvt_v2_32": 2.8,
    "pvt_v2_b0": 3.4,
    "pvt_v2_b1": 13.5,
    "pvt_v2_b2": 24.8,
    "hiera_32": 3.0,
    "hiera_tiny": 27.1,
    "maxvit_32": 3.4,
    "maxvit_tiny": 30.4,
    "coatnet_32": 2.2,
    "coatnet_0": 24.3,
    "botnet_32": 1.5,
    "botnet50": 18.8,
    "augmented_resnet_32": 2.7,
    "augmented_resnet50": 23.8,
    "nat_32": 2.5,
    "nat_mini": 19.5,
    "nat_tiny": 27.4,
    "dinat_32": 2.5,
    "dinat_mini": 19.5,
    "dinat_tiny": 27.4,
    "cct_7_3x1_32": 3.8,
    "cct_14_7x2": 22.0,
}


def build(name, image_size, **overrides):
    with torch.device("meta"):
        return getattr(backbones, name)(image_size, **overrides).eval()


def test_every_preset_is_listed_here():
    assert set(presets) == {name for name in backbones.__all__ if name.islower()}


@pytest.mark.parametrize(("name", "millions"), presets.items())
def test_parameters_are_as_many_as_the_docstrings_say(name, millions):
    count = sum(parameter.numel() for parameter in build(name, 32 if name.endswith("_32") else 224).parameters())
    assert count / 1e6 == pytest.approx(millions, abs=0.06)


@pytest.mark.parametrize("name", presets)
@pytest.mark.parametrize("trained_size", [32, 224])
@pytest.mark.parametrize("size", [(32, 32), (224, 224), (61, 107)])
def test_features_of_every_preset_keep_the_contract(name, trained_size, size):
    backbone = build(name, trained_size)
    with torch.no_grad():
        features = backbone(torch.empty(3, 3, *size, device="meta"))
    for feature_map, channels, stride in zip(features.maps, backbone.channels, backbone.strides, strict=True):
        assert feature_map.shape == (3, channels, -(-size[0] // stride), -(-size[1] // stride))
    height, width = features.maps[-1].shape[2:]
    assert features.tokens.shape == (3, backbone.num_prefix_tokens + height * width, backbone.channels[-1])
    assert features.pooled.shape == (3, backbone.num_features)


@pytest.mark.parametrize("name", presets)
def test_layers_of_every_preset_rise_with_the_depth(name):
    backbone = build(name, 224)
    names = [key for key, _ in backbone.named_parameters()]
    first = ("attention.qkv.weight", "attention.query.weight")
    blocks = [backbone.layer_of(key) for key in names if key.endswith(first)]
    assert blocks == sorted(blocks)  # a block may have several attentions, or none
    assert {backbone.layer_of(key) for key in names} == set(range(backbone.num_layers))


@pytest.mark.parametrize("name", presets)
def test_sizes_grow_from_tiny_to_base(name):
    family, _, size = name.rpartition("_")
    if size in ("small", "base"):
        smaller = {"small": "tiny", "base": "small"}[size]
        assert presets[f"{family}_{smaller}"] < presets[name]


@pytest.mark.parametrize("name", presets)
def test_overrides_reach_the_network(name):
    assert build(name, 64, drop_path=0.3).arguments["drop_path"] == 0.3
    assert build(name, 64, in_channels=5)(torch.empty(2, 5, 64, 64, device="meta")).pooled.shape[0] == 2
    assert build(name, 64, patch_size=8).strides[0] == 8
