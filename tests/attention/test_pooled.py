import pytest
import torch

from visattn.attention import MultiHeadAttention, PooledAttention, dot_product_attention, pooled_attention


@pytest.mark.parametrize(("grid", "reduction"), [((4, 6), 2), ((5, 7), 2), ((5, 7), 3), ((2, 3), 5)])
def test_output_equals_attention_to_the_means_of_squares(grid, reduction):
    torch.manual_seed(0)
    query, key, value = torch.randn(3, 2, *grid, 3, 5, dtype=torch.float64)
    corners = [(y, x) for y in range(0, grid[0], reduction) for x in range(0, grid[1], reduction)]
    means = [
        torch.stack([t[:, y : y + reduction, x : x + reduction].mean(dim=(1, 2)) for y, x in corners], dim=2)
        for t in (key, value)
    ]  # (batch, heads, squares, head_dim)
    expected = dot_product_attention(query.flatten(1, 2).transpose(1, 2), *means, scale=0.3)
    output = pooled_attention(query, key, value, reduction, scale=0.3)
    torch.testing.assert_close(output, expected.transpose(1, 2).unflatten(1, grid))


def test_gradients_pass_gradcheck():
    leaves = [torch.randn(1, 5, 3, 2, 2, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    assert torch.autograd.gradcheck(lambda *qkv: pooled_attention(*qkv, 2), leaves, fast_mode=True)


def test_without_reduction_the_module_is_multi_head_attention():
    torch.manual_seed(0)
    module, other = PooledAttention(12, 3, reduction=1).double(), MultiHeadAttention(12, 3, context_dim=12).double()
    other.load_state_dict(module.state_dict())
    tokens = torch.randn(2, 35, 12, dtype=torch.float64)
    torch.testing.assert_close(module(tokens, (5, 7)), other(tokens, context=tokens))


kinds = {
    "average": {"reduction": 2},
    "convolution": {"reduction": 2, "pooling": "convolution"},
    "convolution, dropping": {"reduction": 2, "pooling": "convolution", "remainder": "dropped"},
    "adaptive": {"pooling": "adaptive", "squares": 2},
}


@pytest.mark.parametrize("kind", kinds)
@pytest.mark.parametrize("grid", [(4, 6), (5, 7)])
def test_recording_changes_nothing_and_weights_sum_to_one(kind, grid):
    torch.manual_seed(0)
    module = PooledAttention(12, 3, **kinds[kind], qk_norm=True).double()
    tokens, seen = torch.randn(2, grid[0] * grid[1], 12, dtype=torch.float64), []
    expected = module(tokens, grid)
    module.record = lambda weights, keys: seen.append(weights)
    torch.testing.assert_close(module(tokens, grid), expected)
    assert seen[0].shape == (2, 3, grid[0] * grid[1], grid[0] * grid[1])
    torch.testing.assert_close(seen[0].sum(-1), torch.ones(seen[0].shape[:3], dtype=torch.float64))
    assert torch.equal(seen[0][..., 0], seen[0][..., 1])  # cells of one square
    module(tokens, grid).sum().backward()
    assert all(parameter.grad is not None for parameter in module.parameters())


def test_the_average_of_the_tokens_is_the_average_of_keys_and_values():
    torch.manual_seed(0)
    module = PooledAttention(12, 3, reduction=2).double()
    tokens = torch.randn(2, 35, 12, dtype=torch.float64)
    query = module.query(tokens).view(2, 5, 7, 3, 4)
    key, value = module.key_value(tokens).view(2, 5, 7, 2, 3, 4).unbind(3)
    expected = module.project(pooled_attention(query, key, value, 2).view(2, 35, 12))
    torch.testing.assert_close(module(tokens, (5, 7)), expected)


@pytest.mark.parametrize("grid", [(8, 10), (9, 11)])
def test_a_convolution_may_drop_what_it_does_not_divide(grid):
    torch.manual_seed(0)
    module = PooledAttention(12, 3, reduction=4, pooling="convolution", remainder="dropped").double()
    tokens = torch.randn(2, grid[0] * grid[1], 12, dtype=torch.float64)
    coarse = module.reduce(tokens.transpose(1, 2).unflatten(2, grid)).flatten(2).transpose(1, 2)  # two by two squares
    assert coarse.shape == (2, 4, 12)
    torch.testing.assert_close(module.coarse(tokens, grid), module.reduce_norm(coarse))
    shares = module.shares(grid).unflatten(1, grid)
    assert (shares[:, 8:] == 0).all()
    assert (shares[:, :, 8:] == 0).all()


def test_a_map_smaller_than_a_square_is_padded():
    torch.manual_seed(0)
    modules = [PooledAttention(12, 3, reduction=4, pooling="convolution", remainder=r) for r in ("dropped", "padded")]
    modules[1].load_state_dict(modules[0].state_dict())
    tokens = torch.randn(2, 3 * 4, 12)
    torch.testing.assert_close(modules[0](tokens, (3, 4)), modules[1](tokens, (3, 4)))


@pytest.mark.parametrize("grid", [(7, 14), (9, 11), (2, 5)])
def test_adaptive_keys_are_as_many_on_any_map_and_made_of_means(grid):
    torch.manual_seed(0)
    module = PooledAttention(12, 3, pooling="adaptive").double()
    tokens = torch.randn(2, grid[0] * grid[1], 12, dtype=torch.float64)
    cells, means = tokens.unflatten(1, grid), []
    for row in range(7):
        for column in range(7):
            top, left = row * grid[0] // 7, column * grid[1] // 7
            bottom, right = -(-(row + 1) * grid[0] // 7), -(-(column + 1) * grid[1] // 7)
            means.append(cells[:, top:bottom, left:right].mean(dim=(1, 2)))
    linear = torch.nn.functional.linear(torch.stack(means, dim=1), module.reduce.weight[:, :, 0, 0], module.reduce.bias)
    expected = torch.nn.functional.gelu(module.reduce_norm(linear))  # (batch, 49, dim)
    torch.testing.assert_close(module.coarse(tokens, grid), expected)


def test_wrong_options_are_named():
    with pytest.raises(ValueError, match="at least 1"):
        PooledAttention(12, 3, reduction=0)
    with pytest.raises(ValueError, match="choose average, convolution or adaptive"):
        PooledAttention(12, 3, pooling="max")
    with pytest.raises(ValueError, match="choose padded or dropped"):
        PooledAttention(12, 3, remainder="kept")
    with pytest.raises(ValueError, match="prefix tokens"):
        PooledAttention(12, 3)(torch.randn(2, 36, 12), (5, 7))
