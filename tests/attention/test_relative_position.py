import pytest
import torch
from torch import nn

from visattn.attention import (
    MultiHeadAttention,
    RelativePositionAttention,
    dot_product_attention,
    relative_position_attention,
    relative_position_attention_weights,
)
from visattn.attention.relative_position import resample_distances


def inputs(grid, batch=2, heads=3, head_dim=5, value_dim=7):
    torch.manual_seed(0)
    cells = grid[0] * grid[1]
    shapes = [(batch, heads, cells, head_dim)] * 2 + [(batch, heads, cells, value_dim)]
    tables = [(2 * side - 1, head_dim) for side in grid]
    return [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in [*shapes, *tables]]


@pytest.mark.parametrize("grid", [(2, 3), (5, 4), (1, 6), (6, 1)])
@pytest.mark.parametrize("scale", [None, 0.3])
def test_every_pair_of_cells_scores_by_content_and_by_distance(grid, scale):
    query, key, value, rows, columns = inputs(grid)
    places = [(y, x) for y in range(grid[0]) for x in range(grid[1])]
    scores = torch.empty(2, 3, len(places), len(places), dtype=torch.float64)
    for i, (y, x) in enumerate(places):
        for j, (v, u) in enumerate(places):
            seen = key[:, :, j] + rows[v - y + grid[0] - 1] + columns[u - x + grid[1] - 1]
            scores[:, :, i, j] = (query[:, :, i] * seen).sum(-1) * (5**-0.5 if scale is None else scale)
    weights = scores.softmax(-1)
    output = relative_position_attention(query, key, value, grid, rows, columns, scale=scale)
    torch.testing.assert_close(output, weights @ value)
    found = relative_position_attention_weights(query, key, grid, rows, columns, scale=scale)
    torch.testing.assert_close(found, weights)


def test_the_fused_kernel_gives_the_same_without_gradients():
    for value_dim in (2, 7, 23):  # narrower and wider than queries with positions, of 5 + 3 + 4 channels
        query, key, value, rows, columns = inputs((3, 4), value_dim=value_dim)
        expected = relative_position_attention(query, key, value, (3, 4), rows, columns)
        with torch.no_grad():
            torch.testing.assert_close(relative_position_attention(query, key, value, (3, 4), rows, columns), expected)


def test_without_positions_it_is_dot_product_attention():
    query, key, value, rows, columns = inputs((3, 4))
    output = relative_position_attention(query, key, value, (3, 4), rows * 0, columns * 0)
    torch.testing.assert_close(output, dot_product_attention(query, key, value))


def test_gradients_pass_gradcheck():
    leaves = inputs((2, 3), batch=1, heads=2, head_dim=2, value_dim=2)
    run = lambda query, key, value, *tables: relative_position_attention(query, key, value, (2, 3), *tables)  # noqa: E731
    assert torch.autograd.gradcheck(run, leaves, fast_mode=True)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_near(dtype):
    leaves = [leaf.detach() for leaf in inputs((3, 4))]
    exact = relative_position_attention(*leaves[:3], (3, 4), *leaves[3:])
    rounded = [leaf.to(dtype) for leaf in leaves[:3]]
    output = relative_position_attention(*rounded, (3, 4), *(leaf.float() for leaf in leaves[3:]))
    assert output.dtype == dtype
    torch.testing.assert_close(output.double(), exact, rtol=0.05, atol=0.05)


def test_dropout_keeps_the_mean():
    query, key, value, rows, columns = inputs((5, 7), batch=11)
    output = relative_position_attention(query, key, torch.ones_like(value), (5, 7), rows, columns, dropout=0.25)
    assert output.std() > 0.05
    assert abs(output.mean() - 1) < 0.05


def test_tables_or_tokens_of_another_map_are_an_error():
    query, key, value, rows, columns = inputs((3, 4))
    with pytest.raises(ValueError, match=r"rows \(7, 5\) don't fit a 3x4 map .* \(5, 5\)"):
        relative_position_attention(query, key, value, (3, 4), columns, rows)
    with pytest.raises(ValueError, match="12 tokens don't fill a 4x4 map"):
        relative_position_attention(query, key, value, (4, 4), columns, columns)


