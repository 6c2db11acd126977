"""What every kind of attention keeps to, on maps (batch, height, width, heads, head_dim)."""

from functools import partial

import pytest
import torch

from visattn.attention import (
    dot_product_attention,
    focal_attention,
    grid_attention,
    neighborhood_attention,
    relative_bias_attention,
    window_attention,
)


def global_attention(query, key, value, bias=None, **options):
    sequences = [tensor.flatten(1, 2).transpose(1, 2) for tensor in (query, key, value)]
    return dot_product_attention(*sequences, **options).transpose(1, 2).unflatten(1, query.shape[1:3])


kinds = {
    "global": (global_attention, (5, 7), None),
    "neighborhood, small map": (partial(neighborhood_attention, kernel_size=3), (7, 11), (5, 5)),
    "neighborhood, tiles": (partial(neighborhood_attention, kernel_size=5), (17, 19), (9, 9)),
    "neighborhood, pair": (partial(neighborhood_attention, kernel_size=(3, 7)), (19, 23), (5, 13)),
    "neighborhood, even": (partial(neighborhood_attention, kernel_size=4), (23, 17), (7, 7)),
    "neighborhood, dilated": (partial(neighborhood_attention, kernel_size=3, dilation=(2, 3)), (17, 19), (5, 5)),
    "windows": (partial(window_attention, window_size=(3, 4)), (7, 11), (5, 7)),
    "windows, shifted": (partial(window_attention, window_size=(3, 4), shift=(1, 2)), (7, 11), (5, 7)),
    "grid": (partial(grid_attention, grid_size=(3, 4)), (7, 11), (5, 7)),
    "focal": (partial(focal_attention, window_size=3, levels=((1, 5), (2, 3))), (7, 11), None),
    "relative bias": (relative_bias_attention, (5, 7), (9, 13)),
}


@pytest.fixture(params=kinds)
def kind(request):
    torch.manual_seed(0)
    return kinds[request.param]


def inputs(grid, dtype=torch.float64, batch=2):
    return [torch.randn(batch, *grid, 3, 5, dtype=dtype, requires_grad=True) for _ in range(3)]


def gradients(output, leaves):
    return torch.autograd.grad(output, leaves, torch.linspace(-1, 1, output.numel()).view_as(output).to(output.dtype))


def test_weights_sum_to_one_for_every_query(kind):
    attend, grid, table = kind
    query, key, value = inputs(grid)
    bias = None if table is None else torch.randn(3, *table, dtype=torch.float64)
    torch.testing.assert_close(attend(query, key, torch.ones_like(value), bias=bias), torch.ones_like(value))


def test_scale_multiplies_the_scores(kind):
    attend, grid, _ = kind
    query, key, value = inputs(grid)
    torch.testing.assert_close(attend(query, key, value, scale=0.7), attend(query * (0.7 * 5**0.5), key, value))
    mean = attend(query, key, value, scale=0.0)
    torch.testing.assert_close(mean, attend(torch.zeros_like(query), key, value))


def test_images_of_a_batch_do_not_touch_each_other(kind):
    attend, grid, _ = kind
    leaves = inputs(grid, batch=3)
    alone = [attend(*(leaf[index : index + 1] for leaf in leaves)) for index in range(3)]
    torch.testing.assert_close(attend(*leaves), torch.cat(alone))


def test_an_empty_batch_gives_an_empty_output(kind):
    attend, grid, _ = kind
    leaves = inputs(grid, batch=0)
    output = attend(*leaves)
    assert output.shape == (0, *grid, 3, 5)
    assert all(gradient.shape == (0, *grid, 3, 5) for gradient in gradients(output, leaves))


def test_memory_layout_does_not_matter(kind):
    attend, grid, _ = kind
    leaves = inputs(grid)
    expected = attend(*leaves)
    strided = [leaf.detach().permute(4, 3, 2, 1, 0).contiguous().permute(4, 3, 2, 1, 0) for leaf in leaves]
    for leaf in strided:
        leaf.requires_grad_()
    output = attend(*strided)
    torch.testing.assert_close(output, expected)
    torch.testing.assert_close(gradients(output, strided), gradients(expected, leaves))
    expanded = leaves[1][:1, :1].expand(2, *grid, 3, 5)  # stride 0
    torch.testing.assert_close(attend(leaves[0], expanded, leaves[2]), attend(leaves[0], expanded.clone(), leaves[2]))


