import pytest
import timm
import torch
from torch import nn

from visattn.backbones import SwinTransformerV2, swin_v2_32, swin_v2_base, swin_v2_small, swin_v2_tiny
from visattn.heads import ImageClassifier
from visattn.interpret import record_attention

small = {"dim": 16, "depths": (2, 2), "num_heads": (1, 2), "window_size": 4}


def perturbed(model):
    torch.manual_seed(0)
    for parameter in model.parameters():
        parameter.data.add_(torch.randn_like(parameter) * 0.2)
    return model.eval()


@pytest.mark.parametrize("size", [(52, 76), (64, 64)])
def test_any_input_equals_a_network_built_for_that_size(size):
    trained, built = perturbed(SwinTransformerV2(32, **small)), SwinTransformerV2(size, **small).eval()
    built.load_state_dict(trained.state_dict())
    images = torch.randn(2, 3, *size)
    torch.testing.assert_close(trained(images), built(images))


def test_larger_windows_have_the_same_biases_at_the_same_places():
    trained = perturbed(SwinTransformerV2(32, **small))
    larger = SwinTransformerV2(64, **small | {"window_size": 7, "reference_window_size": (4, 4)}).eval()
    larger.load_state_dict(trained.state_dict())
    for narrow, wide in zip(trained.stages, larger.stages, strict=True):
        table = wide.blocks[0].attention.bias_for((7, 7))
        torch.testing.assert_close(table[:, 3:10, 3:10], narrow.blocks[0].attention.bias_for((4, 4)))


@pytest.mark.parametrize("padding", ["after_shift", "before_shift"])
def test_outputs_are_the_same_while_recording_a_padded_map(padding):
    model = perturbed(SwinTransformerV2(44, **small, padding=padding))
    images = torch.randn(2, 3, 44, 44)
    with torch.no_grad():
        expected = model(images)
        with record_attention(model, full=True) as maps:
            torch.testing.assert_close(model(images), expected, rtol=0, atol=1e-4)
    assert maps["stages.1.blocks.1.attention"].shape == (2, 2, 36, 36)


def test_norms_stand_behind_the_branches():
    model = SwinTransformerV2(32, **small)
    images = torch.randn(2, 3, 32, 32)
    tokens, grid = model.patch_embedding(images)
    merged, _ = model.stages[1].downsample(tokens, grid)
    torch.testing.assert_close(model(images).tokens, model.norm(merged))  # new branches add nothing
    block = SwinTransformerV2(32, **small, branch_scale=0.5).stages[0].blocks[0]
    added = block(1000 * tokens, grid) - 1000 * tokens
    assert 0.5 < added.std() < 1.0  # the sum of two branches of 0.5, whatever the tokens' size


@pytest.mark.parametrize(
    ("preset", "name"),
    [
        (swin_v2_tiny, "swinv2_tiny_window8_256"),
        (swin_v2_small, "swinv2_small_window16_256"),
        (swin_v2_base, "swinv2_base_window12to16_192to256"),
    ],
)
def test_presets_have_as_many_parameters_as_the_published_ones(preset, name):
    with torch.device("meta"):
        ours, theirs = ImageClassifier(preset(), 1000), timm.create_model(name)
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in theirs.parameters())


def test_small_images_keep_maps_of_useful_size():
    assert swin_v2_tiny(32).strides == (2, 4, 8, 16)
    assert swin_v2_32().strides == (2, 4, 8)
    assert any(isinstance(module, nn.BatchNorm2d) for module in swin_v2_32().modules())


def test_errors_say_what_is_allowed():
    with pytest.raises(ValueError, match="choose patch or convolution"):
        SwinTransformerV2(32, stem="linear")
    with pytest.raises(ValueError, match="each of 4 stages"):
        SwinTransformerV2(32, reference_window_size=(4, 4))
    with pytest.raises(ValueError, match="choose after_shift or before_shift"):
        SwinTransformerV2(32, padding="none")
