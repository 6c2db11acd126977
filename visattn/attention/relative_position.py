"""Attention whose queries also ask how many rows and columns away a key is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from visattn.attention.dot_product import attention_weights, dot_product_attention
from visattn.attention.projected import ProjectedAttention
from visattn.attention.self_attention import check_grid


def relative_position_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    grid: Sequence[int],
    rows: Tensor,
    columns: Tensor,
    scale: float | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """Every query sees every key of a map, and what and where it is:

        softmax(scale * (query key^T + query rows[down]^T + query columns[right]^T)) value

    where a key lies `down` rows below and `right` columns to the right of the query. The positions' part of the scores
    has the rank height + width, so it is computed as further channels of queries and keys, and no (tokens, tokens)
    matrix of it is made. Cost: tokens^2 * (head_dim + height + width).

    Args:
        query, key: (batch, heads, height * width, head_dim), of the cells of a map row by row.
        value: (batch, heads, height * width, value_dim).
        grid: (height, width).
        rows: (2 * height - 1, head_dim), a vector for each distance from -(height - 1) to height - 1; shared by heads.
        columns: (2 * width - 1, head_dim), likewise from left to right.
        scale: of all scores; None is 1 / sqrt(head_dim).
        dropout: probability that a weight is dropped.

    Returns:
        (batch, heads, height * width, value_dim).

    Raises:
        ValueError: the tokens or the tables don't fit the grid.

    Source: Bello et al. 2019 (https://arxiv.org/abs/1904.09925), equations 3 and 4; Srinivas et al. 2021 (BoTNet,
        https://arxiv.org/abs/2101.11605), figure 4.
    """
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    query, key = with_positions(query, key, grid, rows, columns)
    if query.device.type == "cpu" and torch.is_grad_enabled():
        # Wide queries and narrow values make the backward of the CPU's fused kernel slower than two matrix products.
        return functional.dropout(attention_weights(query, key, scale=scale), dropout) @ value
    # The fused kernels want queries, keys and values of the same width; zeros change nothing.
    width = max(query.shape[-1], value.shape[-1])
    query, key, padded = (functional.pad(tensor, (0, width - tensor.shape[-1])) for tensor in (query, key, value))
    return dot_product_attention(query, key, padded, dropout=dropout, scale=scale)[..., : value.shape[-1]]


def relative_position_attention_weights(
    query: Tensor,
    key: Tensor,
    grid: Sequence[int],
    rows: Tensor,
    columns: Tensor,
    scale: float | None = None,
) -> Tensor:
    """The weights of `relative_position_attention`: (batch, heads, height * width, height * width)."""
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    return attention_weights(*with_positions(query, key, grid, rows, columns), scale=scale)


def with_positions(
    query: Tensor, key: Tensor, grid: Sequence[int], rows: Tensor, columns: Tensor
) -> tuple[Tensor, Tensor]:
    """Queries and keys with height + width channels more, whose products are those of queries and positions.

    A query gets its product with each row's and each column's vector, a key marks its own row and column.

    Returns:
        Two tensors (batch, heads, height * width, head_dim + height + width).
    """
    height, width = grid
    check_grid(query, (height, width), "relative position")
    for name, table, side in (("rows", rows, height), ("columns", columns, width)):
        if table.shape != (2 * side - 1, query.shape[-1]):
            raise ValueError(
                f"{name} {tuple(table.shape)} don't fit a {height}x{width} map and queries of {query.shape[-1]} "
                f"channels; they should be {(2 * side - 1, query.shape[-1])}"
            )
    cells = query.unflatten(2, (height, width))  # (batch, heads, height, width, head_dim)
    down = torch.einsum("bhyxd,yvd->bhyxv", cells, by_pair(rows, height).to(query.dtype))
    right = torch.einsum("bhyxd,xud->bhyxu", cells, by_pair(columns, width).to(query.dtype))
    query = torch.cat([query, down.flatten(2, 3), right.flatten(2, 3)], dim=-1)
    own_row = torch.eye(height, dtype=key.dtype, device=key.device)[:, None].expand(-1, width, -1)
    own_column = torch.eye(width, dtype=key.dtype, device=key.device).expand(height, -1, -1)
    place = torch.cat([own_row, own_column], dim=-1).flatten(0, 1)  # (height * width, height + width)
    return query, torch.cat([key, place.expand(*key.shape[:2], -1, -1)], dim=-1)


def by_pair(table: Tensor, side: int) -> Tensor:
    """Vectors by distance (2 * side - 1, head_dim) to those of each query's and key's place: (side, side, head_dim)."""
    places = torch.arange(side, device=table.device)
    return table[places - places[:, None] + side - 1]


def resample_distances(table: Tensor, side: int) -> Tensor:
    """Fits vectors by distance (2 * before - 1, head_dim) to a map of another side: (2 * side - 1, head_dim).

    A distance keeps its vector as a fraction of the side, so that an enlarged picture is seen as it was; between
    distances vectors are interpolated linearly, beyond the farthest one they are repeated.
    """
    before = (table.shape[0] + 1) // 2
    if before == side:
        return table
    places = torch.arange(1 - side, side, device=table.device) * before + (before - 1) * side  # in parts of 1 / side
    places = places.clamp(0, (table.shape[0] - 1) * side)  # (2 * side - 1,)
    lower = places // side
    upper = (lower + 1).clamp(max=table.shape[0] - 1)
    return torch.lerp(table[lower], table[upper], (places % side)[:, None].to(table.dtype) / side)


class RelativePositionAttention(ProjectedAttention):
    """Self-attention of several heads among the cells of a map, by what they hold and how they lie to each other.

    On maps of another size than `grid` the vectors are interpolated between distances, see `resample_distances`.

    Args:
        dim, num_heads, **options: see `ProjectedAttention`.
        grid: (height, width) of the map that the vectors are made for.
        value_dim: channels of a head's values; None is head_dim.
        out_dim: channels of the output; None is dim.
        has_projection: whether a linear layer follows the heads; without one, as in BoTNet, the output are the heads
            side by side, of num_heads * value_dim channels.

    Raises:
        ValueError: out_dim is given without a projection.

    Source: Bello et al. 2019, https://arxiv.org/abs/1904.09925, section 3.1; Srinivas et al. 2021,
        https://arxiv.org/abs/2101.11605, figure 4.
    """

    projection: Any  # nn.Linear, or nn.Identity

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        grid: Sequence[int],
        value_dim: int | None = None,
        out_dim: int | None = None,
        has_projection: bool = True,
        **options: Any,
    ) -> None:
        super().__init__(dim, num_heads, **options)
        if out_dim is not None and not has_projection:
            raise ValueError(f"out_dim {out_dim} needs a projection; without one the output are the heads' values")
        self.value_dim = value_dim or self.head_dim
        width = num_heads * self.value_dim
        if self.value_dim != self.head_dim:
            self.qkv = nn.Linear(dim, 2 * num_heads * self.head_dim + width, bias=self.qkv.bias is not None)
        if not has_projection:
            self.projection = nn.Identity()
        elif (width, out_dim or dim) != (self.projection.in_features, self.projection.out_features):
            self.projection = nn.Linear(width, out_dim or dim, bias=self.projection.bias is not None)
        self.row_positions = nn.Parameter(torch.randn(2 * grid[0] - 1, self.head_dim) * self.head_dim**-0.5)
        self.column_positions = nn.Parameter(torch.randn(2 * grid[1] - 1, self.head_dim) * self.head_dim**-0.5)

    def forward(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        """Tokens (batch, height * width, dim) of the grid (height, width) in, (batch, height * width, out_dim) out.

        Raises:
            ValueError: the number of tokens isn't height * width.
        """
        width = self.num_heads * self.head_dim
        joint = self.qkv(tokens).split([width, width, self.num_heads * self.value_dim], dim=2)
        sizes = (self.head_dim, self.head_dim, self.value_dim)
        query, key, value = (
            part.unflatten(2, (self.num_heads, size)).transpose(1, 2) for part, size in zip(joint, sizes, strict=True)
        )  # (batch, heads, N, head_dim or value_dim)
        query, key = self.normalize(query, key)
        rows = resample_distances(self.row_positions, grid[0])
        columns = resample_distances(self.column_positions, grid[1])
        if self.record is None:
            attended = relative_position_attention(
                query, key, value, grid, rows, columns, dropout=self.active_dropout()
            )  # (batch, heads, N, value_dim)
        else:
            weights = relative_position_attention_weights(query, key, grid, rows, columns)
            self.record(weights, None)
            attended = functional.dropout(weights, self.active_dropout()) @ value
        return self.project(attended.transpose(1, 2).flatten(2))
