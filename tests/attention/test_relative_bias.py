import pytest
import torch

from visattn.attention import RelativeBiasAttention, dot_product_attention, relative_bias_attention


def inputs(grid, dtype=torch.float64):
    torch.manual_seed(0)
    leaves = [torch.randn(2, *grid, 3, 5, dtype=dtype) for _ in range(3)]
    leaves.append(torch.randn(3, 2 * grid[0] - 1, 2 * grid[1] - 1, dtype=dtype))
    return [leaf.requires_grad_() for leaf in leaves]


def brute_force(query, key, value, bias):
    """Query by query; a key above and to the left has a positive place relative to the query."""
    height, width = query.shape[1:3]
    output = torch.zeros_like(query)
    for row in range(height):
        for column in range(width):
            scores = torch.einsum("bhd,byxhd->bhyx", query[:, row, column], key) * query.shape[-1] ** -0.5
            places = [
                [bias[:, row - y + height - 1, column - x + width - 1] for x in range(width)] for y in range(height)
            ]
            scores = scores + torch.stack([torch.stack(line, dim=-1) for line in places], dim=-2)
            weights = scores.flatten(2).softmax(-1).view_as(scores)
            output[:, row, column] = torch.einsum("bhyx,byxhd->bhd", weights, value)
    return output


@pytest.mark.parametrize("grid", [(3, 5), (7, 2), (1, 4)])
def test_output_and_gradients_equal_the_definition(grid):
    leaves = inputs(grid)
    output, expected = relative_bias_attention(*leaves), brute_force(*leaves)
    torch.testing.assert_close(output, expected)
    gradient = torch.randn_like(output)
    torch.testing.assert_close(
        torch.autograd.grad(output, leaves, gradient), torch.autograd.grad(expected, leaves, gradient)
    )


def test_without_a_bias_it_is_dot_product_attention():
    query, key, value, _ = inputs((3, 5))
    sequences = [cells.flatten(1, 2).transpose(1, 2) for cells in (query, key, value)]
    expected = dot_product_attention(*sequences, scale=0.3).transpose(1, 2).unflatten(1, (3, 5))
    torch.testing.assert_close(relative_bias_attention(query, key, value, scale=0.3), expected)


@pytest.mark.parametrize("options", [{}, {"bias_hidden_dim": 7}, {"relative_position_bias": False}])
@pytest.mark.parametrize("grid", [(4, 6), (3, 11), (2, 3)])
def test_recorded_weights_give_the_same_output_on_maps_of_any_size(grid, options):
    torch.manual_seed(0)
    module = RelativeBiasAttention(12, 3, grid=(4, 6), out_dim=17, **options).double()
    tokens, seen = torch.randn(2, grid[0] * grid[1], 12, dtype=torch.float64), []
    expected = module(tokens, grid)
    assert expected.shape == (2, grid[0] * grid[1], 17)
    module.record = lambda weights, keys: seen.append((weights, keys))
    torch.testing.assert_close(module(tokens, grid), expected)
    ((weights, keys),) = seen
    assert keys is None
    assert weights.shape == (2, 3, grid[0] * grid[1], grid[0] * grid[1])
    torch.testing.assert_close(weights.sum(-1), torch.ones(weights.shape[:3], dtype=torch.float64))


def test_small_maps_take_the_centre_of_the_table_and_large_ones_enlarge_it():
    module = RelativeBiasAttention(4, 1, grid=(3, 5))
    table = torch.arange(45.0).view(1, 5, 9)
    module.relative_position_bias.data = table
    assert torch.equal(module.bias_for((3, 5)), table)
    assert torch.equal(module.bias_for((2, 4)), table[:, 1:4, 1:8])
    larger = module.bias_for((5, 5))  # 5 rows become 9, the middle one stays in the middle
    assert larger.shape == (1, 9, 9)
    torch.testing.assert_close(larger[0, 4], table[0, 2])
    assert (larger[0].diff(dim=0) >= 0).all()
    torch.testing.assert_close(module.bias_for((5, 3))[0, 4], table[0, 2, 2:7])


def test_tokens_that_do_not_fill_the_map_are_an_error():
    with pytest.raises(ValueError, match="13 tokens don't fill a 3x4 map"):
        RelativeBiasAttention(12, 3, grid=(3, 4))(torch.randn(2, 13, 12), (3, 4))
