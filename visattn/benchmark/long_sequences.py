"""Kinds of attention on many tokens: time, memory, and how far each is from softmax attention."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import torch
import typer
from torch import Tensor

from visattn.attention import (
    axial_attention,
    chunked_attention,
    dot_product_attention,
    focal_attention,
    grid_attention,
    linear_attention,
    linformer_attention,
    neighborhood_attention,
    nystrom_attention,
    orthogonal_projection,
    performer_attention,
    pooled_attention,
    relative_position_attention,
    window_attention,
)
from visattn.attention.map_graph import adjacent_cells, map_graph_attention
from visattn.benchmark.attention import as_map, sequence, with_gradients
from visattn.benchmark.measure import peak_memory, print_environment, time_alternatives

Attention = Callable[[Tensor, Tensor, Tensor], Tensor]  # of (batch, heads, tokens, head_dim)


def main(
    side: Annotated[list[int] | None, typer.Option(help="Side of the map; give it again for more.")] = None,
    heads: Annotated[int, typer.Option(help="Attention heads.")] = 4,
    head_dim: Annotated[int, typer.Option(help="Channels of a head.")] = 32,
    features: Annotated[int, typer.Option(help="Random features, mixtures or landmarks.")] = 128,
    quadratic: Annotated[int, typer.Option(help="Most tokens for which all pairs are computed.")] = 16_384,
    seconds: Annotated[float, typer.Option(help="Time for each map, at least.")] = 3.0,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
) -> None:
    """Times forward and backward in turns; "error" is the distance from softmax attention relative to its length, for
    those that approximate it, on queries and keys of a random network."""
    print_environment()
    print(
        f"{heads} heads of {head_dim}; {features} features, mixtures or landmarks; memory beyond query, key and value"
    )
    for length in side or [32, 64, 128, 256]:
        torch.manual_seed(0)
        query, key, value = (torch.randn(1, heads, length**2, head_dim, device=device) for _ in range(3))
        kinds = alternatives(length, heads, head_dim, min(features, length**2), device)
        if length**2 > quadratic:
            kinds = {name: kind for name, kind in kinds.items() if name not in ("softmax", "chunked", "relative")}
        both = {name: with_gradients(kind, (query, key, value)) for name, kind in kinds.items()}
        times = time_alternatives(both, seconds=seconds, warmup=1, turns=2)
        size = 3 * query.numel() * query.element_size()
        with torch.no_grad():
            exact = kinds["softmax"](query, key, value) if "softmax" in kinds else None
        print(f"\n{length}x{length} map, {length**2:,} tokens")
        print(f"  {'':<14}{'both ms':>10}{'us a token':>12}{'memory':>8}{'error':>8}")
        for name, kind in kinds.items():
            memory = peak_memory(both[name]) / size
            line = f"  {name:<14}{times[name] * 1e3:>10.1f}{times[name] / length**2 * 1e6:>12.2f}{memory:>8.1f}"
            if exact is not None and name in ("chunked", "performer", "nystrom"):
                with torch.no_grad():
                    error = (kind(query, key, value) - exact).norm() / exact.norm()
                line += f"{error:>8.3f}"
            print(line, flush=True)


def alternatives(side: int, heads: int, head_dim: int, features: int, device: str) -> dict[str, Attention]:
    """Functions of sequences (1, heads, side**2, head_dim) by their names."""
    projection = orthogonal_projection(features, head_dim).to(device)
    mixture = torch.randn(features, side**2, device=device) / side
    score, distances = torch.randn(heads, head_dim, device=device), torch.randn(2 * side - 1, head_dim, device=device)
    around = adjacent_cells((side, side), torch.device(device))

    def on_map(kind: Attention) -> Attention:
        def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            return sequence(kind(as_map(query, side), as_map(key, side), as_map(value, side)))

        return attend

    def graph(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        query, key, value = (tensor.transpose(1, 2) for tensor in (query, key, value))
        return map_graph_attention(query, key, value, score, around).transpose(1, 2)

    return {
        "softmax": dot_product_attention,
        "chunked": chunked_attention,
        "relative": lambda q, k, v: relative_position_attention(q, k, v, (side, side), distances, distances),
        "neighborhood": on_map(lambda q, k, v: neighborhood_attention(q, k, v, 7)),
        "window, 8x8": on_map(lambda q, k, v: window_attention(q, k, v, 8)),
        "grid, 8x8": on_map(lambda q, k, v: grid_attention(q, k, v, 8)),
        "focal": on_map(lambda q, k, v: focal_attention(q, k, v)),
        "graph, 3x3": graph,
        "axial": on_map(lambda q, k, v: axial_attention(axial_attention(q, k, v, "width"), k, v, "height")),
        "pooled, 8x8": on_map(lambda q, k, v: pooled_attention(q, k, v, 8)),
        "linear": linear_attention,
        "performer": lambda q, k, v: performer_attention(q, k, v, projection),
        "linformer": lambda q, k, v: linformer_attention(q, k, v, mixture, mixture),
        "nystrom": lambda q, k, v: nystrom_attention(q, k, v, features),
    }
