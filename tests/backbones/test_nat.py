import pytest
import torch

from visattn.backbones import NeighborhoodAttentionTransformer, dinat_mini, nat_mini
from visattn.backbones.nat import OverlappingEmbedding

tiny = {"dim": 12, "depths": (3, 2), "num_heads": (1, 2), "kernel_size": 3}


def test_a_pattern_of_dilations_is_repeated_over_the_blocks_of_its_stage():
    backbone = NeighborhoodAttentionTransformer(32, **tiny, dilation=((1, 4), 2))
    dilations = [[block.attention.dilation for block in stage.blocks] for stage in backbone.stages]
    assert dilations == [[(1, 1), (4, 4), (1, 1)], [(2, 2), (2, 2)]]


def test_kernels_may_differ_between_stages():
    backbone = NeighborhoodAttentionTransformer(32, **tiny | {"kernel_size": (5, 3)})
    assert [stage.blocks[0].attention.kernel_size for stage in backbone.stages] == [(5, 5), (3, 3)]


def test_dilated_blocks_see_the_whole_map_of_224_pixels():
    with torch.device("meta"):
        stages = dinat_mini().stages
    for stage, side in zip(stages[:3], (56, 28, 14), strict=True):
        attention = stage.blocks[1].attention
        assert attention.kernel_size[0] * attention.dilation[0] == side


def test_neighborhoods_of_a_small_map_shrink_or_the_map_is_padded():
    torch.manual_seed(0)
    images = torch.randn(2, 3, 16, 16)
    shrinking = NeighborhoodAttentionTransformer(16, **tiny, dilation=(2, 1)).eval()
    padding = NeighborhoodAttentionTransformer(16, **tiny, dilation=(2, 1), pad_small_maps=True).eval()
    padding.load_state_dict(shrinking.state_dict())
    assert not torch.allclose(shrinking(images).pooled, padding(images).pooled, atol=1e-3)
    large = torch.randn(2, 3, 32, 48)
    torch.testing.assert_close(shrinking(large).pooled, padding(large).pooled)


def test_layer_scale_begins_at_its_value():
    backbone = NeighborhoodAttentionTransformer(32, **tiny, layer_scale=1e-5)
    scales = [parameter for name, parameter in backbone.named_parameters() if "layer_scale" in name]
    assert len(scales) == 2 * sum(tiny["depths"])
    assert all((scale == 1e-5).all() for scale in scales)


@pytest.mark.parametrize("patch_size", [1, 2, 4, 8])
@pytest.mark.parametrize("stem_norm", [False, True])
def test_a_stem_of_two_convolutions_or_more_halves_as_often_as_needed(patch_size, stem_norm):
    tokens, grid = OverlappingEmbedding(5, 12, patch_size, stem_norm=stem_norm)(torch.randn(2, 5, 17, 23))
    assert grid == (-(-17 // patch_size), -(-23 // patch_size))
    assert tokens.shape == (2, grid[0] * grid[1], 12)


def test_small_images_get_small_patches():
    with torch.device("meta"):
        assert (nat_mini(32).strides, nat_mini(64).strides) == ((2, 4, 8, 16), (4, 8, 16, 32))


def test_arguments_that_do_not_fit_each_other_are_refused():
    with pytest.raises(ValueError, match="differ in stages"):
        NeighborhoodAttentionTransformer(32, **tiny, dilation=(1, 2, 1))
    with pytest.raises(ValueError, match="patch_size 6 doesn't fit a convolutional stem; choose a power of two"):
        NeighborhoodAttentionTransformer(32, 6, **tiny)
