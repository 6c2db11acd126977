"""The kinds of self-attention that never look at each pair of tokens: what they compute, and what they approximate."""

import pytest
import torch
from torch.nn import functional

from visattn.attention import (
    AxialAttention,
    LinearAttention,
    LinformerAttention,
    MultiHeadAttention,
    NystromAttention,
    PerformerAttention,
    axial_attention,
    dot_product_attention,
    linear_attention,
    linformer_attention,
    nystrom_attention,
    orthogonal_projection,
    performer_attention,
)

modules = {
    "linear": (LinearAttention, {}),
    "performer": (PerformerAttention, {"num_features": 7}),
    "linformer": (LinformerAttention, {"grid": (5, 7), "num_mixtures": 11}),
    "nystrom": (NystromAttention, {"num_landmarks": 6}),
    "axial": (AxialAttention, {}),
    "rows": (AxialAttention, {"axis": "width"}),
    "columns": (AxialAttention, {"axis": "height"}),
}


@pytest.fixture(params=modules)
def module(request):
    torch.manual_seed(0)
    kind, options = modules[request.param]
    return kind(12, 2, **options).double()


def inputs(tokens=13, dtype=torch.float64, factor=1.0):
    torch.manual_seed(0)
    return [(torch.randn(2, 3, tokens, 5, dtype=dtype) * factor).requires_grad_() for _ in range(3)]


def test_linear_attention_equals_its_definition():
    query, key, value = inputs()
    expected = torch.empty_like(value)
    for place in torch.cartesian_prod(torch.arange(2), torch.arange(3), torch.arange(13)):
        batch, head, row = place.tolist()
        weights = torch.stack(
            [
                (functional.elu(query[batch, head, row]) + 1) @ (functional.elu(key[batch, head, j]) + 1)
                for j in range(13)
            ]
        )
        expected[batch, head, row] = (weights / weights.sum()) @ value[batch, head]
    torch.testing.assert_close(linear_attention(query, key, value), expected)


def test_linformer_equals_its_definition():
    (query, key, value), (first, second) = inputs(), torch.randn(2, 4, 13, dtype=torch.float64)
    mixed = torch.einsum("kn,bhnd->bhkd", first, key), torch.einsum("kn,bhnd->bhkd", second, value)
    weights = (torch.einsum("bhqd,bhkd->bhqk", query, mixed[0]) * 0.3).softmax(dim=-1)
    expected = torch.einsum("bhqk,bhkd->bhqd", weights, mixed[1])
    torch.testing.assert_close(linformer_attention(query, key, value, first, second, scale=0.3), expected)


@pytest.mark.parametrize("axis", ["width", "height"])
def test_axial_attention_is_masked_attention(axis):
    torch.manual_seed(0)
    query, key, value = torch.randn(3, 2, 5, 7, 3, 4, dtype=torch.float64)
    row, column = torch.arange(35) // 7, torch.arange(35) % 7
    line = row if axis == "width" else column
    sequences = [tensor.flatten(1, 2).transpose(1, 2) for tensor in (query, key, value)]
    expected = dot_product_attention(*sequences, line[:, None] == line, scale=0.7)
    expected = expected.transpose(1, 2).unflatten(1, (5, 7))
    torch.testing.assert_close(axial_attention(query, key, value, axis, scale=0.7), expected)


def test_nystrom_with_a_landmark_for_each_token_is_softmax_attention():
    leaves = inputs(factor=2.0)
    output = nystrom_attention(*leaves, num_landmarks=13, iterations=30, scale=1.0)
    torch.testing.assert_close(output, dot_product_attention(*leaves, scale=1.0), rtol=0, atol=1e-6)


def test_nystrom_uses_the_pseudo_inverse():
    query, key, value = inputs()
    # 13 tokens in 4 segments, which share their ends: 0 to 3, 3 to 6, 6 to 9 and 9 to 12
    means = [torch.stack([t[:, :, i : i + 4].mean(dim=2) for i in (0, 3, 6, 9)], dim=2) for t in (query, key)]
    softmax = [(a @ b.transpose(2, 3) * 0.4).softmax(-1) for a, b in ((query, means[1]), means, (means[0], key))]
    expected = softmax[0] @ torch.linalg.pinv(softmax[1]) @ softmax[2] @ value
    output = nystrom_attention(query, key, value, num_landmarks=4, iterations=40, scale=0.4)
    torch.testing.assert_close(output, expected, rtol=0, atol=1e-5)


def test_performer_is_softmax_attention_in_the_mean_and_better_with_more_features():
    query, key, value = (leaf.detach() for leaf in inputs(factor=0.5))
    exact = dot_product_attention(query, key, value)
    generator = torch.Generator().manual_seed(0)

    def error(features):
        draws = [
            performer_attention(query, key, value, orthogonal_projection(features, 5, generator)) for _ in range(8)
        ]
        return (torch.stack(draws) - exact).square().mean().sqrt().item()

    errors = [error(features) for features in (16, 256, 4096)]
    assert errors[2] < 0.2 * errors[0]  # in theory a sixteenth
    assert errors[2] < errors[1] < errors[0]
    assert errors[2] < 0.01


