import pytest
import torch

from visattn.attention import (
    MultiHeadAttention,
    NeighborhoodAttention,
    WindowAttention,
    attention_weights,
    dot_product_attention,
)


def inputs(dtype=torch.float64, keys=11):
    torch.manual_seed(0)
    return [torch.randn(2, 3, n, 5, dtype=dtype, requires_grad=True) for n in (7, keys, keys)]


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("biased", [False, True])
def test_output_equals_the_definition(masked, biased):
    query, key, value = inputs()
    mask = torch.rand(2, 1, 7, 11) > 0.3 if masked else None
    bias = torch.randn(3, 7, 11, dtype=torch.float64, requires_grad=True) if biased else None
    scores = torch.einsum("bhqd,bhkd->bhqk", query, key) * 0.3
    scores = scores if bias is None else scores + bias
    scores = scores if mask is None else scores.masked_fill(~mask, float("-inf"))
    expected = torch.einsum("bhqk,bhkd->bhqd", scores.softmax(-1), value)
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            torch.testing.assert_close(dot_product_attention(query, key, value, mask, bias, scale=0.3), expected)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("trained_bias", [None, False, True])
def test_a_query_that_sees_nothing_gets_zeros_and_finite_gradients(dtype, trained_bias):
    leaves = inputs(dtype)
    mask = torch.ones(7, 11, dtype=torch.bool)
    mask[3] = False
    bias = None if trained_bias is None else torch.randn(3, 7, 11, dtype=dtype, requires_grad=trained_bias)
    with torch.no_grad():
        assert (attention_weights(*leaves[:2], mask, bias)[:, :, 3] == 0).all()
        assert (dot_product_attention(*leaves, mask, bias)[:, :, 3] == 0).all()
    output = dot_product_attention(*leaves, mask, bias)
    assert (output[:, :, 3] == 0).all()
    gradients = torch.autograd.grad(output.square().sum(), leaves + ([bias] if trained_bias else []))
    assert all(gradient.isfinite().all() for gradient in gradients)
    assert (gradients[0][:, :, 3] == 0).all()


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("biased", [False, True])
def test_gradients_pass_gradcheck(masked, biased):
    mask = torch.rand(2, 1, 7, 11) > 0.3 if masked else None
    bias = [torch.randn(3, 7, 11, dtype=torch.float64, requires_grad=True)] if biased else [None]
    run = lambda *tensors: dot_product_attention(*tensors[:3], mask, *tensors[3:])  # noqa: E731
    assert torch.autograd.gradcheck(run, inputs() + bias, fast_mode=True)


@pytest.mark.parametrize("masked", [False, True])
def test_modules_take_masks_and_biases_in_both_ways(masked):
    torch.manual_seed(0)
    module = MultiHeadAttention(12, 3, context_dim=10).double()
    tokens, context = torch.randn(2, 7, 12).double(), torch.randn(2, 11, 10).double()
    mask = torch.rand(2, 1, 7, 11) > 0.3 if masked else None
    bias = torch.randn(3, 7, 11).double()
    query = module.query(tokens).view(2, 7, 3, 4).transpose(1, 2)
    key, value = module.key_value(context).view(2, 11, 2, 3, 4).permute(2, 0, 3, 1, 4)
    scores = query @ key.transpose(2, 3) / 2 + bias
    scores = scores if mask is None else scores.masked_fill(~mask, float("-inf"))
    expected = module.projection((scores.softmax(-1) @ value).transpose(1, 2).reshape(2, 7, 12))
    torch.testing.assert_close(module(tokens, context=context, mask=mask, bias=bias), expected)
    module.record = lambda weights, keys: None
    torch.testing.assert_close(module(tokens, context=context, mask=mask, bias=bias), expected)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_causal_attention_equals_its_mask_fused_explicit_and_recorded(dtype):
    torch.manual_seed(0)
    module, tokens = MultiHeadAttention(12, 3).to(dtype), torch.randn(2, 7, 12, dtype=dtype)
    expected, seen = module(tokens, mask=torch.ones(7, 7, dtype=torch.bool).tril()), []
    tolerance = {"rtol": 0, "atol": 1e-12 if dtype == torch.float64 else 0.02}
    with torch.no_grad():
        torch.testing.assert_close(module(tokens, is_causal=True), expected, **tolerance)
    torch.testing.assert_close(module(tokens, is_causal=True), expected, **tolerance)
    module.record = lambda weights, keys: seen.append(weights)
    torch.testing.assert_close(module(tokens, is_causal=True), expected, **tolerance)
    assert (seen[0].triu(1) == 0).all()
    assert (seen[0].tril() > 0).sum() == 2 * 3 * 28


def test_causal_attention_with_a_mask_is_an_error():
    query, key, value = inputs()
    with pytest.raises(ValueError, match="put the causal part into the mask"):
        dot_product_attention(query, key, value, torch.ones(7, 11, dtype=torch.bool), is_causal=True)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("recorded", [False, True])
