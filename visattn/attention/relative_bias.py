"""Relative attention: every cell of a map sees all others, and how far they are adds to the score."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torch.nn import functional

from visattn.attention.dot_product import attention_weights, dot_product_attention
from visattn.attention.local import LocalAttention, Pair, relative_bias
from visattn.attention.projected import pair


def relative_bias_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bias: Tensor | None = None,
    scale: float | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """Every query sees every key: softmax over j of scale * query_i key_j + bias[i - j]. Cost: tokens^2 * head_dim.

    Args:
        query, key, value: (batch, height, width, heads, head_dim).
        bias: (heads, 2 * height - 1, 2 * width - 1), added to the scaled scores by the position of the query relative
            to the key: the centre of the table is the key's own position.
        scale: of the scores; None is 1 / sqrt(head_dim).
        dropout: probability that a weight is dropped.

    Returns:
        (batch, height, width, heads, head_dim).

    Source: Dai et al. 2021 (CoAtNet, https://arxiv.org/abs/2106.04803), equation 3, "pre-normalization".
    """
    grid = (query.shape[1], query.shape[2])
    query, key, value = (into_sequence(cells) for cells in (query, key, value))
    added = None if bias is None else relative_bias(bias, grid)[None].to(query.dtype)  # (1, heads, N, N)
    attended = dot_product_attention(query, key, value, bias=added, dropout=dropout, scale=scale)
    return attended.transpose(1, 2).unflatten(1, grid)


def into_sequence(cells: Tensor) -> Tensor:
    """(batch, height, width, heads, head_dim) -> (batch, heads, height * width, head_dim)."""
    return cells.flatten(1, 2).transpose(1, 2)


class RelativeBiasAttention(LocalAttention):
    """Self-attention of several heads over a whole map, with a bias for each head and relative position.

    Maps smaller than the one it is made for take the centre of the bias table; for larger ones the table is enlarged
    bilinearly, as published.

    Args:
        dim, num_heads, **options: see `ProjectedAttention`.
        grid: (height, width) of the map that the bias table is made for.
        bias_hidden_dim: an MLP of as many hidden channels makes the biases of the distances, instead of a table.

    Source: Dai et al. 2021 (CoAtNet, https://arxiv.org/abs/2106.04803), section 2.1 and appendix A.1.
    """

    def __init__(self, dim: int, num_heads: int, *, grid: int | Sequence[int], **options: Any) -> None:
        extent = pair(grid, "grid")
        super().__init__(dim, num_heads, extent=extent, **{"relative_position_bias": True} | options)
        self.grid = extent

    def fit(self, grid: Pair) -> tuple[Pair, Pair]:
        """The map itself, and the map for which there is a table."""
        return grid, self.grid

    def bias_for(self, extent: Pair) -> Tensor | None:
        """The bias table for a map (height, width): (heads, 2 * height - 1, 2 * width - 1)."""
        known = (min(extent[0], self.grid[0]), min(extent[1], self.grid[1]))
        if self.continuous_bias is not None or extent == known:
            return super().bias_for(extent)
        table = super().bias_for(known)
        if table is None:
            return None
        size = (2 * extent[0] - 1, 2 * extent[1] - 1)
        return functional.interpolate(table[None], size, mode="bilinear", align_corners=False)[0]

    def attend(self, query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None) -> Tensor:
        return relative_bias_attention(query, key, value, bias, dropout=self.active_dropout())

    def look(self, query: Tensor, key: Tensor, bias: Tensor | None) -> tuple[Tensor, None]:
        added = None if bias is None else relative_bias(bias, (query.shape[1], query.shape[2]))[None]
        return attention_weights(into_sequence(query), into_sequence(key), bias=added), None
