"""How a map is cut into tiles of queries, and which rectangle of keys each tile sees: geometry, no attention yet."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor


class Axis(NamedTuple):
    """One axis cut into tiles. The last tile may reach beyond the map; there it repeats the last query.

    Attributes:
        kernel_size: keys that a query sees.
        size: queries of a tile.
        span: keys of a tile.
        starts: the first key of each tile.
        kinds: for each tile, which entry of the following describes it; only those at the borders differ.
        queries: where the queries are, counted from the first key of the tile: `size` numbers.
        windows: where the first key is that each query sees, counted likewise.
    """

    kernel_size: int
    size: int
    span: int
    starts: tuple[int, ...]
    kinds: tuple[int, ...]
    queries: tuple[tuple[int, ...], ...]
    windows: tuple[tuple[int, ...], ...]

    def seen(self, device: torch.device) -> Tensor:
        """Whether a query sees a key: bool (kinds, size, span)."""
        keys = torch.arange(self.span, device=device)
        windows = torch.tensor(self.windows, device=device)[:, :, None]
        return (keys >= windows) & (keys < windows + self.kernel_size)

    def table_places(self, like: Tensor) -> Tensor:
        """1 where a query and key read the bias table, of dtype as like: (kinds, size, span, 2 * kernel_size - 1)."""
        keys = torch.arange(self.span, device=like.device)
        queries = torch.tensor(self.queries, device=like.device)[:, :, None]
        place = keys - queries + self.kernel_size - 1  # (kinds, size, span); beyond the table for pairs not seen
        return (place[..., None] == torch.arange(2 * self.kernel_size - 1, device=like.device)).to(like.dtype)


def cut_axis(length: int, kernel_size: int, size: int) -> Axis:
    """Cuts `length` positions into tiles of `size` queries."""
    span = min(length, size + kernel_size - 1)
    starts, kinds = [], []
    known: dict[tuple[tuple[int, ...], tuple[int, ...]], int] = {}
    for first in range(0, length, size):
        start = min(max(first - kernel_size // 2, 0), length - span)
        places = [min(place, length - 1) for place in range(first, first + size)]
        windows = tuple(min(max(place - kernel_size // 2, 0), length - kernel_size) - start for place in places)
        queries = tuple(place - start for place in places)
        starts.append(start)
        kinds.append(known.setdefault((queries, windows), len(known)))
    described = (tuple(queries for queries, _ in known), tuple(windows for _, windows in known))
    return Axis(kernel_size, size, span, tuple(starts), tuple(kinds), *described)


class Tiling(NamedTuple):
    """The tiles of a map. Those in one column share a strip of keys, as high as the map."""

    rows: Axis
    columns: Axis

    @property
    def queries(self) -> int:
        """Queries of a tile."""
        return self.rows.size * self.columns.size

    @property
    def keys(self) -> int:
        """Keys of a tile."""
        return self.rows.span * self.columns.span

    @property
    def scores(self) -> int:
        """Scores of one head on one image."""
        return len(self.rows.starts) * len(self.columns.starts) * self.queries * self.keys

    def window(self, row: int) -> slice:
        """Where a strip has the keys of the tile in this row."""
        start = self.rows.starts[row]
        return slice(start * self.columns.span, (start + self.rows.span) * self.columns.span)


def tiling_of(query: Tensor, kernel_size: Sequence[int]) -> Tiling:
    """The tiling for queries (batch, height, width, heads, head_dim)."""
    batch, height, width, heads, _ = query.shape
    return choose_tiling(
        int(height), int(width), *kernel_size, heads, bool(batch < 8), query.device.type, query.element_size()
    )


@lru_cache(maxsize=256)
def choose_tiling(
    height: int, width: int, kernel_high: int, kernel_wide: int, heads: int, few: bool, device: str, bytes_each: int
) -> Tiling:
    """The tiling of least cost, by a model fitted to measurements on a CPU with AVX-512 and AMX.

    A tile of m queries and n keys costs (m + unfilled) * n, as small matrices don't fill the vector units. A row of
    tiles costs a fixed time more, which counts on small maps of few images and on GPUs; a copied key as much as 30.
    """
    unfilled = 24 if bytes_each > 2 else 48
    images = 1 if few else 16
    fixed = 13_000 if device == "cpu" else 10_000_000
    costs = {}
    for high in tile_sizes(height):
        for wide in tile_sizes(width):
            rows, columns = -(-height // high), -(-width // wide)
            keys = min(height, high + kernel_high - 1) * min(width, wide + kernel_wide - 1)
            copied = 30 * columns * min(width, wide + kernel_wide - 1) * height  # strips
            products = rows * columns * (high * wide + unfilled) * keys
            costs[high, wide] = rows * fixed + images * heads * (products + copied)
    high, wide = min(costs, key=lambda size: costs[size])
    return Tiling(cut_axis(height, kernel_high, high), cut_axis(width, kernel_wide, wide))


@lru_cache(maxsize=256)
def whole_map(height: int, width: int, kernel_size: tuple[int, int]) -> Tiling:
    """A single tile."""
    return Tiling(cut_axis(height, kernel_size[0], height), cut_axis(width, kernel_size[1], width))


def tile_sizes(length: int) -> set[int]:
    """The sides of tiles that leave little beyond the map."""
    return {-(-length // count) for count in range(1, length + 1)}
