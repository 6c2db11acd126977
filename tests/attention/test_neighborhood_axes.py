import pytest
import torch

from visattn.attention import (
    dot_product_attention,
    neighborhood_attention,
    neighborhood_attention_1d,
    neighborhood_attention_3d,
)
from visattn.attention.neighborhood import axis_keys


def sees(length, kernel, dilation):
    """(length, length), bool, by the definition along one axis."""
    mask = torch.zeros(length, length, dtype=torch.bool)
    for query in range(length):
        group = [key for key in range(length) if key % dilation == query % dilation]
        start = min(max(group.index(query) - kernel // 2, 0), len(group) - kernel)
        mask[query, group[start : start + kernel]] = True
    return mask


@pytest.mark.parametrize(("kernel", "dilation"), [(3, 1), (5, 2), (4, 1)])
@pytest.mark.parametrize("biased", [False, True])
def test_one_axis_equals_masked_attention(kernel, dilation, biased):
    torch.manual_seed(0)
    query, key, value = torch.randn(3, 2, 13, 3, 5, dtype=torch.float64)
    table = torch.randn(3, 2 * kernel - 1, dtype=torch.float64) if biased else None
    distance = (torch.arange(13) - torch.arange(13)[:, None]).div(dilation, rounding_mode="floor") + kernel - 1
    bias = None if table is None else table[:, distance.clamp(0, 2 * kernel - 2)]
    sequences = [tensor.transpose(1, 2) for tensor in (query, key, value)]
    expected = dot_product_attention(*sequences, sees(13, kernel, dilation), bias, scale=0.4).transpose(1, 2)
    torch.testing.assert_close(neighborhood_attention_1d(query, key, value, kernel, dilation, 0.4, table), expected)


@pytest.mark.parametrize(
    ("size", "kernel", "dilation"), [((5, 7, 4), 3, 1), ((7, 5, 9), (4, 3, 5), 1), ((6, 7, 8), (3, 2, 3), (2, 3, 2))]
)
def test_time_and_space_equal_masked_attention(size, kernel, dilation):
    torch.manual_seed(0)
    leaves = [torch.randn(2, *size, 2, 3, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    kernels = (kernel,) * 3 if isinstance(kernel, int) else kernel
    steps = (dilation,) * 3 if isinstance(dilation, int) else dilation
    frames, rows, columns = (sees(*axis) for axis in zip(size, kernels, steps, strict=True))
    mask = frames[:, None, None, :, None, None] & rows[:, None, None, :, None] & columns[:, None, None, :]
    mask = mask.flatten(3).flatten(0, 2)
    assert (mask.sum(dim=1) == kernels[0] * kernels[1] * kernels[2]).all()
    sequences = [tensor.flatten(1, 3).transpose(1, 2) for tensor in leaves]
    expected = dot_product_attention(*sequences, mask, scale=0.6).transpose(1, 2).unflatten(1, size)
    output = neighborhood_attention_3d(*leaves, kernel, dilation, scale=0.6)
    torch.testing.assert_close(output, expected)
    outer = torch.randn_like(output)
    torch.testing.assert_close(torch.autograd.grad(output, leaves, outer), torch.autograd.grad(expected, leaves, outer))


def test_a_single_frame_is_the_map():
    cells = torch.randn(3, 2, 1, 7, 9, 2, 4)
    expected = neighborhood_attention(*cells[:, :, 0], (3, 5))
    torch.testing.assert_close(neighborhood_attention_3d(*cells, (1, 3, 5))[:, 0], expected)


def test_windows_that_do_not_fit_are_errors():
    cells = torch.randn(3, 1, 2, 5, 5, 1, 4)
    with pytest.raises(ValueError, match="exceeds"):
        neighborhood_attention_3d(*cells, 3)
    with pytest.raises(ValueError, match="neither one number nor three"):
        neighborhood_attention_3d(*cells, (1, 3))
    assert axis_keys(5, 3, 1).shape == (5, 3)
