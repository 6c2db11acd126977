import pytest
import torch

from visattn.attention import WindowAttention, window_attention, window_attention_weights, window_keys

cases = [
    ((6, 10), (3, 5), 0),
    ((6, 10), (3, 5), (1, 2)),
    ((7, 11), 3, 1),
    ((7, 11), (4, 3), 0),
    ((5, 13), (5, 4), (0, 3)),
]


def inputs(grid, dtype=torch.float64):
    torch.manual_seed(0)
    return [torch.randn(2, *grid, 3, 5, dtype=dtype, requires_grad=True) for _ in range(3)]


def pair(value):
    return (value, value) if isinstance(value, int) else value


def brute_force(query, key, value, window, shift, bias):
    """Every query with the cells whose window has the same number; the first windows begin `shift` from the corner."""
    (high, wide), (down, right) = pair(window), pair(shift)
    grid = query.shape[1:3]
    cells = [(row, column) for row in range(grid[0]) for column in range(grid[1])]
    number = {(row, column): ((row - down) // high, (column - right) // wide) for row, column in cells}
    output = torch.zeros_like(query)
    for row, column in cells:
        seen = [cell for cell in cells if number[cell] == number[row, column]]
        rows, columns = zip(*seen, strict=True)
        scores = torch.einsum("bhd,bnhd->bhn", query[:, row, column], key[:, rows, columns]) * query.shape[-1] ** -0.5
        places = [(row - y + high - 1, column - x + wide - 1) for y, x in seen]
        scores = scores + torch.stack([bias[:, y, x] for y, x in places], dim=1)
        output[:, row, column] = torch.einsum("bhn,bnhd->bhd", scores.softmax(-1), value[:, rows, columns])
    return output


@pytest.mark.parametrize(("grid", "window", "shift"), cases)
def test_output_and_gradients_equal_the_definition(grid, window, shift):
    high, wide = pair(window)
    bias = torch.randn(3, 2 * high - 1, 2 * wide - 1, dtype=torch.float64, requires_grad=True)
    leaves = [*inputs(grid), bias]
    expected = brute_force(*(leaf.clone() for leaf in leaves[:3]), window, shift, bias)
    output = window_attention(*leaves[:3], window, shift, bias=bias)
    torch.testing.assert_close(output, expected)
    gradient = torch.randn_like(output)
    torch.testing.assert_close(
        torch.autograd.grad(output, leaves, gradient),
        torch.autograd.grad(brute_force(*leaves[:3], window, shift, bias), leaves, gradient),
    )


@pytest.mark.parametrize(("grid", "window", "shift"), cases)
def test_weights_times_values_are_the_output(grid, window, shift):
    query, key, value = inputs(grid)
    weights = window_attention_weights(query, key, window, shift)
    keys = window_keys(*grid, window, shift)
    assert (weights[..., keys < 0] == 0).all()
    output = torch.einsum("bhqn,bqnhd->bqhd", weights, value.flatten(1, 2)[:, keys.clamp(min=0)])
    torch.testing.assert_close(output.view_as(query), window_attention(query, key, value, window, shift))


def test_gradients_pass_gradcheck():
    assert torch.autograd.gradcheck(lambda *tensors: window_attention(*tensors, 3, 1), inputs((5, 7)), fast_mode=True)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_near(dtype):
    query, key, value = inputs((7, 11), dtype)
    output = window_attention(query, key, value, 3, 1)
    output.sum().backward()
    expected = window_attention(query.double(), key.double(), value.double(), 3, 1)
    torch.testing.assert_close(output.double(), expected, rtol=0, atol=0.05)


def test_compiles_without_graph_breaks():
    query, key, value = inputs((6, 10), torch.float32)
    run = lambda *tensors: window_attention(*tensors, (3, 5), (1, 2))  # noqa: E731
    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(query, key, value), run(query, key, value))


@pytest.mark.parametrize(("window", "shift"), [(8, 0), (0, 0), (3, 3)])
def test_impossible_windows_are_an_error(window, shift):
    with pytest.raises(ValueError, match=r"window_size|shift"):
        window_attention(*inputs((7, 11)), window, shift)


@pytest.mark.parametrize("grid", [(2, 3), (3, 11), (5, 5)])
def test_the_module_shrinks_its_window_to_small_maps(grid):
    module = WindowAttention(12, 3, window_size=5, shift=2)
    assert module(torch.randn(2, grid[0] * grid[1], 12), grid).shape == (2, grid[0] * grid[1], 12)


@pytest.mark.parametrize("biased", [False, True])
def test_what_inference_keeps_serves_a_later_training(biased):
    torch.manual_seed(0)
    module = WindowAttention(12, 3, window_size=(3, 5), shift=(1, 2), relative_position_bias=biased)
    tokens = torch.randn(2, 9 * 15, 12)  # a map of its own: no other test has kept a mask for it
    with torch.inference_mode():
        expected = module(tokens, (9, 15))
    output = module(tokens, (9, 15))
    output.sum().backward()
    torch.testing.assert_close(output, expected)
    assert all(parameter.grad is not None for parameter in module.parameters())


def test_masks_belong_to_their_map_and_precision():
    torch.manual_seed(0)
    module = WindowAttention(12, 3, window_size=3, shift=1).double()
    for grid in ((6, 9), (9, 6), (7, 9), (6, 9)):
        tokens, seen = torch.randn(2, grid[0] * grid[1], 12).double(), []
        expected = module(tokens, grid)
        module.record = lambda weights, keys, seen=seen: seen.append(weights)
        torch.testing.assert_close(module(tokens, grid), expected)
        module.record = None
        single = WindowAttention(12, 3, window_size=3, shift=1)
        single.load_state_dict(module.state_dict())
        torch.testing.assert_close(single(tokens.float(), grid).double(), expected, rtol=0, atol=1e-5)


def test_a_module_refuses_a_shift_as_large_as_its_window():
    with pytest.raises(ValueError, match="must be below window_size"):
        WindowAttention(12, 3, window_size=(3, 5), shift=(1, 5))
