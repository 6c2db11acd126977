import pytest
import torch

from visattn.attention import (
    NeighborhoodAttention,
    dot_product_attention,
    neighborhood_attention,
    neighborhood_attention_weights,
    neighborhood_keys,
)
from visattn.attention.neighborhood import with_prefix

small = [
    ((5, 7), 3, 1),
    ((7, 5), (5, 3), 1),
    ((11, 13), (4, 7), 1),
    ((11, 13), 3, (2, 3)),
    ((7, 7), 7, 1),
    ((19, 23), 7, 1),
    ((19, 23), (5, 13), 1),
    ((3, 97), 3, 1),
    ((37, 11), 3, (3, 2)),
]


def inputs(grid, heads=2, head_dim=3, batch=2, dtype=torch.float64, grad=True):
    torch.manual_seed(0)
    make = lambda: torch.randn(batch, *grid, heads, head_dim, dtype=dtype, requires_grad=grad)  # noqa: E731
    return make(), make(), make()


def pair(value):
    return (value, value) if isinstance(value, int) else value


def window(position, length, kernel, dilation):
    """The keys along one axis by the definition: the nearest `kernel` of the query's own dilation group."""
    group = list(range(position % dilation, length, dilation))
    start = min(max(group.index(position) - kernel // 2, 0), len(group) - kernel)
    return group[start : start + kernel]


def brute_force(query, key, value, kernel, dilation, bias=None):
    (high, wide), (down, right) = pair(kernel), pair(dilation)
    output = torch.zeros_like(query)
    for row in range(query.shape[1]):
        for column in range(query.shape[2]):
            rows = window(row, query.shape[1], high, down)
            columns = window(column, query.shape[2], wide, right)
            near = key[:, rows][:, :, columns].flatten(1, 2)  # (batch, n, heads, head_dim)
            scores = torch.einsum("bhd,bnhd->bhn", query[:, row, column], near) * query.shape[-1] ** -0.5
            if bias is not None:
                places = [
                    ((y - row) // down + high - 1, (x - column) // right + wide - 1) for y in rows for x in columns
                ]
                scores = scores + torch.stack([bias[:, y, x] for y, x in places], dim=1)
            seen = value[:, rows][:, :, columns].flatten(1, 2)
            output[:, row, column] = torch.einsum("bhn,bnhd->bhd", scores.softmax(-1), seen)
    return output


@pytest.mark.parametrize(("grid", "kernel", "dilation"), small)
@pytest.mark.parametrize("with_bias", [False, True])
def test_output_and_gradients_equal_the_definition(grid, kernel, dilation, with_bias):
    query, key, value = inputs(grid)
    high, wide = pair(kernel)
    bias = torch.randn(2, 2 * high - 1, 2 * wide - 1, dtype=torch.float64, requires_grad=True) if with_bias else None
    leaves = [query, key, value] + ([bias] if with_bias else [])
    expected = brute_force(query.clone(), key, value, kernel, dilation, bias)
    output = neighborhood_attention(query, key, value, kernel, dilation, bias=bias)
    torch.testing.assert_close(output, expected)
    gradient = torch.randn_like(output)
    torch.testing.assert_close(
        torch.autograd.grad(output, leaves, gradient), torch.autograd.grad(expected, leaves, gradient)
    )


@pytest.mark.parametrize("grid", [(5, 7), (17, 19)])
def test_gradients_pass_gradcheck(grid):
    query, key, value = inputs(grid, batch=1, heads=1, head_dim=2)
    bias = torch.randn(1, 5, 5, dtype=torch.float64, requires_grad=True)
    run = lambda *tensors: neighborhood_attention(*tensors[:3], 3, bias=tensors[3])  # noqa: E731
    assert torch.autograd.gradcheck(run, (query, key, value, bias), fast_mode=True)


@pytest.mark.parametrize(("grid", "kernel", "dilation"), small)
def test_every_query_sees_exactly_kernel_squared_keys(grid, kernel, dilation):
    keys = neighborhood_keys(*grid, kernel, dilation)
    assert keys.shape == (grid[0] * grid[1], pair(kernel)[0] * pair(kernel)[1])
    assert all(len(set(row.tolist())) == keys.shape[1] for row in keys)
    assert keys.min() >= 0
    assert keys.max() < grid[0] * grid[1]


def test_many_images_are_worked_on_in_portions():
    query, key, value = inputs((23, 29), heads=3, head_dim=5, batch=41, dtype=torch.float32)
    output = neighborhood_attention(query, key, value, 7)
    torch.testing.assert_close(output[37:38], neighborhood_attention(query[37:38], key[37:38], value[37:38], 7))
    expected = torch.autograd.grad(neighborhood_attention(query[37:38], key[37:38], value[37:38], 7).sum(), value)[0]
    torch.testing.assert_close(torch.autograd.grad(output[37].sum(), value)[0], expected)


def test_weights_too_large_to_keep_are_computed_again():
    query, key, value = inputs((17, 19), head_dim=2)
    expected = brute_force(query.clone(), key, value, 13, 1)
    output = neighborhood_attention(query, key, value, 13)
    gradient = torch.randn_like(output)
    torch.testing.assert_close(
        torch.autograd.grad(output, (query, key, value), gradient),
        torch.autograd.grad(expected, (query, key, value), gradient),
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("grid", [(11, 13), (17, 19)])
def test_half_precision_is_near(dtype, grid):
    query, key, value = inputs(grid, head_dim=17, dtype=dtype)
    output = neighborhood_attention(query, key, value, 5)
    assert output.dtype == dtype
    output.sum().backward()
    expected = neighborhood_attention(query.double(), key.double(), value.double(), 5)
    torch.testing.assert_close(output.double(), expected, rtol=0, atol=0.05)
    assert query.grad.dtype == dtype


@pytest.mark.parametrize("dilation", [1, 2])
def test_compiles_without_graph_breaks(dilation):
    query, key, value = inputs((11, 13), dtype=torch.float32)
    run = lambda *tensors: neighborhood_attention(*tensors, 5, dilation)  # noqa: E731
    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    output, expected = compiled(query, key, value), run(query, key, value)
    torch.testing.assert_close(output, expected)
    torch.testing.assert_close(torch.autograd.grad(output.sum(), key), torch.autograd.grad(expected.sum(), key))


@pytest.mark.parametrize("grid", [(11, 13), (17, 19)])
def test_dropout_keeps_the_mean_and_has_matching_gradients(grid):
    query, key, value = inputs(grid, batch=1, heads=1)
    ones = torch.ones_like(value).requires_grad_()
    output = neighborhood_attention(query, key, ones, 5, dropout=0.25)
    assert output.std() > 0
    assert abs(output.mean() - 1) < 0.05
    # The output is linear in the values, so its gradient must use the same dropped weights.
    gradient = torch.autograd.grad(output.sum(), ones)[0]
    torch.testing.assert_close((gradient * ones).sum(), output.sum())


@pytest.mark.parametrize(("kernel", "dilation"), [(9, 1), (3, 3), ((3, 7), 2), (0, 1)])
def test_too_large_a_neighborhood_is_an_error(kernel, dilation):
    with pytest.raises(ValueError, match="kernel_size"):
        neighborhood_attention(*inputs((7, 8)), kernel, dilation)


def test_weights_times_values_are_the_output():
    query, key, value = inputs((7, 11))
    weights = neighborhood_attention_weights(query, key, 5)
    keys = neighborhood_keys(7, 11, 5)
    output = torch.einsum("bhqn,bqnhd->bqhd", weights, value.flatten(1, 2)[:, keys])
    torch.testing.assert_close(output.view_as(query), neighborhood_attention(query, key, value, 5))


def test_a_map_of_inference_mode_does_not_spoil_training():
    query, key, value = inputs((13, 11), dtype=torch.float32)
    with torch.inference_mode():
        neighborhood_attention(query, key, value, 3)
    neighborhood_attention(query, key, value, 3).sum().backward()


@pytest.mark.parametrize("grid", [(2, 3), (3, 11), (5, 5)])
def test_the_module_shrinks_its_kernel_to_small_maps(grid):
    module = NeighborhoodAttention(12, 3, kernel_size=7, dilation=2)
    assert module(torch.randn(2, grid[0] * grid[1], 12), grid).shape == (2, grid[0] * grid[1], 12)


def test_the_module_refuses_too_few_tokens():
    with pytest.raises(ValueError, match="don't fill"):
        NeighborhoodAttention(12, 3)(torch.randn(2, 34, 12), (5, 7))


@pytest.mark.parametrize(("grid", "kernel", "dilation"), [((7, 11), 3, 1), ((17, 19), (5, 3), 1), ((9, 13), 3, (2, 3))])
@pytest.mark.parametrize("biased", [False, True])
def test_global_tokens_and_the_neighborhood_share_one_softmax(grid, kernel, dilation, biased):
    torch.manual_seed(0)
    leaves = [torch.randn(2, *grid, 3, 5, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    leaves += [torch.randn(2, 4, 3, 5, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    high, wide = (kernel, kernel) if isinstance(kernel, int) else kernel
    table = torch.randn(3, 2 * high - 1, 2 * wide - 1, dtype=torch.float64, requires_grad=True) if biased else None
    query, key, value, global_key, global_value = leaves
    output = neighborhood_attention(
        query, key, value, kernel, dilation, 0.4, table, global_key=global_key, global_value=global_value
    )
    mask, bias = with_prefix(4, grid, (high, wide), pair(dilation), table, query)
    keys = torch.cat([global_key, key.flatten(1, 2)], dim=1).transpose(1, 2)
    values = torch.cat([global_value, value.flatten(1, 2)], dim=1).transpose(1, 2)
    bias = None if bias is None else bias[:, 4:]
    expected = dot_product_attention(query.flatten(1, 2).transpose(1, 2), keys, values, mask[4:], bias, scale=0.4)
    expected = expected.transpose(1, 2).unflatten(1, grid)
    torch.testing.assert_close(output, expected)
    outer = torch.randn_like(output)
    leaves += [table] if biased else []
    torch.testing.assert_close(torch.autograd.grad(output, leaves, outer), torch.autograd.grad(expected, leaves, outer))


@pytest.mark.parametrize("grid", [(5, 7), (17, 19)])
def test_prefix_tokens_see_all_and_are_seen_by_all(grid):
    torch.manual_seed(0)
    module = NeighborhoodAttention(12, 3, kernel_size=3, qk_norm=True).double()
    tokens, seen = torch.randn(2, 4 + grid[0] * grid[1], 12, dtype=torch.float64), []
    output = module(tokens, grid)
    module.record = lambda weights, keys: seen.append((weights, keys))
    torch.testing.assert_close(module(tokens, grid), output)
    (weights, keys), *_ = seen
    assert keys is None
    torch.testing.assert_close(weights.sum(-1), torch.ones_like(weights[..., 0]))
    assert ((weights > 0).sum(dim=-1)[:, :, :4] == tokens.shape[1]).all()
    assert ((weights > 0).sum(dim=-1)[:, :, 4:] == 4 + 9).all()


def test_only_one_of_global_keys_and_values_is_an_error():
    cells, tokens = torch.randn(3, 1, 5, 7, 2, 4), torch.randn(1, 2, 2, 4)
    with pytest.raises(ValueError, match="belong together"):
        neighborhood_attention(*cells, 3, global_key=tokens)
    torch.testing.assert_close(
        neighborhood_attention(*cells, 3, global_key=tokens[:, :0], global_value=tokens[:, :0]),
        neighborhood_attention(*cells, 3),
    )
