"""Mask-unit attention: the map is cut into units, in each of which fewer queries than keys may be kept."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from visattn.attention.dot_product import attention_weights, dot_product_attention
from visattn.attention.pooled import pool_cells
from visattn.attention.projected import ProjectedAttention, pair
from visattn.attention.window import from_windows, into_windows

Pair = tuple[int, int]


def mask_unit_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    unit_size: int | Sequence[int] | None,
    query_stride: int = 1,
    scale: float | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """Pooled queries see the keys of their unit: softmax(scale * max(query) key^T) value, within each unit.

    A query is the maximum, channel by channel, of a square of query_stride x query_stride cells, so that attention
    itself makes the map coarser. Units that don't divide the map are smaller at its lower and right border, and so are
    squares. Cost: tokens / query_stride^2 * unit_size^2 * head_dim.

    Args:
        query, key, value: (batch, height, width, heads, head_dim).
        unit_size: side of a unit in cells, a number or (vertical, horizontal), a multiple of query_stride; None is one
            unit as large as the map.
        query_stride: side of the squares.
        scale: of the scores; None is 1 / sqrt(head_dim).
        dropout: probability that a weight is dropped.

    Returns:
        (batch, ceil(height / query_stride), ceil(width / query_stride), heads, head_dim).

    Raises:
        ValueError: query_stride is below 1 or doesn't divide unit_size.

    Source: Ryali et al. 2023 (Hiera, https://arxiv.org/abs/2306.00989), section 3; pooled queries are those of MViT
        (Fan et al. 2021, https://arxiv.org/abs/2104.11227), section 3.1.
    """
    grid = (key.shape[1], key.shape[2])
    unit, query_unit = check_units(grid, unit_size, query_stride)
    pooled = pool_queries(query, query_stride)
    mask = unit_mask(grid, unit, key)
    queries = into_units(pooled, query_unit)  # (batch * units, heads, queries of a unit, head_dim)
    keys, values = into_units(key, unit), into_units(value, unit)
    attended = dot_product_attention(queries, keys, values, mask, dropout=dropout, scale=scale)
    return from_units(attended, (pooled.shape[1], pooled.shape[2]), query_unit)


def mask_unit_attention_weights(
    query: Tensor,
    key: Tensor,
    unit_size: int | Sequence[int] | None,
    query_stride: int = 1,
    scale: float | None = None,
) -> Tensor:
    """The weights of `mask_unit_attention`: (batch, heads, pooled queries row by row, keys of a unit).

    The i-th weight of a query belongs to its i-th key of `mask_unit_keys`. Arguments as there.
    """
    grid = (key.shape[1], key.shape[2])
    unit, query_unit = check_units(grid, unit_size, query_stride)
    pooled = pool_queries(query, query_stride)
    queries, keys = into_units(pooled, query_unit), into_units(key, unit)
    weights = attention_weights(queries, keys, unit_mask(grid, unit, key), scale=scale)  # (batch * units, heads, q, k)
    weights = from_units(weights, (pooled.shape[1], pooled.shape[2]), query_unit)  # (batch, rows, columns, heads, k)
    return weights.flatten(1, 2).transpose(1, 2)


def mask_unit_keys(height: int, width: int, unit_size: int | Sequence[int] | None, query_stride: int = 1) -> Tensor:
    """The token index (row * width + column) of every key that a pooled query sees, row by row; -1 beyond the map.

    Returns:
        (ceil(height / query_stride) * ceil(width / query_stride), keys of a unit), long.

    Raises:
        ValueError: query_stride is below 1 or doesn't divide unit_size.
    """
    unit, _ = check_units((height, width), unit_size, query_stride)
    rows, columns = (axis_keys(side, step, query_stride) for side, step in zip((height, width), unit, strict=True))
    rows, columns = rows[:, None, :, None], columns[None, :, None, :]
    keys = torch.where((rows < 0) | (columns < 0), -1, rows * width + columns)  # (rows, columns, high, wide)
    return keys.flatten(2).flatten(0, 1)


def axis_keys(length: int, unit: int, query_stride: int) -> Tensor:
    """Along one axis, the positions in the unit of each query, -1 beyond the map: (queries, unit), long."""
    start = torch.arange(0, length, query_stride) // unit * unit
    keys = start[:, None] + torch.arange(unit)
    return keys.masked_fill(keys >= length, -1)


def check_units(grid: Pair, unit_size: int | Sequence[int] | None, query_stride: int) -> tuple[Pair, Pair]:
    """(height, width) of a unit on this map, in keys and in queries.

    Raises:
        ValueError: query_stride is below 1 or doesn't divide unit_size.
    """
    if query_stride < 1:
        raise ValueError(f"query_stride {query_stride} must be at least 1")
    wanted = grid if unit_size is None else pair(unit_size, "unit_size")
    if unit_size is not None and (min(wanted) < 1 or wanted[0] % query_stride or wanted[1] % query_stride):
        raise ValueError(f"unit_size {unit_size} is no multiple of query_stride {query_stride}")
    high, wide = (min(unit, side) for unit, side in zip(wanted, grid, strict=True))
    return (high, wide), (-(-high // query_stride), -(-wide // query_stride))


def pool_queries(query: Tensor, stride: int) -> Tensor:
    """(batch, height, width, heads, head_dim) to the maxima of squares, smaller ones at the lower and right border."""
    if stride == 1:
        return query
    cells = query.flatten(3).permute(0, 3, 1, 2)  # (batch, channels, height, width)
    pooled = functional.max_pool2d(cells, stride, ceil_mode=True).permute(0, 2, 3, 1)
    return pooled.unflatten(3, query.shape[3:])


def into_units(cells: Tensor, unit: Pair) -> Tensor:
    """(batch, height, width, heads, channels) -> (batch * units, heads, cells of a unit, channels)."""
    return into_windows(cells.flatten(3), unit, (0, 0)).unflatten(2, cells.shape[3:]).transpose(1, 2)


def from_units(units: Tensor, grid: Pair, unit: Pair) -> Tensor:
    """(batch * units, heads, cells of a unit, channels) -> (batch, height, width, heads, channels)."""
    cells = from_windows(units.transpose(1, 2).flatten(2), grid, unit, (0, 0))
    return cells.unflatten(3, (units.shape[1], units.shape[3]))


def unit_mask(grid: Pair, unit: Pair, key: Tensor) -> Tensor | None:
    """True for keys that exist: (batch * units, 1, 1, keys of a unit); None where units divide the map."""
    if not (grid[0] % unit[0] or grid[1] % unit[1]):
        return None
    exists = into_units(torch.ones(1, *grid, 1, 1, device=key.device), unit) > 0  # (units, 1, keys of a unit, 1)
    return exists.transpose(2, 3).repeat(key.shape[0], 1, 1, 1)


class MaskUnitAttention(ProjectedAttention):
    """Self-attention of several heads within units, as in Hiera: it may make the map coarser and tokens wider.

    What it records has a row for each token: that of the query which the token is pooled into.

    Args:
        dim, num_heads, **options: see `ProjectedAttention`.
        unit_size: side of a unit in tokens, a number or (vertical, horizontal), a multiple of query_stride; None is
            global attention.
        query_stride: side of the squares of tokens that become one.
        out_dim: channels of the tokens that come out; None is dim.

    Raises:
        ValueError: num_heads doesn't divide out_dim and no head_dim is given, or query_stride doesn't divide unit_size.

    Source: Ryali et al. 2023, https://arxiv.org/abs/2306.00989, section 3.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        unit_size: int | Sequence[int] | None = 8,
        query_stride: int = 1,
        out_dim: int | None = None,
        head_dim: int | None = None,
        **options: Any,
    ) -> None:
        wide = out_dim or dim
        if head_dim is None and wide % num_heads:
            raise ValueError(f"{num_heads} heads don't divide {wide} channels; choose a divisor or set head_dim")
        super().__init__(dim, num_heads, head_dim=head_dim or wide // num_heads, **options)
        self.unit_size = None if unit_size is None else pair(unit_size, "unit_size")
        self.query_stride = query_stride
        check_units((1, 1), self.unit_size, query_stride)
        if wide != dim:
            self.projection = nn.Linear(self.projection.in_features, wide, self.projection.bias is not None)

    def pooled_grid(self, grid: Pair) -> Pair:
        """(height, width) of what comes out for tokens of a grid (height, width)."""
        return -(-grid[0] // self.query_stride), -(-grid[1] // self.query_stride)

    def forward(self, tokens: Tensor, grid: Pair) -> Tensor:
        """Tokens (batch, height * width, dim) of the grid (height, width) to those of the pooled grid, out_dim wide.

        Raises:
            ValueError: the number of tokens isn't height * width.
        """
        if tokens.shape[1] != grid[0] * grid[1]:
            raise ValueError(
                f"{tokens.shape[1]} tokens don't fill a {grid[0]}x{grid[1]} map; mask-unit attention takes "
                "height * width tokens without prefix tokens"
            )
        qkv = self.qkv(tokens).unflatten(2, (3, self.num_heads, self.head_dim)).unflatten(1, grid)
        query, key, value = qkv.unbind(3)  # (batch, height, width, heads, head_dim)
        query, key = self.normalize(query, key)
        if self.record is None:
            attended = mask_unit_attention(
                query, key, value, self.unit_size, self.query_stride, dropout=self.active_dropout()
            )
            return self.project(attended.flatten(3).flatten(1, 2))
        return self.project(self.attend_recorded(query, key, value))

    def attend_recorded(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Maps to (batch, pooled tokens, heads * head_dim), by the weights that are recorded.

        Each token of the map attends by itself with the weights of its query, and then those of a query, which are
        equal, are averaged: so the gradient of what is recorded is that of the output.
        """
        grid = (key.shape[1], key.shape[2])
        unit, _ = check_units(grid, self.unit_size, self.query_stride)
        rows, columns = (torch.arange(side, device=key.device) // self.query_stride for side in grid)
        owner = (rows[:, None] * self.pooled_grid(grid)[1] + columns).flatten()  # (tokens,), which query each is in
        weights = mask_unit_attention_weights(query, key, self.unit_size, self.query_stride)[:, :, owner]
        keys = mask_unit_keys(*grid, self.unit_size, self.query_stride).to(key.device)[owner]
        self.record(weights, None if unit == grid else keys)  # (batch, heads, tokens, n)
        weights = functional.dropout(weights, self.active_dropout())
        shares = into_units(weights.transpose(1, 2).unflatten(1, grid), unit)  # (batch * units, heads, n, n)
        attended = from_units(shares @ into_units(value, unit), grid, unit)  # (batch, height, width, heads, head_dim)
        return pool_cells(attended.flatten(3), self.query_stride)
