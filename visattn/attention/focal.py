"""Focal attention: a query sees what is near cell by cell, and what is farther away in ever larger squares."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from visattn.attention.dot_product import attention_weights, dot_product_attention
from visattn.attention.pooled import pool_cells
from visattn.attention.projected import ProjectedAttention, pair
from visattn.attention.self_attention import check_grid

Pair = tuple[int, int]
Levels = Sequence[tuple[int, int]]


class AxisView(NamedTuple):
    """What the windows along one axis see of a level.

    Attributes:
        squares: (windows, n), long: which square, -1 beyond the map.
        first: the place within the region that the first of the n has; places that no window sees are left out.
        crosses: whether some are beyond the map.
    """

    squares: Tensor
    first: int
    crosses: bool


def focal_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    window_size: int | Sequence[int] = 7,
    levels: Levels = ((1, 13), (7, 7)),
    scale: float | None = None,
    bias: Sequence[Tensor] | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """Every query sees, of each level, a region of squares around its window, all under one softmax.

    The keys and values of a level are the means of squares of reduction x reduction cells, which lie side by side from
    the upper left corner on; those at the lower and right border may have fewer cells. A region is region_size x
    region_size squares whose middle is that of the window, or half a square or less before it. The regions of the
    levels overlap, as published, and nothing sees what is beyond the map. With a window of 1 each query has regions of
    its own.

    Cost: tokens * head_dim * sum of region_size^2 over the levels.

    Args:
        query, key, value: (batch, height, width, heads, head_dim).
        window_size: side in cells of the windows whose queries share their regions, a number or (vertical,
            horizontal). They begin at the upper left corner; the last ones may reach beyond the map.
        levels: (reduction, region_size) of each, the finest first, which has reduction 1 and holds the window.
        scale: of the scores; None is 1 / sqrt(head_dim).
        bias: a table for each level, added to the scaled scores: for reduction 1 by the position of the key relative to
            the query, (heads, region_size + window_size[0] - 1, region_size + window_size[1] - 1), from the lowest such
            position to the highest; for others by the square's place in the region, (heads, region_size, region_size).
        dropout: probability that a weight is dropped.

    Returns:
        (batch, height, width, heads, head_dim).

    Raises:
        ValueError: the window exceeds the map, or the levels don't begin with a fine one that holds it.

    Source: Yang et al. 2021, https://arxiv.org/abs/2107.00641, section 3.2; squares there have learned weights, which
        begin as those of a mean.
    """
    grid = (query.shape[1], query.shape[2])
    window = check_focal(grid, window_size, levels)
    queries, keys, values, added = windows_and_regions(query, key, value, window, levels, bias)
    attended = dot_product_attention(queries, keys, values, bias=added, dropout=dropout, scale=scale)
    return from_windows(attended, grid, window)


def windows_and_regions(
    query: Tensor, key: Tensor, value: Tensor, window: Pair, levels: Levels, bias: Sequence[Tensor] | None
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """The queries of each window and what they see.

    Returns:
        queries (batch * windows, heads, cells of a window, head_dim), keys and values (batch * windows, heads, n,
        head_dim), and what is added to their scores: (batch * windows, 1 or heads, 1 or cells of a window, n), or None.
    """
    batch, height, width, heads, _ = query.shape
    grid = (height, width)
    views = [level_views(grid, window, level) for level in levels]
    keys: list[Tensor] = []
    values: list[Tensor] = []
    for (reduction, _), (down, right) in zip(levels, views, strict=True):
        rows, columns = down.squares.to(query.device), right.squares.to(query.device)
        for cells, regions in ((key, keys), (value, values)):
            if reduction > 1:
                squares = pool_cells(cells.flatten(3), reduction)  # (batch, squares, heads * head_dim)
                cells = squares.unflatten(1, (-(-height // reduction), -1)).unflatten(3, (heads, -1))
            regions.append(into_regions(cells, rows, columns))
    queries = into_windows(query, window)
    added = region_bias(views, levels, window, bias, query)
    if added is not None and added.shape[0] > 1:
        added = added.repeat(batch, 1, 1, 1)
    return queries, torch.cat(keys, dim=2), torch.cat(values, dim=2), added


def into_windows(cells: Tensor, window: Pair) -> Tensor:
    """(batch, height, width, heads, head_dim) -> (batch * windows, heads, cells of a window, head_dim)."""
    below, right = -cells.shape[1] % window[0], -cells.shape[2] % window[1]
    if below or right:
        cells = functional.pad(cells, (0, 0, 0, 0, 0, right, 0, below))
    cells = cells.unflatten(2, (-1, window[1])).unflatten(1, (-1, window[0]))
    return cells.permute(0, 1, 3, 5, 2, 4, 6).flatten(4, 5).flatten(0, 2)


def from_windows(windows: Tensor, grid: Pair, window: Pair) -> Tensor:
    """The inverse of `into_windows`, without what is beyond the map."""
    rows, columns = -(-grid[0] // window[0]), -(-grid[1] // window[1])
    cells = windows.unflatten(2, window).unflatten(0, (-1, rows, columns))
    cells = cells.permute(0, 1, 4, 2, 5, 3, 6).flatten(3, 4).flatten(1, 2)
    return cells[:, : grid[0], : grid[1]]


def level_views(grid: Pair, window: Pair, level: tuple[int, int]) -> tuple[AxisView, AxisView]:
    """What the windows along the height and the width see of a level."""
    down, right = (axis_view(side, high, *level) for side, high in zip(grid, window, strict=True))
    return down, right


def axis_view(side: int, window: int, reduction: int, region: int) -> AxisView:
    """Along one axis of `side` cells."""
    squares = -(-side // reduction)
    middles = range(window, 2 * side + window, 2 * window)  # of the windows, in half cells
    starts = [(middle - region * reduction) // (2 * reduction) for middle in middles]
    first, last = max(0, -starts[-1]), min(region, squares - starts[0])
    seen = torch.tensor(starts)[:, None] + torch.arange(first, last)  # (windows, n)
    crosses = starts[0] + first < 0 or starts[-1] + last > squares
    return AxisView(seen.masked_fill((seen < 0) | (seen >= squares), -1), first, crosses)


def into_regions(squares: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """(batch, height, width, heads, head_dim) and the rows and columns that windows see, each (windows along the axis,
    n), to (batch * windows, heads, squares of a region, head_dim); what is beyond the map is any other square."""
    regions = squares.index_select(1, rows.clamp(min=0).flatten()).unflatten(1, rows.shape)
    regions = regions.index_select(3, columns.clamp(min=0).flatten()).unflatten(3, columns.shape)
    return regions.permute(0, 1, 3, 5, 2, 4, 6).flatten(4, 5).flatten(0, 2)


def region_bias(
    views: Sequence[tuple[AxisView, AxisView]],
    levels: Levels,
    window: Pair,
    bias: Sequence[Tensor] | None,
    query: Tensor,
) -> Tensor | None:
    """What is added to the scores: (1 or windows, 1 or heads, 1 or cells of a window, n), or None."""
    device, dtype = query.device, query.dtype
    added = None
    if bias is not None:
        tables = [
            level_bias(table.to(dtype), view, window, fine=reduction == 1)
            for table, view, (reduction, _) in zip(bias, views, levels, strict=True)
        ]
        added = torch.cat(tables, dim=2)[None]  # (1, heads, cells of a window, n)
    if any(axis.crosses for view in views for axis in view):
        absent = torch.cat([absent_squares(*view) for view in views], dim=1).to(device)  # (windows, n)
        mask = torch.zeros(absent.shape, dtype=dtype, device=device).masked_fill(absent, float("-inf"))[:, None, None]
        added = mask if added is None else mask + added
    return added


def absent_squares(down: AxisView, right: AxisView) -> Tensor:
    """Where the square of a region is beyond the map: (windows, squares of a region), bool."""
    rows, columns = down.squares < 0, right.squares < 0
    return (rows[:, None, :, None] | columns[None, :, None, :]).flatten(2).flatten(0, 1)


def level_bias(table: Tensor, view: tuple[AxisView, AxisView], window: Pair, *, fine: bool) -> Tensor:
    """The values of a level's table that queries and squares have: (heads, cells of a window, squares of a region)."""
    places = [torch.arange(axis.squares.shape[1], device=table.device) + axis.first for axis in view]
    if not fine:
        values = table[:, places[0]][:, :, places[1]].flatten(1)[:, None]
        return values.expand(-1, window[0] * window[1], -1)
    rows, columns = (
        place - torch.arange(side, device=table.device)[:, None] + side - 1
        for place, side in zip(places, window, strict=True)
    )  # (high, rows of the region), (wide, columns of the region)
    return table[:, rows[:, None, :, None], columns[None, :, None, :]].flatten(3).flatten(1, 2)


