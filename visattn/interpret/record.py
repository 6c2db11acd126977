"""The weights of every attention module of a forward pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from visattn.attention import DeformableAttention
from visattn.attention.projected import ProjectedAttention
from visattn.backbones.nat import NeighborhoodBlock
from visattn.backbones.swin import SwinBlock

Observer = Callable[[str, Tensor, Tensor | None], None]


@contextmanager
def record_attention(
    model: nn.Module, full: bool = False, modules: Sequence[str] | None = None
) -> Iterator[dict[str, Tensor]]:
    """Keeps the attention weights of each forward within the block:

        with record_attention(model) as maps:
            model(images)
        maps["backbone.blocks.0.attention"]  # (batch, heads, queries, keys)

    The weights are computed explicitly meanwhile, and the outputs from them; they are what the softmax gives, before
    dropout, and part of the graph if gradients are on. Of a module called several times the last call is kept. Blocks
    may be nested: each sees all that happens within it.

    Queries and keys are the tokens of the map, also where windows work on a padded one: the weights of a query that
    sees padding then sum to less than 1 over its keys.

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
    maps: dict[str, Tensor] = {}

    def keep(name: str, weights: Tensor, keys: Tensor | None) -> None:
        maps.pop(name, None)
        maps[name] = spread(weights, keys) if full and keys is not None else weights

    with observe_attention(model, keep, modules):
        yield maps


@contextmanager
def observe_attention(model: nn.Module, observer: Observer, modules: Sequence[str] | None = None) -> Iterator[None]:
    """Calls `observer(name, weights, keys)` at each forward of an attention module within the block.

    Args:
        model, modules: as for `record_attention`.
        observer: gets weights (batch, heads, queries, n), and the token index of each key: (queries, n), -1 for
            padding, or None where each query sees all keys in order.

    Raises:
        ValueError: there is no attention to observe, or none of such a name.
    """
    recorded = ProjectedAttention | DeformableAttention
    found = {name: module for name, module in model.named_modules() if isinstance(module, recorded)}
    if not found:
        raise ValueError(f"{type(model).__name__} has no attention modules of visattn to record")
    unknown = sorted(set(modules or ()) - found.keys())
    if unknown:
        raise ValueError(f"no attention module is called {', '.join(unknown)}; there are {', '.join(found)}")
    chosen = {name: module for name, module in found.items() if modules is None or name in modules}
    padding = SwinBlock | NeighborhoodBlock
    padding_blocks = {block.attention: block for block in model.modules() if isinstance(block, padding)}
    before = {name: module.__dict__.get("record") for name, module in chosen.items()}
    grids: dict[nn.Module, tuple[int, int]] = {}
    hooks = [
        block.register_forward_pre_hook(lambda block, inputs: grids.__setitem__(block, inputs[1]))
        for block in padding_blocks.values()
    ]

    def recorder(name: str, module: nn.Module) -> Callable[[Tensor, Tensor | None], None]:
        def record(weights: Tensor, keys: Tensor | None) -> None:
            outer = before[name]
            if outer is not None:
                outer(weights, keys)
            block = padding_blocks.get(module)
            if block is not None and keys is not None:
                weights, keys = without_padding(block, grids[block], weights, keys)
            observer(name, weights, keys)

        return record

    try:
        for name, module in chosen.items():
            module.__dict__["record"] = recorder(name, module)
        yield
    finally:
        for hook in hooks:
            hook.remove()
        for name, module in chosen.items():
            if before[name] is None:
                module.__dict__.pop("record", None)
            else:
                module.__dict__["record"] = before[name]


def without_padding(
    block: SwinBlock | NeighborhoodBlock, grid: tuple[int, int], weights: Tensor, keys: Tensor
) -> tuple[Tensor, Tensor]:
    """Weights and keys of a padded map, in terms of the map: padding asks nothing, and as a key has the index -1."""
    if block.padded(grid) == grid:
        return weights, keys
    numbers = torch.arange(1, grid[0] * grid[1] + 1, device=keys.device).view(1, *grid, 1)
    place = block.pad(numbers).flatten() - 1  # (padded tokens,), which token of the map each is
    queries = place.argsort()[(place < 0).sum() :]
    keys = torch.where(keys < 0, -1, place[keys.clamp(min=0)])
    return weights[:, :, queries], keys[queries]


def spread(weights: Tensor, keys: Tensor) -> Tensor:
    """Weights (batch, heads, queries, n) for keys (queries, n) to (batch, heads, queries, queries)."""
    batch, heads, queries, _ = weights.shape
    dense = weights.new_zeros(batch, heads, queries, queries)
    present = torch.where(keys < 0, 0.0, weights)
    return dense.scatter_add(3, keys.clamp(min=0).expand(batch, heads, -1, -1), present)
