import pytest
import torch
from timm.models.swin_transformer_v2 import WindowAttention as TimmWindowAttention
from torch.nn import functional

from tests.attention.test_window import brute_force
from visattn.attention import CosineWindowAttention, cosine_window_attention
from visattn.attention.cosine_window import log_spaced_coordinates

cases = [
    ((6, 10), (3, 5), 0),
    ((6, 10), (3, 5), (1, 2)),
    ((7, 11), 3, 1),
    ((5, 13), (5, 4), (0, 3)),
]


def inputs(grid, dtype=torch.float64):
    torch.manual_seed(0)
    return [torch.randn(2, *grid, 3, 5, dtype=dtype, requires_grad=True) for _ in range(3)]


@pytest.mark.parametrize(("grid", "window", "shift"), cases)
def test_output_and_gradients_equal_a_loop_over_queries(grid, window, shift):
    query, key, value = inputs(grid)
    scale = torch.tensor([0.5, 7.0, 100.0], dtype=torch.float64, requires_grad=True)
    high, wide = (window, window) if isinstance(window, int) else window
    bias = torch.randn(3, 2 * high - 1, 2 * wide - 1, dtype=torch.float64, requires_grad=True)
    leaves = [query, key, value, scale, bias]
    output = cosine_window_attention(query, key, value, window, shift, scale, bias)
    # The brute force divides by sqrt(head_dim).
    pointing = query / query.norm(dim=-1, keepdim=True) * scale[:, None] * 5**0.5
    expected = brute_force(pointing, key / key.norm(dim=-1, keepdim=True), value, window, shift, bias)
    torch.testing.assert_close(output, expected)
    gradient = torch.randn_like(output)
    torch.testing.assert_close(
        torch.autograd.grad(output, leaves, gradient), torch.autograd.grad(expected, leaves, gradient)
    )


def test_lengths_of_queries_and_keys_do_not_count():
    query, key, value = inputs((7, 11))
    expected = cosine_window_attention(query, key, value, 3, 1)
    torch.testing.assert_close(cosine_window_attention(query * 0.2, key * 30, value, 3, 1), expected)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_a_key_of_zeros_is_neither_near_nor_far(dtype):
    query, key, value = inputs((3, 4), dtype)
    output = cosine_window_attention(query, torch.zeros_like(key), value, (3, 4))
    mean = value.mean(dim=(1, 2), keepdim=True).expand_as(output)
    torch.testing.assert_close(output, mean, rtol=0, atol=1e-6 if dtype == torch.float64 else 0.01)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_near(dtype):
    query, key, value = inputs((7, 11), dtype)
    output = cosine_window_attention(query, key, value, 3, 1, torch.tensor([2.0, 5.0, 9.0]))
    assert output.dtype == dtype
    output.sum().backward()
    exact = [tensor.double() for tensor in (query, key, value)]
    expected = cosine_window_attention(*exact, 3, 1, torch.tensor([2.0, 5.0, 9.0]).double())
    torch.testing.assert_close(output.double(), expected, rtol=0, atol=0.1)


@pytest.mark.parametrize("reference", [None, (2, 2), (7, 7)])
def test_the_module_equals_timms_on_one_window(reference):
    torch.manual_seed(0)
    module = CosineWindowAttention(12, 3, window_size=(4, 5), reference_window_size=reference).double()
    theirs = TimmWindowAttention(12, (4, 5), 3, pretrained_window_size=reference or (0, 0)).double()
    for parameter in module.parameters():
        parameter.data.add_(torch.randn_like(parameter) * 0.5)
    module.logit_scale.data[2] = 10.0  # beyond what is allowed
    weights = module.state_dict()
    renamed = {"qkv.weight": weights["qkv.weight"], "logit_scale": weights["logit_scale"].view(3, 1, 1)}
    renamed |= {"q_bias": weights["qkv.query_bias"], "v_bias": weights["qkv.value_bias"]}
    renamed |= {name.replace("position_mlp", "cpb_mlp"): weights[name] for name in weights if "mlp" in name}
    renamed |= {name.replace("projection", "proj"): weights[name] for name in weights if "projection" in name}
    theirs.load_state_dict(renamed)
    tokens = torch.randn(2, 20, 12, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(module(tokens, (4, 5)), theirs(tokens), rtol=0, atol=1e-6)


def test_a_small_map_has_the_centre_of_the_bias():
    module = CosineWindowAttention(12, 3, window_size=5).double()
    torch.testing.assert_close(module.bias_for((2, 3)), module.bias_for((5, 5))[:, 3:6, 2:7])


def test_coordinates_grow_with_the_logarithm_of_the_distance():
    coordinates = log_spaced_coordinates((3, 2), (5, 2), torch.float32, torch.device("cpu"))
    assert coordinates.shape == (5, 3, 2)
    down = torch.tensor([-5.0, -3.0, 1.0, 3.0, 5.0]).abs().log2() * torch.tensor([-1, -1, 0, 1, 1]) / 3
    torch.testing.assert_close(coordinates[:, 1, 0], down)
    torch.testing.assert_close(
        coordinates[0, :, 1], torch.tensor([-9.0, 1.0, 9.0]).abs().log2() * torch.tensor([-1, 0, 1]) / 3
    )


@pytest.mark.parametrize("grid", [(6, 10), (7, 11), (2, 3)])
def test_recorded_weights_give_the_same_output(grid):
    torch.manual_seed(0)
    module = CosineWindowAttention(12, 3, window_size=(3, 4), shift=(1, 2)).double()
    tokens, seen = torch.randn(2, grid[0] * grid[1], 12, dtype=torch.float64), []
    expected = module(tokens, grid)
    module.record = lambda weights, keys: seen.append((weights, keys))
    torch.testing.assert_close(module(tokens, grid), expected)
    [(weights, keys)] = seen
    torch.testing.assert_close(weights.sum(-1), torch.ones(weights.shape[:3], dtype=torch.float64))
    assert (weights[:, :, keys < 0] == 0).all()


def test_keys_have_no_bias_and_nothing_has_without_qkv_bias():
    module = CosineWindowAttention(12, 3, window_size=3)
    assert (module.qkv(torch.zeros(1, 12)) == 0).all()
    module.qkv.query_bias.data.fill_(2.0)
    module.qkv.value_bias.data.fill_(3.0)
    assert module.qkv(torch.zeros(1, 12)).view(3, 12).unique(dim=1).flatten().tolist() == [2.0, 0.0, 3.0]
    bare = CosineWindowAttention(12, 3, window_size=3, qkv_bias=False)
    tokens = torch.randn(2, 12)
    torch.testing.assert_close(bare.qkv(tokens), functional.linear(tokens, bare.qkv.weight))


def test_every_parameter_has_a_gradient_also_under_autocast():
    module = CosineWindowAttention(12, 3, window_size=(3, 4), shift=1)
    with torch.autocast("cpu", torch.bfloat16):
        module(torch.randn(2, 77, 12), (7, 11)).float().square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in module.parameters())


def test_compiled_modules_equal_eager_ones():
    torch.manual_seed(0)
    module, tokens = CosineWindowAttention(12, 3, window_size=(3, 4), shift=(1, 2)), torch.randn(2, 77, 12)
    torch.compiler.reset()
    output = torch.compile(module, fullgraph=True, backend="aot_eager")(tokens, (7, 11))
    torch.testing.assert_close(output, module(tokens, (7, 11)))
