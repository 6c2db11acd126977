import pytest
import torch

from visattn.attention import (
    MaskUnitAttention,
    MultiHeadAttention,
    mask_unit_attention,
    mask_unit_attention_weights,
    mask_unit_keys,
)

cases = [
    ((8, 12), (4, 6), 2),
    ((8, 12), 4, 1),
    ((7, 11), 4, 2),
    ((5, 13), (2, 6), 2),
    ((7, 11), (3, 6), 3),
    ((3, 11), 4, 2),
    ((7, 11), None, 2),
    ((5, 7), None, 1),
]


@pytest.mark.parametrize(("grid", "unit_size", "stride"), cases)
def test_output_equals_attention_of_the_largest_queries_of_a_square_to_the_cells_of_its_unit(grid, unit_size, stride):
    torch.manual_seed(0)
    query, key, value = torch.randn(3, 2, *grid, 3, 5, dtype=torch.float64)
    high, wide = grid if unit_size is None else (unit_size, unit_size) if isinstance(unit_size, int) else unit_size
    expected = torch.empty(2, -(-grid[0] // stride), -(-grid[1] // stride), 3, 5, dtype=torch.float64)
    for row in range(expected.shape[1]):
        for column in range(expected.shape[2]):
            top, left = row * stride, column * stride
            largest = query[:, top : top + stride, left : left + stride].amax(dim=(1, 2))  # (batch, heads, head_dim)
            top, left = top // high * high, left // wide * wide
            keys, values = (t[:, top : top + high, left : left + wide].flatten(1, 2) for t in (key, value))
            scores = torch.einsum("bhd,bnhd->bhn", largest, keys) * 0.3
            expected[:, row, column] = torch.einsum("bhn,bnhd->bhd", scores.softmax(dim=-1), values)
    output = mask_unit_attention(query, key, value, unit_size, stride, scale=0.3)
    torch.testing.assert_close(output, expected)
    weights = mask_unit_attention_weights(query, key, unit_size, stride, scale=0.3)
    seen = mask_unit_keys(*grid, unit_size, stride)
    values = value.flatten(1, 2)[:, seen.clamp(min=0)]  # (batch, queries, n, heads, head_dim)
    assert (weights[:, :, seen < 0] == 0).all()
    torch.testing.assert_close(torch.einsum("bhqn,bqnhd->bqhd", weights, values), expected.flatten(1, 2))


@pytest.mark.parametrize(("grid", "unit_size", "stride"), [((5, 3), 2, 2), ((3, 5), None, 2), ((4, 3), 2, 1)])
def test_gradients_pass_gradcheck(grid, unit_size, stride):
    torch.manual_seed(0)
    leaves = [torch.randn(1, *grid, 2, 2, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    run = lambda *qkv: mask_unit_attention(*qkv, unit_size, stride)  # noqa: E731
    assert torch.autograd.gradcheck(run, leaves, fast_mode=True)


def test_keys_are_those_of_the_unit_that_a_pooled_query_lies_in():
    keys = mask_unit_keys(3, 6, 2, 2)
    assert keys.tolist() == [
        [0, 1, 6, 7],
        [2, 3, 8, 9],
        [4, 5, 10, 11],
        [12, 13, -1, -1],
        [14, 15, -1, -1],
        [16, 17, -1, -1],
    ]
    assert mask_unit_keys(2, 3, None, 2).tolist() == [[0, 1, 2, 3, 4, 5]] * 2


def test_units_and_images_do_not_touch_each_other():
    torch.manual_seed(0)
    leaves = torch.randn(3, 2, 7, 11, 3, 5, dtype=torch.float64)
    expected = mask_unit_attention(*leaves, 4, 2)
    changed = leaves.clone()
    changed[:, 1] += 1
    changed[:, :, 4:] += 1  # the lower units
    output = mask_unit_attention(*changed, 4, 2)
    torch.testing.assert_close(output[0, :2], expected[0, :2])
    assert not torch.isclose(output[0, 2:], expected[0, 2:]).any()
    assert not torch.isclose(output[1], expected[1]).any()


@pytest.mark.parametrize("grid", [(8, 12), (7, 11)])
@pytest.mark.parametrize(("unit_size", "stride"), [(4, 2), (4, 1), (None, 2), (None, 1)])
def test_recording_changes_neither_output_nor_gradients(grid, unit_size, stride):
    torch.manual_seed(0)
    module = MaskUnitAttention(12, 3, unit_size=unit_size, query_stride=stride, out_dim=24, qk_norm=True).double()
    tokens = torch.randn(2, grid[0] * grid[1], 12, dtype=torch.float64, requires_grad=True)
    seen = []
    expected = module(tokens, grid)
    assert expected.shape == (2, -(-grid[0] // stride) * -(-grid[1] // stride), 24)
    (gradient,) = torch.autograd.grad(expected.square().sum(), tokens)
    module.record = lambda weights, keys: seen.append((weights, keys))
    output = module(tokens, grid)
    torch.testing.assert_close(output, expected)
    torch.testing.assert_close(torch.autograd.grad(output.square().sum(), tokens)[0], gradient)
    weights, keys = seen[0]
    assert weights.shape[:3] == (2, 3, grid[0] * grid[1])  # a row for each token
    torch.testing.assert_close(weights.sum(-1), torch.ones(weights.shape[:3], dtype=torch.float64))
    if unit_size is None:
        assert keys is None
        assert weights.shape[3] == grid[0] * grid[1]
    else:
        assert keys.shape == (grid[0] * grid[1], 16)
    if stride == 2:  # what becomes one query looks the same way
        torch.testing.assert_close(weights[:, :, 0], weights[:, :, grid[1] + 1])


def test_what_is_recorded_is_part_of_the_output():
    torch.manual_seed(0)
    module, seen = MaskUnitAttention(12, 3, unit_size=4, query_stride=2), []
    module.record = lambda weights, keys: seen.append(weights)
    output = module(torch.randn(2, 48, 12), (6, 8))
    (gradient,) = torch.autograd.grad(output.sum(), seen[0])
    assert (gradient != 0).any()


def test_one_unit_without_pooling_is_multi_head_attention():
    torch.manual_seed(0)
    module, other = MaskUnitAttention(12, 3, unit_size=None).double(), MultiHeadAttention(12, 3).double()
    other.load_state_dict(module.state_dict())
    tokens = torch.randn(2, 35, 12, dtype=torch.float64)
    torch.testing.assert_close(module(tokens, (5, 7)), other(tokens))


def test_dropout_keeps_the_mean():
    torch.manual_seed(0)
    query, key = torch.randn(2, 5, 8, 12, 3, 5)
    output = mask_unit_attention(query, key, torch.ones_like(key), 4, 2, dropout=0.25)
    assert output.std() > 0.05
    assert abs(output.mean() - 1) < 0.05


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_near(dtype):
    torch.manual_seed(0)
    leaves = [torch.randn(2, 7, 11, 3, 5, dtype=dtype, requires_grad=True) for _ in range(3)]
    output = mask_unit_attention(*leaves, 4, 2)
    assert output.dtype == dtype
    expected = mask_unit_attention(*(leaf.detach().double() for leaf in leaves), 4, 2)
    torch.testing.assert_close(output.double(), expected, rtol=0.05, atol=0.05)
    output.sum().backward()
    assert all(leaf.grad.isfinite().all() for leaf in leaves)


def test_an_empty_batch_gives_an_empty_output():
    assert mask_unit_attention(*torch.randn(3, 0, 7, 11, 3, 5), 4, 2).shape == (0, 4, 6, 3, 5)


def test_wrong_options_are_named():
    with pytest.raises(ValueError, match="unit_size 3 is no multiple of query_stride 2"):
        mask_unit_attention(*torch.randn(3, 1, 6, 6, 1, 4), 3, 2)
    with pytest.raises(ValueError, match="query_stride 0 must be at least 1"):
        mask_unit_keys(4, 4, 2, 0)
    with pytest.raises(ValueError, match="no multiple of query_stride"):
        MaskUnitAttention(12, 3, unit_size=5, query_stride=2)
    with pytest.raises(ValueError, match="5 heads don't divide 24 channels"):
        MaskUnitAttention(12, 5, out_dim=24)
    with pytest.raises(ValueError, match="prefix tokens"):
        MaskUnitAttention(12, 3)(torch.randn(2, 36, 12), (5, 7))