@pytest.mark.parametrize("precomputed", [False, True])
def test_rows_that_share_a_context_are_as_if_it_were_repeated(masked, recorded, precomputed):
    torch.manual_seed(0)
    module = MultiHeadAttention(12, 3, context_dim=10, qk_norm=True).double()
    tokens, context = torch.randn(6, 7, 12).double(), torch.randn(2, 11, 10).double()
    mask = torch.rand(2, 1, 1, 11) > 0.3 if masked else None
    seen, single = [], []
    module.record = (lambda weights, keys: single.append(weights)) if recorded else None
    repeated_mask = None if mask is None else mask.repeat_interleave(3, dim=0)
    expected = module(tokens, context=context.repeat_interleave(3, dim=0), mask=repeated_mask)
    module.record = (lambda weights, keys: seen.append(weights)) if recorded else None
    shared = module.keys_and_values(context) if precomputed else context
    torch.testing.assert_close(module(tokens, context=shared, mask=mask), expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(seen, single, rtol=0, atol=1e-12)
    assert not recorded or seen[0].shape == (6, 3, 7, 11)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_near_and_trains(dtype):
    query, key, value = inputs(dtype)
    output = dot_product_attention(query, key, value)
    output.sum().backward()
    expected = dot_product_attention(query.double(), key.double(), value.double())
    torch.testing.assert_close(output.double(), expected, rtol=0, atol=0.05)


def test_compiles_without_graph_breaks():
    compiled = torch.compile(dot_product_attention, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*inputs(torch.float32)), dot_product_attention(*inputs(torch.float32)))


def test_attends_to_a_context_of_other_width():
    module = MultiHeadAttention(12, 3, context_dim=10)
    assert module(torch.randn(2, 7, 12), context=torch.randn(2, 11, 10)).shape == (2, 7, 12)


kinds = [
    MultiHeadAttention(12, 3, qk_norm=True),
    NeighborhoodAttention(12, 3, kernel_size=3, dilation=2),
    NeighborhoodAttention(12, 3, kernel_size=(5, 3), qk_norm=True),
    WindowAttention(12, 3, window_size=(3, 5)),
    WindowAttention(12, 3, window_size=4, shift=(1, 2)),
]


@pytest.mark.parametrize("module", kinds, ids=lambda module: type(module).__name__)
def test_recording_shows_the_weights_and_changes_no_output(module):
    tokens = torch.randn(2, 77, 12)
    expected, seen = module(tokens, (7, 11)), []
    module.record = lambda weights, keys: seen.append((weights, keys))
    output = module(tokens, (7, 11))
    module.record = None
    torch.testing.assert_close(output, expected, rtol=0, atol=1e-5)
    [(weights, keys)] = seen
    assert weights.shape[:3] == (2, 3, 77)
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 3, 77))
    assert keys is None or keys.shape == (77, weights.shape[3])


@pytest.mark.parametrize("module", kinds, ids=lambda module: type(module).__name__)
def test_every_parameter_has_a_gradient_also_under_autocast(module):
    module.zero_grad()
    with torch.autocast("cpu", torch.bfloat16):
        module(torch.randn(2, 77, 12), (7, 11)).float().square().sum().backward()
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all()


def test_heads_that_do_not_divide_the_channels_are_an_error():
    with pytest.raises(ValueError, match="5 heads"):
        MultiHeadAttention(12, 5)


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("recorded", [False, True])
def test_positions_reach_queries_and_keys_but_not_values(biased, recorded):
    torch.manual_seed(0)
    module = MultiHeadAttention(12, 3, qkv_bias=biased).double()
    tokens, position = torch.randn(2, 7, 12).double(), torch.randn(7, 12).double()
    query, key, _ = module.qkv(tokens + position).view(2, 7, 3, 3, 4).permute(2, 0, 3, 1, 4)
    value = module.qkv(tokens).view(2, 7, 3, 3, 4)[:, :, 2].transpose(1, 2)
    expected = module.projection(((query @ key.mT / 2).softmax(-1) @ value).transpose(1, 2).reshape(2, 7, 12))
    module.record = (lambda weights, keys: None) if recorded else None
    torch.testing.assert_close(module(tokens, position=position), expected)


@pytest.mark.parametrize("precomputed", [False, True])
def test_positions_of_a_context_reach_its_keys_but_not_its_values(precomputed):
    torch.manual_seed(0)
    module = MultiHeadAttention(12, 3, context_dim=10, qk_norm=True).double()
    tokens, position = torch.randn(2, 7, 12).double(), torch.randn(2, 7, 12).double()
    context, context_position = torch.randn(2, 11, 10).double(), torch.randn(1, 11, 10).double()
    key, _ = module.keys_and_values(context + context_position)
    expected = module(tokens + position, context=(key, module.keys_and_values(context)[1]))
    given = module.keys_and_values(context, context_position) if precomputed else context
    actual = module(tokens, context=given, position=position, context_position=context_position)
    torch.testing.assert_close(actual, expected)
    assert not torch.allclose(module(tokens, context=context), expected)
