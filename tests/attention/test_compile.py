"""torch.compile takes every module whole, and computes the same. One compilation a kind: they are slow."""

import pytest
import torch

from visattn.attention import (
    FocalAttention,
    MapGraphAttention,
    MultiHeadAttention,
    NeighborhoodAttention,
    WindowAttention,
)

modules = {
    "global": lambda: MultiHeadAttention(12, 3, qk_norm=True),
    "neighborhood": lambda: NeighborhoodAttention(12, 3, kernel_size=5),
    "neighborhood, dilated": lambda: NeighborhoodAttention(12, 3, kernel_size=3, dilation=2),
    "focal": lambda: FocalAttention(12, 3, window_size=3, levels=((1, 5), (2, 3))),
    "graph": lambda: MapGraphAttention(12, 3, neighbors=5),
    "windows": lambda: WindowAttention(12, 3, window_size=(3, 4), shift=(1, 2)),
}


@pytest.mark.parametrize("name", modules)
def test_compiled_modules_equal_eager_ones_in_output_and_gradients(name):
    torch.manual_seed(0)
    module, tokens = modules[name](), torch.randn(2, 77, 12, requires_grad=True)
    leaves = [tokens, *module.parameters()]
    expected = module(tokens, (7, 11))
    torch.compiler.reset()
    output = torch.compile(module, fullgraph=True, backend="aot_eager")(tokens, (7, 11))
    torch.testing.assert_close(output, expected)
    weight = torch.randn_like(output)
    torch.testing.assert_close(
        torch.autograd.grad(output, leaves, weight), torch.autograd.grad(expected, leaves, weight), rtol=1e-4, atol=1e-5
    )
