import pytest
import torch

from visattn.attention import chunked_attention, dot_product_attention


def inputs(dtype=torch.float64, queries=13, keys=17):
    torch.manual_seed(0)
    return [torch.randn(2, 3, n, 5, dtype=dtype, requires_grad=True) for n in (queries, keys, keys)]


@pytest.mark.parametrize("chunks", [(1, 1), (4, 5), (13, 3), (64, 64)])
@pytest.mark.parametrize("masked", [False, True])
def test_chunks_change_neither_output_nor_gradients(chunks, masked):
    leaves = inputs()
    mask = torch.rand(2, 1, 13, 17) > 0.3 if masked else None
    outer = torch.randn(2, 3, 13, 5, dtype=torch.float64)
    expected = dot_product_attention(*leaves, mask, scale=0.7)
    output = chunked_attention(*leaves, mask, 0.7, query_chunk=chunks[0], key_chunk=chunks[1])
    torch.testing.assert_close(output, expected)
    gradients = torch.autograd.grad(output, leaves, outer)
    torch.testing.assert_close(gradients, torch.autograd.grad(expected, leaves, outer))


@pytest.mark.parametrize("shape", [(1, 1, 1, 17), (2, 1, 13, 1), (13, 17)])
def test_masks_broadcast(shape):
    leaves, mask = inputs(), torch.rand(shape) > 0.4
    expected = dot_product_attention(*leaves, mask.expand(2, 3, 13, 17))
    torch.testing.assert_close(chunked_attention(*leaves, mask, query_chunk=4, key_chunk=6), expected)


def test_causal_chunks_equal_the_causal_mask():
    leaves = inputs(queries=17)
    expected = dot_product_attention(*leaves, torch.ones(17, 17, dtype=torch.bool).tril())
    output = chunked_attention(*leaves, is_causal=True, query_chunk=4, key_chunk=3)
    torch.testing.assert_close(output, expected)
    outer = torch.randn_like(output)
    torch.testing.assert_close(torch.autograd.grad(output, leaves, outer), torch.autograd.grad(expected, leaves, outer))


def test_gradients_pass_gradcheck():
    mask = torch.rand(13, 17) > 0.3

    def run(query, key, value):
        return chunked_attention(query, key, value, mask, query_chunk=5, key_chunk=7)

    assert torch.autograd.gradcheck(run, inputs(), fast_mode=True)


def test_a_query_that_sees_nothing_gets_zeros_and_finite_gradients():
    leaves, mask = inputs(), torch.ones(13, 17, dtype=torch.bool)
    mask[3], mask[:, 8:] = False, False
    output = chunked_attention(*leaves, mask, query_chunk=4, key_chunk=4)
    assert (output[:, :, 3] == 0).all()
    gradients = torch.autograd.grad(output.square().sum(), leaves)
    assert all(gradient.isfinite().all() for gradient in gradients)
    assert (gradients[1][:, :, 8:] == 0).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_near(dtype):
    leaves = inputs(dtype)
    exact = [leaf.double().detach().requires_grad_() for leaf in leaves]
    output, expected = chunked_attention(*leaves, query_chunk=4, key_chunk=5), dot_product_attention(*exact)
    assert output.dtype == dtype
    torch.testing.assert_close(output.double(), expected, rtol=0, atol=0.03)
    gradients = torch.autograd.grad(output.sum(), leaves)
    for gradient, wanted in zip(gradients, torch.autograd.grad(expected.sum(), exact), strict=True):
        torch.testing.assert_close(gradient.double(), wanted, rtol=0, atol=0.06)


def test_large_scores_do_not_overflow():
    query, key, value = inputs(torch.float32)
    output = chunked_attention(query * 200, key * 200, value, key_chunk=4)
    torch.testing.assert_close(output, dot_product_attention(query * 200, key * 200, value))


def test_memory_does_not_grow_with_the_number_of_keys():
    from visattn.benchmark.measure import peak_memory

    query = torch.randn(1, 2, 32, 8)
    used = []
    for keys in (512, 4096):
        key, value = torch.randn(2, 1, 2, keys, 8)
        with torch.no_grad():
            used.append(peak_memory(lambda key=key, value=value: chunked_attention(query, key, value, key_chunk=128)))
    assert used[1] <= 1.1 * used[0]


def test_a_chunk_below_one_is_an_error():
    with pytest.raises(ValueError, match="at least 1"):
        chunked_attention(*inputs(), key_chunk=0)