def test_inputs_stay_as_they_are(kind):
    attend, grid, _ = kind
    leaves = inputs(grid)
    before = [leaf.clone() for leaf in leaves]
    gradients(attend(*leaves), leaves)
    with torch.no_grad():
        attend(*leaves)
    assert all(torch.equal(leaf, copy) for leaf, copy in zip(leaves, before, strict=True))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_and_its_gradients_are_near(kind, dtype):
    attend, grid, table = kind
    leaves = inputs(grid, dtype)
    if table is not None:
        leaves.append(torch.randn(3, *table, dtype=dtype, requires_grad=True))
    exact = [leaf.detach().double().requires_grad_() for leaf in leaves]
    bias = [{}, {}] if table is None else [{"bias": leaves[3]}, {"bias": exact[3]}]
    output, expected = attend(*leaves[:3], **bias[0]), attend(*exact[:3], **bias[1])
    assert output.dtype == dtype
    torch.testing.assert_close(output.double(), expected, rtol=0.05, atol=0.05)
    for gradient, exact_gradient in zip(gradients(output, leaves), gradients(expected, exact), strict=True):
        assert gradient.dtype == dtype
        error = (gradient.double() - exact_gradient).norm() / exact_gradient.norm()
        assert error < (0.03 if dtype == torch.bfloat16 else 0.006)


def test_dropout_keeps_the_mean_and_its_gradients_belong_to_what_was_dropped(kind):
    attend, grid, _ = kind
    query, key, value = inputs(grid, batch=5)
    ones = torch.ones_like(value).requires_grad_()
    output = attend(query, key, ones, dropout=0.25)
    assert output.std() > 0.05
    assert abs(output.mean() - 1) < 0.05
    gradient = torch.autograd.grad(output.sum(), ones)[0]  # the output is linear in the values
    torch.testing.assert_close((gradient * ones).sum(), output.sum())
    torch.manual_seed(3)
    first = attend(query, key, value, dropout=0.25)
    torch.manual_seed(3)
    assert torch.equal(attend(query, key, value, dropout=0.25), first)
    assert not torch.equal(attend(query, key, value, dropout=0.25), first)


@pytest.mark.parametrize("frozen", range(3))
def test_frozen_inputs_do_not_change_the_other_gradients(kind, frozen):
    attend, grid, _ = kind
    leaves = inputs(grid)
    expected = gradients(attend(*leaves), leaves)
    leaves[frozen].requires_grad_(False)
    trained = [leaf for leaf in leaves if leaf.requires_grad]
    found = gradients(attend(*leaves), trained)
    kept = [gradient for index, gradient in enumerate(expected) if index != frozen]
    torch.testing.assert_close(list(found), kept)


@pytest.mark.parametrize("side", [(5, 7), (17, 19)])
@pytest.mark.parametrize("attend", [neighborhood_attention, window_attention, grid_attention])
def test_a_window_as_large_as_the_map_is_global_attention(attend, side):
    leaves = inputs(side)
    torch.testing.assert_close(attend(*leaves, side), global_attention(*leaves))


@pytest.mark.parametrize("grid", [(5, 7), (17, 19)])
def test_a_window_of_one_is_the_value_itself(grid):
    leaves = inputs(grid)
    torch.testing.assert_close(neighborhood_attention(*leaves, 1), leaves[2])
    torch.testing.assert_close(window_attention(*leaves, 1), leaves[2])


def test_second_derivatives_are_refused_rather_than_wrong(kind):
    attend, grid, _ = kind
    leaves = inputs(grid)
    (gradient,) = torch.autograd.grad(attend(*leaves).square().sum(), leaves[0], create_graph=True)
    with pytest.raises(RuntimeError, match=r"no autograd formula|is not implemented"):
        gradient.sum().backward()
