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
        assert local_hybrid_tiny(32).strides == (2, 4, 8)
        assert local_hybrid_tiny(224).strides == (4, 8, 16)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"depths": (2, 2)}, "disagree"),
        ({"stem": "patches"}, "choose convolutions or whitening"),
        ({"patch_size": 6}, "choose a power of two"),
        ({"attention": ("near",)}, "no pattern of global, local"),
    ],
)
def test_errors_say_what_is_allowed(arguments, message):
    with pytest.raises(ValueError, match=message):
        LocalHybrid(32, **arguments)


def test_the_gradient_of_one_image_is_that_of_a_batch():
    torch.manual_seed(0)
    backbone = LocalHybrid(16, dims=(8, 16), depths=(1, 2), num_heads=(2, 2), stem_dim=4).double().eval()
    for parameter in backbone.parameters():
        parameter.data.add_(torch.randn_like(parameter), alpha=0.1)
    image = torch.randn(1, 3, 16, 16, dtype=torch.float64, requires_grad=True)
    (alone,) = torch.autograd.grad(backbone(image).pooled[0, 0], image)
    (together,) = torch.autograd.grad(backbone(image.expand(2, -1, -1, -1)).pooled[0, 0], image)
    torch.testing.assert_close(alone, together)


@pytest.mark.parametrize("patch_size", [2, 4])
def test_whitened_patches_of_the_images_they_were_fitted_to_are_uncorrelated(patch_size):
    torch.manual_seed(0)
    images = torch.randn(50, 3, 23, 29).cumsum(dim=2).cumsum(dim=3)  # neighboring pixels are much alike
    backbone = LocalHybrid(23, patch_size, dims=(8,), depths=(1,), num_heads=(1,), stem="whitening")
    backbone.adapt(images)
    filters = backbone.stem.filters[: 3 * patch_size**2]
    patches = torch.nn.functional.conv2d(images, filters).transpose(0, 1).flatten(1)
    torch.testing.assert_close(patches.cov(), torch.eye(3 * patch_size**2), rtol=0, atol=0.05)
    assert torch.equal(backbone.stem.filters[3 * patch_size**2 :], -filters)
    assert backbone(images).maps[0].shape[2:] == (-(-23 // patch_size), -(-29 // patch_size))


def test_whitening_is_a_part_of_the_weights_and_not_trained():
    backbone = LocalHybrid(16, dims=(8,), depths=(1,), num_heads=(1,), stem="whitening")
    assert "stem.filters" in backbone.state_dict()
    assert "stem.filters" not in dict(backbone.named_parameters())


def test_stages_begin_as_the_identity_on_the_channels_they_have():
    backbone = LocalHybrid(16, dims=(8, 12), depths=(1, 1), num_heads=(1, 1), stem_dim=4)
    cells = torch.randn(1, 8, 6, 6)
    torch.testing.assert_close(backbone.downsamples[1][0](cells)[:, :8], cells)
