import pytest
import torch
from torch.nn import functional

from tests.backbones.test_resnet import disturbed
from visattn.backbones.conv_norm import ConvNorm, pad_same
from visattn.backbones.mobile_convolution import (
    MobileConvolution,
    MobileDesign,
    SqueezeExcitation,
    multiple_of_8,
    pool,
)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"stride_by": "pooling", "expand_from": "input", "norm_activation": True},
        {"padding": "same", "convolution_activation": "gelu_tanh", "batch_norm_eps": 1e-3},
        {"pooling": "max", "excitation_first": True, "excitation_activation": "relu", "output_bias": False},
    ],
)
@pytest.mark.parametrize(
    ("stride", "size", "expected"), [(1, (5, 7), (5, 7)), (2, (5, 7), (3, 4)), (2, (6, 8), (3, 4))]
)
def test_maps_are_halved_by_a_stride_of_2_and_folded_norms_give_the_same(options, stride, size, expected):
    torch.manual_seed(0)
    block = disturbed(MobileConvolution(16, 24 if stride == 2 else 16, MobileDesign(**options), stride=stride)).double()
    features = torch.randn(2, 16, *size, dtype=torch.float64)
    output = block(features)
    assert output.shape == (2, 24 if stride == 2 else 16, *expected)
    with torch.no_grad():
        torch.testing.assert_close(block(features), output)


def test_the_excitation_weighs_each_channel_by_one_number():
    torch.manual_seed(0)
    module = SqueezeExcitation(5, 3, "relu")
    features = torch.randn(2, 5, 4, 7)
    weights = module(features) / features
    torch.testing.assert_close(weights, weights[:, :, :1, :1].expand_as(weights), rtol=1e-3, atol=1e-5)
    hidden = functional.linear(features.mean((2, 3)), module.squeeze.weight, module.squeeze.bias).relu()
    expected = functional.linear(hidden, module.excite.weight, module.excite.bias).sigmoid()
    torch.testing.assert_close(weights[:, :, 0, 0], expected)


def test_channels_between_follow_what_they_are_expanded_from():
    widths = [MobileConvolution(16, 32, MobileDesign(expand_from=source), stride=2) for source in ("output", "input")]
    assert [block.project.in_channels for block in widths] == [128, 64]
    assert [block.excitation.squeeze.out_features for block in widths] == [8, 16]
    assert [multiple_of_8(channels) for channels in (3, 12, 20, 27.9, 100)] == [8, 16, 24, 32, 104]


@pytest.mark.parametrize("size", [(6, 8), (5, 7), (5, 8)])
def test_same_padding_looks_from_even_cells_on_where_sides_are_even(size):
    """TensorFlow's rule: at a stride of 2 a 3x3 kernel begins at the border if the side is even, else before it."""
    features = torch.randn(1, 1, *size)
    convolution = ConvNorm(1, 1, 3, stride=2, padding="same").eval()
    output = convolution.convolution(convolution.padded(features))
    down, right = (0 if side % 2 == 0 else 1 for side in size)
    padded = functional.pad(features, (right, 1, down, 1))
    expected = functional.conv2d(padded, convolution.convolution.weight, stride=2)
    torch.testing.assert_close(output, expected)
    assert output.shape[2:] == (-(-size[0] // 2), -(-size[1] // 2))
    torch.testing.assert_close(pad_same(features, 3, 1), functional.pad(features, (1, 1, 1, 1)))


def test_depthwise_convolutions_with_biases_are_folded():
    conv = disturbed(ConvNorm(6, 6, 3, groups=6, bias=True, activation="gelu", norm_eps=0.1))
    features = torch.randn(2, 6, 5, 7)
    with torch.no_grad():
        folded = conv(features)
    torch.testing.assert_close(folded, conv(features))
    torch.testing.assert_close(folded, functional.gelu(conv.norm(conv.convolution(features))))


def test_averages_at_an_odd_border_are_those_of_the_cells_that_exist():
    features = torch.tensor([[[[1.0, 3.0, 8.0], [5.0, 7.0, 2.0], [4.0, 0.0, 6.0]]]])
    assert pool(features, 2, "average").tolist() == [[[[4.0, 5.0], [2.0, 6.0]]]]
    assert pool(features, 2, "max").tolist() == [[[[7.0, 8.0], [7.0, 7.0]]]]
    assert pool(features, 1, "max") is features


@pytest.mark.parametrize("name", ["expand_from", "stride_by", "pooling", "padding", "excitation_activation"])
def test_unknown_names_are_an_error(name):
    with pytest.raises(ValueError, match=rf"{name} 'none' is unknown; choose \w+ or \w+"):
        MobileDesign(**{name: "none"})
    with pytest.raises(ValueError, match="padding 'valid' is unknown"):
        ConvNorm(3, 4, padding="valid")


def test_strided_depthwise_convolutions_keep_the_dtype_of_autocast_and_learn_in_float32():
    torch.manual_seed(0)
    conv = ConvNorm(8, 8, 3, stride=2, groups=8)
    features = torch.randn(2, 8, 9, 9, requires_grad=True)
    exact = conv.convolved(features)
    exact_gradient = torch.autograd.grad(exact.square().sum(), features)[0]
    with torch.autocast("cpu", torch.bfloat16):
        rounded = conv.convolved(features)
    gradient = torch.autograd.grad(rounded.float().square().sum(), features)[0]
    assert rounded.dtype == torch.bfloat16
    torch.testing.assert_close(rounded, exact.bfloat16(), rtol=0, atol=0)  # rounded once, at the end
    torch.testing.assert_close(gradient, exact_gradient, rtol=0.01, atol=0.01)
