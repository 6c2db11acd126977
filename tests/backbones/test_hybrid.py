import pytest
import torch

from visattn.attention import MultiHeadAttention, NeighborhoodAttention
from visattn.backbones import LocalHybrid, local_hybrid_tiny


def test_attention_kinds_follow_the_pattern_over_all_stages():
    backbone = LocalHybrid(
        32, dims=(8, 16), depths=(2, 3), num_heads=(1, 2), attention=("local", "local", "global"), kernel_size=(7, 3)
    )
    kinds = [type(block.attention) for stage in backbone.stages for block in stage]
    local, whole = NeighborhoodAttention, MultiHeadAttention
    assert kinds == [local, local, whole, local, local]


def test_tiny_weights_stay_below_twelve_megabytes_in_half_precision():
    with torch.device("meta"):
        backbone = local_hybrid_tiny(32)
    assert 2 * sum(parameter.numel() for parameter in backbone.parameters()) < 12e6


def test_presets_serve_small_and_large_images():
    with torch.device("meta"):
        assert local_hybrid_tiny(32).strides == (2, 4)
        assert local_hybrid_tiny(224).strides == (4, 8)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"depths": (2, 2, 2)}, "disagree"),
        ({"patch_size": 6}, "choose a power of two"),
        ({"attention": ("near",)}, "no pattern of 'global' and 'local'"),
    ],
)
def test_errors_say_what_is_allowed(arguments, message):
    with pytest.raises(ValueError, match=message):
        LocalHybrid(32, **arguments)