@pytest.mark.parametrize("grid", [(3, 4), (6, 8), (2, 2), (1, 1), (5, 3)])
@pytest.mark.parametrize(
    "options", [{}, {"qk_norm": True}, {"head_dim": 5, "value_dim": 2}, {"has_projection": False, "value_dim": 2}]
)
def test_recording_changes_nothing_on_maps_of_any_size(grid, options):
    torch.manual_seed(0)
    module = RelativePositionAttention(12, 3, grid=(3, 4), **options).double()
    tokens, seen = torch.randn(2, grid[0] * grid[1], 12, dtype=torch.float64), []
    expected = module(tokens, grid)
    assert expected.shape == (2, grid[0] * grid[1], 6 if "has_projection" in options else 12)
    module.record = lambda weights, keys: seen.append((weights, keys))
    torch.testing.assert_close(module(tokens, grid), expected)
    (weights, keys), *_ = seen
    assert keys is None
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 3, grid[0] * grid[1], dtype=torch.float64))


def test_the_module_without_positions_is_multi_head_attention():
    torch.manual_seed(0)
    module, other = RelativePositionAttention(12, 3, grid=(3, 4)), MultiHeadAttention(12, 3)
    nn.init.zeros_(module.row_positions)
    nn.init.zeros_(module.column_positions)
    own = {name: tensor for name, tensor in module.state_dict().items() if "positions" not in name}
    other.load_state_dict(own)
    tokens = torch.randn(2, 12, 12)
    torch.testing.assert_close(module(tokens, (3, 4)), other(tokens))


def test_rows_and_columns_are_told_apart():
    torch.manual_seed(0)
    module = RelativePositionAttention(12, 3, grid=(3, 4)).double()
    nn.init.zeros_(module.column_positions)
    cells = torch.randn(2, 3, 4, 12, dtype=torch.float64)
    apply = lambda cells: module(cells.flatten(1, 2), (3, 4)).unflatten(1, (3, 4))  # noqa: E731
    torch.testing.assert_close(apply(cells.flip(2)), apply(cells).flip(2))
    assert not torch.allclose(apply(cells.flip(1)), apply(cells).flip(1))


@pytest.mark.parametrize(("before", "side"), [(3, 6), (6, 3), (4, 4), (4, 7), (1, 3), (3, 1)])
def test_a_distance_keeps_its_vector_as_a_fraction_of_the_side(before, side):
    table = torch.randn(2 * before - 1, 5, dtype=torch.float64)
    resampled = resample_distances(table, side)
    assert resampled.shape == (2 * side - 1, 5)
    for distance in range(1 - side, side):
        place = min(max(distance * before / side, 1 - before), before - 1) + before - 1
        low, share = int(place), place - int(place)
        expected = table[low] * (1 - share) + (table[low + 1] * share if share else 0)
        torch.testing.assert_close(resampled[distance + side - 1], expected)


def test_an_output_of_other_channels_needs_a_projection():
    module = RelativePositionAttention(12, 3, grid=(2, 2), value_dim=2, out_dim=7, projection_bias=False)
    assert module(torch.randn(1, 4, 12), (2, 2)).shape == (1, 4, 7)
    assert module.projection.bias is None
    with pytest.raises(ValueError, match="out_dim 7 needs a projection"):
        RelativePositionAttention(12, 3, grid=(2, 2), out_dim=7, has_projection=False)


@pytest.mark.parametrize("recorded", [False, True])
def test_every_parameter_learns(recorded):
    module = RelativePositionAttention(12, 3, grid=(3, 4), dropout=0.1)
    if recorded:
        module.record = lambda weights, keys: None
    module(torch.randn(2, 30, 12), (5, 6)).square().sum().backward()
    assert [name for name, parameter in module.named_parameters() if parameter.grad is None] == []


def test_an_empty_batch_gives_an_empty_output():
    module = RelativePositionAttention(12, 3, grid=(3, 4))
    assert module(torch.randn(0, 12, 12), (3, 4)).shape == (0, 12, 12)
