"""Grid attention: a token sees others at regular distances over the whole map."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from visattn.attention.local import LocalAttention, relative_bias
from visattn.attention.projected import pair
from visattn.attention.window import attend_within


def grid_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    grid_size: int | Sequence[int],
    scale: float | None = None,
    bias: Tensor | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """Every query sees grid_size[0] * grid_size[1] keys spread over the map. Cost: tokens * keys seen * head_dim.

    The map is cut into grid_size[0] by grid_size[1] rectangles of equal size; a query sees the cells at its own place
    within each of them. A map that the rectangles don't divide is padded below and at the right; nothing sees the
    padding.

    Args:
        query, key, value: (batch, height, width, heads, head_dim).
        grid_size: keys along one axis, a number or (vertical, horizontal).
        scale: of the scores; None is 1 / sqrt(head_dim).
        bias: (heads, 2 * grid_size[0] - 1, 2 * grid_size[1] - 1), added to the scaled scores by the rectangle of the
            query relative to that of the key.
        dropout: probability that a weight is dropped.

    Returns:
        (batch, height, width, heads, head_dim).

    Raises:
        ValueError: the grid has more places than the map.

    Source: Tu et al. 2022 (MaxViT, https://arxiv.org/abs/2204.01697), section 3.2.
    """
    grid, heads = (query.shape[1], query.shape[2]), query.shape[3:]
    size = check_grid_size(grid, grid_size)
    steps = (-(-grid[0] // size[0]), -(-grid[1] // size[1]))
    added = group_bias(grid, size, steps, bias, query)
    groups = [into_groups(cells.flatten(3), size, steps).unflatten(2, heads) for cells in (query, key, value)]
    attended = attend_within(groups[0], groups[1], groups[2], added, dropout, scale)
    return from_groups(attended, grid, size, steps).unflatten(3, heads)


def group_bias(
    grid: tuple[int, int], size: tuple[int, int], steps: tuple[int, int], bias: Tensor | None, query: Tensor
) -> Tensor | None:
    """What is added to the scores: (1 or groups, 1 or heads, keys of a group, keys of a group), or None."""
    added = None if bias is None else relative_bias(bias, size)[None].to(query.dtype)
    if (steps[0] * size[0], steps[1] * size[1]) == grid:
        return added
    exists = into_groups(torch.ones(1, *grid, 1, device=query.device), size, steps) > 0  # (groups, n, 1)
    absent = torch.zeros(exists.shape[0], 1, 1, exists.shape[1], dtype=query.dtype, device=query.device)
    absent = absent.masked_fill(~exists.transpose(1, 2)[:, None], float("-inf"))
    return absent if added is None else absent + added


def into_groups(cells: Tensor, size: tuple[int, int], steps: tuple[int, int]) -> Tensor:
    """(batch, height, width, channels) -> (batch * groups, keys of a group, channels)."""
    below, right = size[0] * steps[0] - cells.shape[1], size[1] * steps[1] - cells.shape[2]
    if below or right:
        cells = functional.pad(cells, (0, 0, 0, right, 0, below))
    batch, _, _, channels = cells.shape
    cells = cells.reshape(batch, size[0], steps[0], size[1], steps[1], channels).permute(0, 2, 4, 1, 3, 5)
    return cells.reshape(batch * steps[0] * steps[1], size[0] * size[1], channels)


def from_groups(groups: Tensor, grid: tuple[int, int], size: tuple[int, int], steps: tuple[int, int]) -> Tensor:
    """The inverse of `into_groups`."""
    batch, channels = groups.shape[0] // (steps[0] * steps[1]), groups.shape[2]
    cells = groups.reshape(batch, *steps, *size, channels).permute(0, 3, 1, 4, 2, 5)
    return cells.reshape(batch, size[0] * steps[0], size[1] * steps[1], channels)[:, : grid[0], : grid[1]]


def grid_keys(height: int, width: int, grid_size: int | Sequence[int]) -> Tensor:
    """The token index of every key that a query sees: (height * width, keys), long; -1 beyond the map."""
    size = check_grid_size((height, width), grid_size)
    axes = []
    for side, places in zip((height, width), size, strict=True):
        step = -(-side // places)
        keys = torch.arange(side)[:, None] % step + torch.arange(places) * step  # (side, places)
        axes.append(keys.masked_fill(keys >= side, -1))
    rows, columns = axes[0][:, None, :, None], axes[1][None, :, None, :]
    keys = torch.where((rows < 0) | (columns < 0), -1, rows * width + columns)
    return keys.reshape(height * width, size[0] * size[1])


def check_grid_size(grid: tuple[int, int], grid_size: int | Sequence[int]) -> tuple[int, int]:
    """As a pair.

    Raises:
        ValueError: it has no place, or more than the map.
    """
    size = pair(grid_size, "grid_size")
    for side, places in zip(grid, size, strict=True):
        if not 1 <= places <= side:
            raise ValueError(f"grid_size {places} doesn't fit the {grid[0]}x{grid[1]} map; choose 1 to {side}")
    return size


class GridAttention(LocalAttention):
    """Self-attention of several heads among tokens at regular distances, as in MaxViT.

    Along an axis where the map has fewer cells, the grid is the map, and the centre of the bias table is used.

    Args:
        dim, num_heads, **options: see `ProjectedAttention`.
        grid_size: keys along one axis, a number or (vertical, horizontal).
        relative_position_bias: learn a bias for each head and relative position.

    Source: Tu et al. 2022, https://arxiv.org/abs/2204.01697, section 3.2.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        grid_size: int | Sequence[int] = 7,
        relative_position_bias: bool = True,
        **options: Any,
    ) -> None:
        extent = pair(grid_size, "grid_size")
        super().__init__(dim, num_heads, extent=extent, relative_position_bias=relative_position_bias, **options)
        self.grid_size = extent

    def fit(self, grid: tuple[int, int]) -> tuple[tuple[int, int], tuple[int, int]]:
        """The size of the grid on this map, and the distances between its places."""
        high, wide = (min(places, side) for places, side in zip(self.grid_size, grid, strict=True))
        return (high, wide), (-(-grid[0] // high), -(-grid[1] // wide))

    def forward(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        """Tokens (batch, height * width, dim) of the grid (height, width) in, tokens of the same shape out.

        Raises:
            ValueError: the number of tokens isn't height * width.
        """
        if self.record is not None:
            return super().forward(tokens, grid)
        self.check_tokens(tokens, grid)
        size, steps = self.fit(grid)
        # Linear layers see each token by itself, so the tokens are grouped once, before them.
        groups = into_groups(tokens.unflatten(1, grid), size, steps)  # (batch * groups, n, dim)
        query, key, value = self.qkv(groups).unflatten(2, (3, self.num_heads, self.head_dim)).unbind(2)
        query, key = self.normalize(query, key)  # (batch * groups, n, heads, head_dim)
        added = group_bias(grid, size, steps, self.bias_for(size), query)
        attended = attend_within(query, key, value, added, self.active_dropout(), None)
        return from_groups(self.project(attended), grid, size, steps).flatten(1, 2)

    def look(self, query: Tensor, key: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
        grid = (query.shape[1], query.shape[2])
        size, steps = self.fit(grid)
        keys = grid_keys(*grid, size).to(query.device)  # (N, n)
        seen = key.flatten(1, 2)[:, keys.clamp(min=0)]  # (batch, N, n, heads, head_dim)
        scores = torch.einsum("bqhd,bqnhd->bhqn", query.flatten(1, 2) * self.head_dim**-0.5, seen)
        if bias is not None:
            rows, columns = (torch.arange(side, device=query.device) for side in grid)
            place = (rows // steps[0] * size[1])[:, None] + columns // steps[1]  # of each query in its group
            scores = scores + relative_bias(bias, size)[:, place.flatten()].to(scores.dtype)
        return scores.masked_fill(keys < 0, float("-inf")).softmax(dim=-1), keys
