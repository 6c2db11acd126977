import pytest
import torch

from visattn.attention import FocalAttention, dot_product_attention, focal_attention


def squares_of(cells, reduction):
    """The means of squares of a map by their place, cell by cell."""
    height, width = cells.shape[1:3]
    return {
        (y // reduction, x // reduction): cells[:, y : y + reduction, x : x + reduction].mean(dim=(1, 2))
        for y in range(0, height, reduction)
        for x in range(0, width, reduction)
    }


def first_of_region(query, window, reduction, region):
    """Along one axis: the middle of the window and that of the region are one, or the latter half a square before."""
    middle = query // window * window + window / 2
    return int((middle / reduction - region / 2) // 1)


def brute_force(query, key, value, window, levels, scale, bias):
    grid = query.shape[1:3]
    expected = torch.empty_like(value)
    maps = [(squares_of(key, reduction), squares_of(value, reduction)) for reduction, _ in levels]
    for y, x in torch.cartesian_prod(torch.arange(grid[0]), torch.arange(grid[1])).tolist():
        scores, values = [], []
        for (keys_at, values_at), (reduction, region), table in zip(maps, levels, bias, strict=True):
            top, left = (first_of_region(at, side, reduction, region) for at, side in zip((y, x), window, strict=True))
            for v in range(top, top + region):
                for u in range(left, left + region):
                    if (v, u) not in keys_at:
                        continue
                    added = table[:, v - top, u - left]
                    if reduction == 1:  # counted from the lowest position relative to a query that there is
                        lowest = [(side - region) // 2 - side + 1 for side in window]
                        added = table[:, v - y - lowest[0], u - x - lowest[1]]
                    scores.append((query[:, y, x] * keys_at[v, u]).sum(-1) * scale + added)
                    values.append(values_at[v, u])
        weights = torch.stack(scores, dim=-1).softmax(-1)  # (batch, heads, n)
        expected[:, y, x] = torch.einsum("bhn,nbhd->bhd", weights, torch.stack(values))
    return expected


cases = [
    ((6, 8), (2, 2), ((1, 4), (2, 3))),
    ((7, 11), (3, 3), ((1, 5), (3, 3))),
    ((7, 11), (3, 4), ((1, 4), (2, 2), (5, 3))),
    ((5, 7), (1, 1), ((1, 3), (2, 3))),
    ((5, 7), (5, 7), ((1, 7), (3, 5))),
    ((3, 2), (3, 2), ((1, 13), (7, 7))),
]


@pytest.mark.parametrize(("grid", "window", "levels"), cases)
def test_output_equals_attention_to_the_cells_and_squares_of_each_region(grid, window, levels):
    torch.manual_seed(0)
    query, key, value = torch.randn(3, 2, *grid, 3, 5, dtype=torch.float64)
    bias = [
        torch.randn(3, *(region + (side - 1 if reduction == 1 else 0) for side in window), dtype=torch.float64)
        for reduction, region in levels
    ]
    expected = brute_force(query, key, value, window, levels, 0.3, bias)
    torch.testing.assert_close(focal_attention(query, key, value, window, levels, scale=0.3, bias=bias), expected)
    without = brute_force(query, key, value, window, levels, 5**-0.5, [0 * table for table in bias])
    torch.testing.assert_close(focal_attention(query, key, value, window, levels), without)


def test_one_level_that_reaches_everywhere_is_global_attention():
    torch.manual_seed(0)
    query, key, value = torch.randn(3, 2, 5, 7, 3, 4, dtype=torch.float64)
    sequences = [tensor.flatten(1, 2).transpose(1, 2) for tensor in (query, key, value)]
    expected = dot_product_attention(*sequences).transpose(1, 2).unflatten(1, (5, 7))
    torch.testing.assert_close(focal_attention(query, key, value, 3, [(1, 15)]), expected)


def test_gradients_pass_gradcheck():
    torch.manual_seed(0)
    leaves = [torch.randn(1, 5, 3, 2, 2, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    leaves.append(torch.randn(2, 4, 4, dtype=torch.float64, requires_grad=True))
    leaves.append(torch.randn(2, 3, 3, dtype=torch.float64, requires_grad=True))
    run = lambda query, key, value, *bias: focal_attention(query, key, value, 2, ((1, 3), (2, 3)), bias=bias)  # noqa: E731
    assert torch.autograd.gradcheck(run, leaves, fast_mode=True)


@pytest.mark.parametrize("grid", [(6, 8), (7, 11), (2, 3)])
@pytest.mark.parametrize("biased", [False, True])
def test_recorded_weights_give_the_same_output(grid, biased):
    torch.manual_seed(0)
    options = {"window_size": (3, 4), "levels": ((1, 5), (2, 3)), "relative_position_bias": biased}
    module = FocalAttention(12, 3, qk_norm=True, **options).double()
    tokens, seen = torch.randn(2, grid[0] * grid[1], 12, dtype=torch.float64), []
    expected = module(tokens, grid)
    module.record = lambda weights, keys: seen.append((weights, keys))
    torch.testing.assert_close(module(tokens, grid), expected)
    (weights, keys), *_ = seen
    assert weights.shape == (2, 3, grid[0] * grid[1], grid[0] * grid[1])
    assert keys is None
    torch.testing.assert_close(weights.sum(-1), torch.ones(weights.shape[:3], dtype=torch.float64))
    value = module.qkv(tokens).unflatten(2, (3, 3, 4))[:, :, 2].transpose(1, 2)  # (batch, heads, N, head_dim)
    torch.testing.assert_close(module.project((weights @ value).transpose(1, 2).flatten(2)), expected)


def test_a_square_far_away_shares_its_weight_among_its_cells():
    torch.manual_seed(0)
    module, seen = FocalAttention(12, 3, window_size=2, levels=((1, 2), (2, 7))).double(), []
    module.record = lambda weights, keys: seen.append(weights[0, 0])
    module(torch.randn(1, 48, 12, dtype=torch.float64), (6, 8))
    weights = seen[0][0].view(6, 8)  # of the query at the upper left
    assert weights[4, 6] == weights[4, 7] == weights[5, 6] == weights[5, 7] > 0
    assert weights[0, 0] != weights[0, 1]


def test_smaller_maps_use_the_tables_of_the_same_relative_positions():
    torch.manual_seed(0)
    levels = ((1, 7), (2, 5))
    module = FocalAttention(12, 3, window_size=5, levels=levels).double()
    with torch.no_grad():
        for table in module.relative_position_bias:
            table.normal_()
    tokens = torch.randn(2, 12, 12, dtype=torch.float64)
    query, key, value = module.qkv(tokens).view(2, 3, 4, 3, 3, 4).unbind(3)
    fine, coarse = module.relative_position_bias
    lowest = [(side - 7) // 2 - side + 1 for side in (3, 4)]
    centre = (5 - 7) // 2 - 5 + 1  # what the table's first entry is for
    cropped = fine[:, lowest[0] - centre :, lowest[1] - centre :][:, :9, :10]
    expected = brute_force(query, key, value, (3, 4), levels, 0.5, [cropped, coarse])
    torch.testing.assert_close(module(tokens, (3, 4)), module.project(expected.view(2, 12, 12)))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_near(dtype):
    torch.manual_seed(0)
    module, tokens = FocalAttention(12, 3, window_size=3, levels=((1, 5), (3, 3))), torch.randn(2, 77, 12)
    expected = module(tokens, (7, 11))
    output = module.to(dtype)(tokens.to(dtype), (7, 11))
    assert output.dtype == dtype
    assert (output.float() - expected).norm() < 0.02 * expected.norm()


def test_every_parameter_learns_and_dropout_belongs_to_training():
    torch.manual_seed(0)
    module, tokens = FocalAttention(12, 3, window_size=3, levels=((1, 5), (3, 3)), dropout=0.5), torch.randn(2, 77, 12)
    assert not torch.equal(module(tokens, (7, 11)), module(tokens, (7, 11)))
    module(tokens, (7, 11)).square().sum().backward()
    assert all(parameter.grad.any() for parameter in module.parameters())
    module.eval()
    assert torch.equal(module(tokens, (7, 11)), module(tokens, (7, 11)))


def test_wrong_options_are_named():
    cells = torch.randn(3, 1, 5, 7, 3, 4)
    with pytest.raises(ValueError, match="choose 1 to 5"):
        focal_attention(*cells, window_size=6)
    with pytest.raises(ValueError, match="at least 3, the side of the window"):
        focal_attention(*cells, window_size=3, levels=((1, 2), (2, 3)))
    with pytest.raises(ValueError, match="must have reduction 1"):
        FocalAttention(12, 3, window_size=3, levels=((2, 3),))
    with pytest.raises(ValueError, match="must be pairs"):
        FocalAttention(12, 3, levels=())
    with pytest.raises(ValueError, match="prefix tokens"):
        FocalAttention(12, 3)(torch.randn(2, 36, 12), (5, 7))