def test_random_features_are_orthogonal_in_groups_and_as_long_as_normal_ones():
    projection = orthogonal_projection(4000, 8, torch.Generator().manual_seed(0))
    products = projection[:8] @ projection[:8].T
    torch.testing.assert_close(products, products.diagonal().diag(), rtol=0, atol=1e-4)
    assert projection.square().sum(dim=1).mean() == pytest.approx(8, rel=0.05)


@pytest.mark.parametrize("factor", [1.0, 60.0])
def test_large_scores_stay_finite(factor):
    leaves = inputs(dtype=torch.float32, factor=factor)
    projection = orthogonal_projection(16, 5)
    for output in (linear_attention(*leaves), performer_attention(*leaves, projection), nystrom_attention(*leaves, 4)):
        gradients = torch.autograd.grad(output.sum(), leaves, retain_graph=True)
        assert all(tensor.isfinite().all() for tensor in (output, *gradients))


def test_gradients_pass_gradcheck():
    leaves, projection = inputs(tokens=7), orthogonal_projection(6, 5).double()
    mixtures = torch.randn(2, 4, 7, dtype=torch.float64, requires_grad=True).unbind(0)
    mixtures = [mixture.detach().requires_grad_() for mixture in mixtures]
    cells = [torch.randn(2, 3, 4, 2, 5, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    check = torch.autograd.gradcheck
    assert check(linear_attention, leaves, fast_mode=True)
    assert check(linformer_attention, [*leaves, *mixtures], fast_mode=True)
    assert check(lambda *qkv: nystrom_attention(*qkv, 3), leaves, fast_mode=True)
    assert check(lambda *qkv: axial_attention(*qkv, "height"), cells, fast_mode=True)
    # The factors that fall out of the weights are held fixed in the backward, which the small constant makes visible.
    assert check(lambda *qkv: performer_attention(*qkv, projection), leaves, fast_mode=True, atol=1e-3)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_near(module, dtype):
    tokens = torch.randn(2, 35, 12, dtype=torch.float64)
    expected = module(tokens, (5, 7))
    output = module.to(dtype)(tokens.to(dtype), (5, 7))
    assert output.dtype == dtype
    assert (output.double() - expected).norm() < 0.05 * expected.norm()


def test_recorded_weights_give_the_same_output(module):
    tokens, seen = torch.randn(2, 35, 12, dtype=torch.float64), []
    expected = module(tokens, (5, 7))
    module.record = lambda weights, keys: seen.append((weights, keys))
    torch.testing.assert_close(module(tokens, (5, 7)), expected, rtol=0, atol=1e-10)
    (weights, keys), *_ = seen
    assert weights.shape == (2, 2, 35, 35)
    assert keys is None
    if not isinstance(module, LinformerAttention | NystromAttention):  # whose weights need not be shares
        torch.testing.assert_close(weights.sum(dim=-1), torch.ones(2, 2, 35, dtype=torch.float64))


def test_other_sizes_of_the_map_work(module):
    for grid in ((3, 2), (6, 11)):
        assert module(torch.randn(2, grid[0] * grid[1], 12, dtype=torch.float64), grid).shape[1] == grid[0] * grid[1]


def test_modules_have_the_parameters_of_multi_head_attention_and_train(module):
    names = {name for name, _ in module.named_parameters()}
    assert {name for name, _ in MultiHeadAttention(12, 2).named_parameters()} <= names
    module(torch.randn(2, 35, 12, dtype=torch.float64), (5, 7)).square().sum().backward()
    assert all(parameter.grad.isfinite().all() and parameter.grad.any() for parameter in module.parameters())


def test_a_linformer_mixture_on_another_map_means_the_same():
    module = LinformerAttention(12, 2, grid=(6, 8), num_mixtures=5)
    constant = torch.ones(48, 1)
    (mixture, _), (larger, _) = module.mixtures((6, 8)), module.mixtures((12, 16))
    torch.testing.assert_close(larger @ torch.ones(192, 1), mixture @ constant, rtol=0.2, atol=0.05)


def test_wrong_options_are_named():
    with pytest.raises(ValueError, match="no weights to drop"):
        LinearAttention(12, 3, dropout=0.1)
    with pytest.raises(ValueError, match="choose an even number"):
        AxialAttention(12, 3)
    with pytest.raises(ValueError, match="width, height or both"):
        AxialAttention(12, 3, axis="depth")
    with pytest.raises(ValueError, match="choose 1 to 13"):
        nystrom_attention(*inputs(), num_landmarks=14)
    with pytest.raises(ValueError, match="prefix tokens"):
        AxialAttention(12, 2)(torch.randn(2, 36, 12), (5, 7))
