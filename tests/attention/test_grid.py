import pytest
import torch

from visattn.attention import GridAttention, dot_product_attention, grid_attention, grid_keys


@pytest.mark.parametrize(("grid", "size"), [((6, 8), (2, 4)), ((7, 11), (3, 4)), ((5, 7), 5), ((4, 9), (4, 2))])
def test_output_equals_attention_to_cells_at_the_same_place_of_each_rectangle(grid, size):
    torch.manual_seed(0)
    high, wide = (size, size) if isinstance(size, int) else size
    query, key, value = torch.randn(3, 2, *grid, 3, 5, dtype=torch.float64)
    bias = torch.randn(3, 2 * high - 1, 2 * wide - 1, dtype=torch.float64)
    steps = (-(-grid[0] // high), -(-grid[1] // wide))
    expected = torch.empty_like(value)
    for y, x in torch.cartesian_prod(torch.arange(grid[0]), torch.arange(grid[1])).tolist():
        keys = [(v, u) for v in range(y % steps[0], grid[0], steps[0]) for u in range(x % steps[1], grid[1], steps[1])]
        scores = torch.stack([(query[:, y, x] * key[:, v, u]).sum(-1) * 0.3 for v, u in keys], dim=-1)
        scores += torch.stack(
            [
                bias[:, y // steps[0] - v // steps[0] + high - 1, x // steps[1] - u // steps[1] + wide - 1]
                for v, u in keys
            ],
            dim=-1,
        )
        values = torch.stack([value[:, v, u] for v, u in keys], dim=-2)  # (batch, heads, n, head_dim)
        expected[:, y, x] = (scores.softmax(-1).unsqueeze(-2) @ values).squeeze(-2)
    torch.testing.assert_close(grid_attention(query, key, value, size, scale=0.3, bias=bias), expected)


@pytest.mark.parametrize("grid", [(6, 8), (7, 11), (2, 3)])
@pytest.mark.parametrize("biased", [False, True])
def test_recorded_weights_give_the_same_output(grid, biased):
    torch.manual_seed(0)
    module = GridAttention(12, 3, grid_size=(3, 4), relative_position_bias=biased).double()
    tokens, seen = torch.randn(2, grid[0] * grid[1], 12, dtype=torch.float64), []
    expected = module(tokens, grid)
    module.record = lambda weights, keys: seen.append((weights, keys))
    torch.testing.assert_close(module(tokens, grid), expected)
    (weights, keys), *_ = seen
    torch.testing.assert_close(weights.sum(-1), torch.ones(weights.shape[:3], dtype=torch.float64))
    assert (weights.sum(dim=(0, 1, 2)) > 0).any()
    assert (weights[:, :, keys < 0] == 0).all()
    assert keys.shape == (grid[0] * grid[1], min(3, grid[0]) * min(4, grid[1]))


def test_gradients_pass_gradcheck():
    leaves = [torch.randn(1, 5, 3, 2, 2, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    leaves.append(torch.randn(2, 3, 3, dtype=torch.float64, requires_grad=True))
    run = lambda query, key, value, bias: grid_attention(query, key, value, 2, bias=bias)  # noqa: E731
    assert torch.autograd.gradcheck(run, leaves, fast_mode=True)


def test_keys_lie_at_regular_distances():
    assert grid_keys(4, 6, (2, 3))[0].tolist() == [0, 2, 4, 12, 14, 16]
    assert grid_keys(4, 6, (2, 3))[7].tolist() == [7, 9, 11, 19, 21, 23]
    assert grid_keys(1, 5, (1, 2))[3].tolist() == [0, 3]
    assert grid_keys(1, 5, (1, 2))[2].tolist() == [2, -1]


def test_a_grid_larger_than_the_map_is_an_error_and_the_module_fits_it():
    cells = torch.randn(3, 1, 2, 3, 1, 4)
    with pytest.raises(ValueError, match="choose 1 to 2"):
        grid_attention(*cells, 3)
    sequences = [tensor.flatten(1, 2).transpose(1, 2) for tensor in cells]
    expected = dot_product_attention(*sequences).transpose(1, 2).unflatten(1, (2, 3))
    torch.testing.assert_close(grid_attention(*cells, (2, 3)), expected)
