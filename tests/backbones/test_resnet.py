import copy

import pytest
import torch

from visattn.backbones import ResNetD
from visattn.backbones.conv_norm import ConvNorm

tiny = {"depths": (1, 2, 1, 1), "widths": (16, 20, 24, 28), "stem_width": 8}


def disturbed(module, seed=0):
    """Every parameter and statistic moved, in evaluation."""
    generator = torch.Generator().manual_seed(seed)
    for tensor in module.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(tensor + 0.2 * torch.rand(tensor.shape, generator=generator))
    return module.eval()


@pytest.mark.parametrize("bottleneck", [False, True])
@pytest.mark.parametrize("size", [(64, 96), (61, 45)])
def test_maps_are_as_large_as_their_strides_say(bottleneck, size):
    backbone = ResNetD(64, **tiny, bottleneck=bottleneck, out_stages=(0, 1, 2, 3))
    features = backbone(torch.rand(2, 3, *size))
    assert backbone.strides == (4, 8, 16, 32)
    for one, channels, stride in zip(features.maps, backbone.channels, backbone.strides, strict=True):
        assert one.shape == (2, channels, -(-size[0] // stride), -(-size[1] // stride))
    assert features.tokens.shape == (2, features.maps[-1][0, 0].numel(), 28)
    torch.testing.assert_close(features.pooled, features.maps[-1].mean((2, 3)))


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("bottleneck", [False, True])
def test_folded_norms_give_the_same(bottleneck, frozen):
    backbone = disturbed(ResNetD(64, **tiny, bottleneck=bottleneck, frozen_norms=frozen)).double()
    images = torch.rand(2, 3, 61, 45, dtype=torch.float64)
    expected = backbone(images)
    with torch.no_grad():
        folded = backbone(images)
    for one, other in zip(folded.maps, expected.maps, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-8)


def test_changed_weights_are_folded_anew():
    conv = disturbed(ConvNorm(5, 7, 3, activation="silu"))
    features = torch.rand(2, 5, 11, 13)

    def check():
        expected = conv(features)
        with torch.no_grad():
            torch.testing.assert_close(conv(features), expected)
        return expected.detach()

    first = check()
    with torch.no_grad():
        conv.convolution.weight.mul_(2.0)
    second = check()
    assert not torch.allclose(first, second)
    conv.load_state_dict(disturbed(ConvNorm(5, 7, 3), seed=1).state_dict())
    assert not torch.allclose(second, check())
    conv.norm.running_mean = torch.full((7,), 3.0)
    check()
    conv.convolution.weight.data *= 2.0
    conv.eval()
    check()
    check_copy = copy.deepcopy(conv).double()
    expected = check_copy(features.double())
    with torch.no_grad():
        torch.testing.assert_close(check_copy(features.double()), expected)


def test_a_kernel_made_within_inference_mode_serves_outside():
    conv = disturbed(ConvNorm(5, 7, 3))
    features = torch.rand(2, 5, 11, 13)
    with torch.inference_mode():
        conv(features)
    with torch.no_grad():
        folded = conv(features)
    torch.testing.assert_close(folded, conv(features).detach())
    conv.train()(features).sum().backward()
    assert conv.convolution.weight.grad is not None


def test_what_is_folded_is_no_state():
    conv = disturbed(ConvNorm(5, 7))
    names = conv.state_dict().keys()
    with torch.no_grad():
        conv(torch.rand(2, 5, 3, 3))
    assert conv.state_dict().keys() == names == ConvNorm(5, 7).state_dict().keys()


def test_every_parameter_has_a_depth():
    backbone = ResNetD(64, **tiny)
    depths = [backbone.layer_of(name) for name, _ in backbone.named_parameters()]
    assert depths == sorted(depths)
    assert set(depths) == set(range(backbone.num_layers))


def test_frozen_norms_have_no_parameters():
    names = [name for name, _ in ResNetD(64, **tiny, frozen_norms=True).named_parameters()]
    assert names
    assert not any("norm" in name for name in names)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"depths": (1, 1)}, "2 depths don't fit 4 widths"),
        ({"out_stages": (1, 2)}, r"out_stages \(1, 2\) must rise to 3"),
        ({"out_stages": (2, 1, 3)}, "must rise"),
        ({"out_stages": ()}, "must rise"),
    ],
)
def test_what_does_not_fit_is_an_error(options, message):
    with pytest.raises(ValueError, match=message):
        ResNetD(64, **(tiny | options))


def test_unknown_activations_are_an_error():
    with pytest.raises(ValueError, match="'tanh' is unknown"):
        ConvNorm(3, 4, activation="tanh")
