"""Maps of several strides from the maps of any backbone."""

from __future__ import annotations

import pytest
import torch

from visattn.backbones import TimmBackbone, local_hybrid_tiny, swin_tiny, vit_local_tiny, vit_tiny
from visattn.heads.feature_pyramid import ChannelNorm, FeaturePyramid

vit = {"dim": 16, "depth": 2, "num_heads": 2}
swin = {"dim": 8, "depths": (1, 1, 1, 1), "num_heads": (1, 2, 2, 2)}
hybrid = {"dims": (8, 12, 16), "depths": (1, 1, 1), "num_heads": (1, 2, 2), "stem_dim": 8}
backbones = {
    "vit of stride 16": lambda: vit_tiny(64, 16, **vit),
    "vit of stride 4": lambda: vit_local_tiny(64, 4, **vit, attention=("local", "global")),
    "swin": lambda: swin_tiny(64, **swin),
    "hybrid of strides 4, 8, 16": lambda: local_hybrid_tiny(64, 4, **hybrid),
    "hybrid of strides 2, 4, 8": lambda: local_hybrid_tiny(64, 2, **hybrid),
    "timm": lambda: TimmBackbone("test_resnet", 64),
}


@pytest.mark.parametrize("name", backbones)
@pytest.mark.parametrize("levels", [(3, 4, 5, 6), (2, 3), (4, 5, 6, 7, 8), (1, 2, 3, 4)])
def test_any_backbone_gives_maps_of_any_levels(name, levels):
    backbone = backbones[name]().eval()
    pyramid = FeaturePyramid(backbone.channels, backbone.strides, 7, levels)
    maps = pyramid(backbone(torch.randn(2, 3, 64, 96)).maps)
    assert pyramid.strides == tuple(2**level for level in levels)
    assert pyramid.out_channels == 7
    expected = [(2, 7, -(-64 // stride), -(-96 // stride)) for stride in pyramid.strides]
    assert [tuple(cells.shape) for cells in maps] == expected


@pytest.mark.parametrize("name", ["vit of stride 16", "hybrid of strides 2, 4, 8"])
def test_all_weights_of_the_pyramid_are_used(name):
    backbone = backbones[name]().eval()
    pyramid = FeaturePyramid(backbone.channels, backbone.strides, 7, (2, 3, 4, 5))
    sum(cells.square().sum() for cells in pyramid(backbone(torch.randn(1, 3, 64, 64)).maps)).backward()
    assert [name for name, parameter in pyramid.named_parameters() if parameter.grad is None] == []


def test_maps_of_odd_sizes_keep_their_strides():
    pyramid = FeaturePyramid((5, 7), (8, 16), 3, (3, 4, 5, 6))
    maps = pyramid((torch.randn(1, 5, 13, 11), torch.randn(1, 7, 7, 6)))
    assert [tuple(cells.shape[2:]) for cells in maps] == [(13, 11), (7, 6), (4, 3), (2, 2)]


def test_a_stride_that_is_no_power_of_two_counts_as_the_nearest():
    pyramid = FeaturePyramid((5,), (14,), 3, (3, 4, 5))
    assert pyramid.strides == (7, 14, 28)
    maps = pyramid((torch.randn(1, 5, 4, 6),))
    assert [tuple(cells.shape[2:]) for cells in maps] == [(8, 12), (4, 6), (2, 3)]


def test_the_coarse_map_is_seen_on_the_fine_one():
    pyramid = FeaturePyramid((5, 7), (8, 16), 3, (3, 4)).eval()
    fine, coarse = torch.randn(1, 5, 8, 8), torch.randn(1, 7, 4, 4)
    other = coarse.clone()
    other[:, :, 3, 3] += 1
    changed = (pyramid((fine, other))[0] - pyramid((fine, coarse))[0]).abs().amax(dim=(0, 1)) > 0
    assert changed[6:, 6:].all()
    assert not changed[:4, :4].any()


def test_the_norm_is_over_the_channels_of_each_place():
    norm = ChannelNorm(5)
    cells = norm(torch.randn(2, 5, 3, 7) * 4 + 3)
    torch.testing.assert_close(cells.mean(dim=1), torch.zeros(2, 3, 7), atol=1e-5, rtol=0)
    torch.testing.assert_close(cells.var(dim=1, correction=0), torch.ones(2, 3, 7), atol=1e-3, rtol=0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (((5, 7), (8,), 3, (3, 4)), "must say the same maps"),
        (((), (), 3, (3, 4)), "must say the same maps"),
        (((5,), (8,), 3, (3, 5)), r"levels \(3, 5\) must be consecutive"),
        (((5,), (8,), 3, ()), "must be consecutive"),
        (((5,), (14,), 3, (2, 3)), "would have strides 3.5, 7, which are not all integers"),
    ],
)
def test_what_cannot_be_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        FeaturePyramid(*arguments)
