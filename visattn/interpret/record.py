"""The weights of every attention module of a forward pass."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from visattn.attention.projected import ProjectedAttention


@contextmanager
def record_attention(
    model: nn.Module, full: bool = False, modules: Sequence[str] | None = None
) -> Iterator[dict[str, Tensor]]:
    """Keeps the attention weights of each forward within the block:

        with record_attention(model) as maps:
            model(images)
        maps["backbone.blocks.0.attention"]  # (batch, heads, queries, keys)

    The weights are computed explicitly meanwhile, and the outputs from them; they are what the softmax gives, before
    dropout, and part of the graph if gradients are on. Of a module called several times the last call is kept.

    Args:
        model: any module with attention modules of visattn within.
        full: spread local kinds over all keys, with zeros where a query doesn't look; otherwise local kinds have as
            many keys as a neighborhood or window.
        modules: names of the modules to record, a part of those in `model.named_modules()`; None records all.

    Yields:
        Name to weights (batch, heads, queries, keys), in the order of the calls; empty before the first forward.

    Raises:
        ValueError: there is no attention to record, or none of such a name.
    """
    found = {name: module for name, module in model.named_modules() if isinstance(module, ProjectedAttention)}
    if not found:
        raise ValueError(f"{type(model).__name__} has no attention modules of visattn to record")
    unknown = sorted(set(modules or ()) - found.keys())
    if unknown:
        raise ValueError(f"no attention module is called {', '.join(unknown)}; there are {', '.join(found)}")
    maps: dict[str, Tensor] = {}
    chosen = {name: module for name, module in found.items() if modules is None or name in modules}
    before = {name: module.__dict__.get("record") for name, module in chosen.items()}

    def recorder(name: str):
        def record(weights: Tensor, keys: Tensor | None) -> None:
            maps.pop(name, None)
            maps[name] = spread(weights, keys) if full and keys is not None else weights

        return record

    try:
        for name, module in chosen.items():
            module.__dict__["record"] = recorder(name)
        yield maps
    finally:
        for name, module in chosen.items():
            if before[name] is None:
                module.__dict__.pop("record", None)
            else:
                module.__dict__["record"] = before[name]


def spread(weights: Tensor, keys: Tensor) -> Tensor:
    """Weights (batch, heads, queries, n) for keys (queries, n) to (batch, heads, queries, queries)."""
    batch, heads, queries, _ = weights.shape
    dense = weights.new_zeros(batch, heads, queries, queries)
    present = torch.where(keys < 0, 0.0, weights)
    return dense.scatter_add(3, keys.clamp(min=0).expand(batch, heads, -1, -1), present)