def spread_over_cells(weights: Tensor, grid: Pair, window: Pair, levels: Levels) -> Tensor:
    """Weights of windows (batch * windows, heads, cells of a window, n) as (batch, heads, queries, keys) of the map.

    The weight of a square is spread evenly over its cells.
    """
    shares = []
    for level in levels:
        down, right = level_views(grid, window, level)
        width = -(-grid[1] // level[0])
        squares = down.squares[:, None, :, None] * width + right.squares[None, :, None, :]
        absent = absent_squares(down, right)
        squares = squares.flatten(2).flatten(0, 1).masked_fill(absent, 0)  # (windows, squares of a region)
        shares.append(square_shares(grid, level[0])[squares].masked_fill(absent[..., None], 0.0))
    share = torch.cat(shares, dim=1).to(weights)  # (windows, n, height * width)
    dense = weights.unflatten(0, (-1, share.shape[0])) @ share[:, None]  # (batch, windows, heads, cells, keys)
    return from_windows(dense.flatten(0, 1), grid, window).flatten(1, 2).transpose(1, 2)


def square_shares(grid: Pair, reduction: int) -> Tensor:
    """How much of a square's weight each cell has: (squares, height * width); each row sums to 1."""
    axes = []
    for side in grid:
        squares = torch.arange(-(-side // reduction))[:, None]
        member = (squares == torch.arange(side) // reduction).float()  # (squares along the axis, side)
        axes.append(member / member.sum(dim=1, keepdim=True))
    return torch.kron(axes[0], axes[1])


def check_focal(grid: Pair, window_size: int | Sequence[int], levels: Levels) -> Pair:
    """The window as a pair.

    Raises:
        ValueError: it exceeds the map, or the levels don't begin with a fine one that holds it.
    """
    window = pair(window_size, "window_size")
    for side, size in zip(grid, window, strict=True):
        if not 1 <= size <= side:
            raise ValueError(f"window_size {size} doesn't fit the {grid[0]}x{grid[1]} map; choose 1 to {side}")
    check_levels(window, levels)
    return window


def check_levels(window: Pair, levels: Levels) -> None:
    """Refuses levels of which some query might see nothing.

    Raises:
        ValueError: there are none, numbers are below 1, or the first is not fine or smaller than the window.
    """
    if not levels or any(len(level) != 2 or min(level) < 1 for level in levels):
        raise ValueError(f"levels {levels} must be pairs (reduction, region_size) of numbers from 1")
    if levels[0][0] != 1 or levels[0][1] < max(window):
        raise ValueError(
            f"the first of the levels {levels} must have reduction 1 and a region_size of at least {max(window)}, "
            "the side of the window"
        )


class FocalAttention(ProjectedAttention):
    """Self-attention of several heads to near cells and, farther away, to the means of squares.

    Along an axis where the map has fewer cells, the window is the map. What it records are the weights of cells and
    squares, those of a square spread evenly over its cells.

    Args:
        dim, num_heads, **options: see `ProjectedAttention`.
        window_size, levels: see `focal_attention`.
        relative_position_bias: learn a bias for each head, level and relative position.

    Raises:
        ValueError: the levels don't begin with a fine one that holds the window.

    Source: Yang et al. 2021, https://arxiv.org/abs/2107.00641, section 3.2; the default is the first stage of
        Focal-Tiny.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        window_size: int | Sequence[int] = 7,
        levels: Levels = ((1, 13), (7, 7)),
        relative_position_bias: bool = True,
        **options: Any,
    ) -> None:
        super().__init__(dim, num_heads, **options)
        self.window_size = pair(window_size, "window_size")
        self.levels = tuple((int(reduction), int(region)) for reduction, region in levels)
        check_levels(self.window_size, self.levels)
        self.relative_position_bias: nn.ParameterList | None = None
        if relative_position_bias:
            high, wide = self.window_size
            self.relative_position_bias = nn.ParameterList(
                torch.empty(num_heads, region + high - 1, region + wide - 1)
                if reduction == 1
                else torch.empty(num_heads, region, region)
                for reduction, region in self.levels
            )
            for table in self.relative_position_bias:
                nn.init.trunc_normal_(table, std=0.02)

    def forward(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        """Tokens (batch, height * width, dim) of the grid (height, width) in, tokens of the same shape out.

        Raises:
            ValueError: the number of tokens isn't height * width.
        """
        check_grid(tokens[:, None], grid, "focal")
        qkv = self.qkv(tokens).unflatten(2, (3, self.num_heads, self.head_dim)).unflatten(1, grid)
        query, key, value = qkv.unbind(3)  # (batch, height, width, heads, head_dim)
        query, key = self.normalize(query, key)
        window = (min(self.window_size[0], grid[0]), min(self.window_size[1], grid[1]))
        bias = self.bias_for(window)
        if self.record is None:
            attended = focal_attention(query, key, value, window, self.levels, bias=bias, dropout=self.active_dropout())
        else:
            queries, keys, values, added = windows_and_regions(query, key, value, window, self.levels, bias)
            weights = attention_weights(queries, keys, bias=added)
            self.record(spread_over_cells(weights, grid, window, self.levels), None)
            weights = functional.dropout(weights, self.active_dropout())
            attended = from_windows(weights @ values, grid, window)
        return self.project(attended.flatten(3).flatten(1, 2))

    def bias_for(self, window: Pair) -> list[Tensor] | None:
        """The tables for windows of this size, which are no larger than those that the tables are made for."""
        if self.relative_position_bias is None:
            return None
        tables = []
        for (reduction, region), table in zip(self.levels, self.relative_position_bias, strict=True):
            if reduction == 1:
                # The lowest relative position: that of the region's first cell to the window's last.
                top, left = (
                    ((side - region) // 2 - side) - ((made_for - region) // 2 - made_for)
                    for side, made_for in zip(window, self.window_size, strict=True)
                )
                table = table[:, top : top + region + window[0] - 1, left : left + region + window[1] - 1]
            tables.append(table)
        return tables
