"""Window attention: the map is cut into windows, and the tokens of a window see each other."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from visattn.attention.dot_product import dot_product_attention
from visattn.attention.local import LocalAttention, relative_bias
from visattn.attention.projected import pair


def window_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    window_size: int | Sequence[int],
    shift: int | Sequence[int] = 0,
    scale: float | None = None,
    bias: Tensor | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """Every query sees the keys of its window. Cost: tokens * window_size[0] * window_size[1] * head_dim.

    The windows begin at the upper left corner, or at `shift` from it: then those at the borders are smaller. A map
    that the windows don't divide is padded below and at the right; nothing sees the padding.

    Args:
        query, key, value: (batch, height, width, heads, head_dim).
        window_size: side of a window in tokens, a number or (vertical, horizontal).
        shift: how far the windows are moved down and to the right, a number or (vertical, horizontal), below
            window_size.
        scale: of the scores; None is 1 / sqrt(head_dim).
        bias: (heads, 2 * window_size[0] - 1, 2 * window_size[1] - 1), added to the scaled scores by the position of
            the query relative to the key: the centre of the table is the key's own position.
        dropout: probability that a weight is dropped.

    Returns:
        (batch, height, width, heads, head_dim).

    Raises:
        ValueError: the window exceeds the map, or the shift the window.

    Source: Liu et al. 2021, https://arxiv.org/abs/2103.14030, section 3.2.
    """
    grid = (query.shape[1], query.shape[2])
    window_size, shift = check_window(grid, window_size, shift)
    batch = query.shape[0]
    added = window_bias(grid, window_size, shift, bias, query)
    query, key, value = (into_windows(tensor, window_size, shift) for tensor in (query, key, value))
    if added is not None:  # the same for every image
        added = added.expand(batch, *added.shape).flatten(0, 1) if added.shape[0] > 1 else added
    attended = dot_product_attention(query, key, value, bias=added, dropout=dropout, scale=scale)
    return from_windows(attended, grid, window_size, shift)


def window_attention_weights(
    query: Tensor,
    key: Tensor,
    window_size: int | Sequence[int],
    shift: int | Sequence[int] = 0,
    scale: float | None = None,
    bias: Tensor | None = None,
) -> Tensor:
    """The weights of `window_attention`: (batch, heads, height * width, window_size[0] * window_size[1]).

    The i-th weight of a query belongs to its i-th key of `window_keys`. Arguments as there.
    """
    _, height, width, _, head_dim = query.shape
    window_size, shift = check_window((height, width), window_size, shift)
    scale = head_dim**-0.5 if scale is None else scale
    keys = window_keys(height, width, window_size, shift).to(query.device)  # (N, n)
    seen = key.flatten(1, 2)[:, keys.clamp(min=0)]  # (batch, N, n, heads, head_dim)
    scores = torch.einsum("bqhd,bqnhd->bhqn", query.flatten(1, 2) * scale, seen)
    if bias is not None:
        (high, wide), queries = window_size, torch.arange(height * width, device=keys.device)[:, None]
        rows = queries // width - keys // width + high - 1  # (N, n)
        columns = queries % width - keys % width + wide - 1
        positions = (rows * (2 * wide - 1) + columns).masked_fill(keys < 0, 0)
        scores = scores + bias.flatten(1)[:, positions].to(scores.dtype)
    return scores.masked_fill(keys < 0, float("-inf")).softmax(dim=-1)


def window_keys(height: int, width: int, window_size: int | Sequence[int], shift: int | Sequence[int] = 0) -> Tensor:
    """The token index (row * width + column) of every key that a query sees, row by row; -1 beyond the map.

    Returns:
        (height * width, window_size[0] * window_size[1]), long.

    Raises:
        ValueError: the window exceeds the map, or the shift the window.
    """
    (high, wide), shifts = check_window((height, width), window_size, shift)
    rows, columns = axis_keys(height, high, shifts[0]), axis_keys(width, wide, shifts[1])
    rows, columns = rows[:, None, :, None], columns[None, :, None, :]
    keys = torch.where((rows < 0) | (columns < 0), -1, rows * width + columns)  # (height, width, high, wide)
    return keys.reshape(height * width, high * wide)


def axis_keys(length: int, window_size: int, shift: int) -> Tensor:
    """Along one axis, the positions in the window of each query, -1 beyond the map: (length, window_size), long."""
    ahead = -shift % window_size  # how far the first window begins before the map
    start = (torch.arange(length) + ahead) // window_size * window_size - ahead  # (length,)
    keys = start[:, None] + torch.arange(window_size)
    return keys.masked_fill((keys < 0) | (keys >= length), -1)


def into_windows(cells: Tensor, window_size: tuple[int, int], shift: tuple[int, int]) -> Tensor:
    """(batch, height, width, heads, head_dim) -> (batch * windows, heads, tokens of a window, head_dim)."""
    (high, wide), (_, height, width, _, _) = window_size, cells.shape
    if -height % high or -width % wide:
        cells = functional.pad(cells, (0, 0, 0, 0, 0, -width % wide, 0, -height % high))
    if any(shift):
        cells = torch.roll(cells, (-shift[0], -shift[1]), dims=(1, 2))
    cells = cells.unflatten(2, (-1, wide)).unflatten(1, (-1, high))  # (batch, rows, high, columns, wide, heads, d)
    return cells.permute(0, 1, 3, 5, 2, 4, 6).flatten(4, 5).flatten(0, 2)


def from_windows(
    windows: Tensor, grid: tuple[int, int], window_size: tuple[int, int], shift: tuple[int, int]
) -> Tensor:
    """(batch * windows, heads, tokens of a window, head_dim) -> (batch, height, width, heads, head_dim)."""
    rows, columns = -(-grid[0] // window_size[0]), -(-grid[1] // window_size[1])
    cells = windows.unflatten(2, window_size).unflatten(0, (-1, rows, columns))
    cells = cells.permute(0, 1, 4, 2, 5, 3, 6).flatten(3, 4).flatten(1, 2)  # (batch, height, width, heads, head_dim)
    if any(shift):
        cells = torch.roll(cells, shift, dims=(1, 2))
    return cells[:, : grid[0], : grid[1]]


def window_bias(
    grid: tuple[int, int],
    window_size: tuple[int, int],
    shift: tuple[int, int],
    bias: Tensor | None,
    query: Tensor,
) -> Tensor | None:
    """What is added to the scores: (1 or windows, 1 or heads, window tokens, window tokens), or None."""
    (high, wide), device = window_size, query.device
    added = None
    if bias is not None:
        added = relative_bias(bias, window_size)[None].to(query.dtype)
    rows_padded, columns_padded = grid[0] + -grid[0] % high, grid[1] + -grid[1] % wide
    if any(shift) or (rows_padded, columns_padded) != grid:
        region = axis_regions(grid[0], rows_padded, high, shift[0])[:, None] * 4
        region = region + axis_regions(grid[1], columns_padded, wide, shift[1])  # (rows_padded, columns_padded)
        region = into_windows(region[None, :, :, None, None], window_size, (0, 0)).to(device)  # (windows, 1, n, 1)
        mask = torch.zeros(region.shape[0], 1, high * wide, high * wide, dtype=query.dtype, device=device)
        mask = mask.masked_fill(region != region.transpose(2, 3), float("-inf"))
        added = mask if added is None else mask + added
    return added


def axis_regions(length: int, padded: int, window_size: int, shift: int) -> Tensor:
    """Along one axis, after the shift, a number for what belongs together within a window: (padded,)."""
    place = (torch.arange(padded) + shift) % padded  # where a shifted cell comes from
    region = torch.where(place >= length, 3, 0)
    if shift:
        region[padded - shift :] += 1 * (region[padded - shift :] == 0)
    return region


def check_window(
    grid: tuple[int, int], window_size: int | Sequence[int], shift: int | Sequence[int]
) -> tuple[tuple[int, int], tuple[int, int]]:
    """Both as pairs.

    Raises:
        ValueError: the window exceeds the map, or the shift the window.
    """
    windows, shifts = pair(window_size, "window_size"), pair(shift, "shift")
    for side, window, step in zip(grid, windows, shifts, strict=True):
        if not 1 <= window <= side:
            raise ValueError(f"window_size {window} doesn't fit the {grid[0]}x{grid[1]} map; choose 1 to {side}")
        if step >= window:
            raise ValueError(f"shift {step} must be below window_size {window}")
    return windows, shifts


class WindowAttention(LocalAttention):
    """Self-attention of several heads within windows, as in Swin.

    Along an axis where the map isn't larger than the window, the window is the map and there is no shift, and the
    centre of the bias table is used.

    Args:
        dim, num_heads, **options: see `ProjectedAttention`.
        window_size: side of a window in tokens, a number or (vertical, horizontal).
        shift: how far the windows are moved, a number or (vertical, horizontal).
        relative_position_bias: learn a bias for each head and relative position.

    Source: Liu et al. 2021, https://arxiv.org/abs/2103.14030, section 3.2.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        window_size: int | Sequence[int] = 7,
        shift: int | Sequence[int] = 0,
        relative_position_bias: bool = True,
        **options,
    ) -> None:
        extent = pair(window_size, "window_size")
        super().__init__(dim, num_heads, extent=extent, relative_position_bias=relative_position_bias, **options)
        self.window_size, self.shift = extent, pair(shift, "shift")

    def fit(self, grid: tuple[int, int]) -> tuple[tuple[int, int], tuple[int, int]]:
        """The window size and shift on this map."""
        window_size = tuple(min(window, side) for window, side in zip(self.window_size, grid, strict=True))
        shift = tuple(
            step if side > window else 0 for step, side, window in zip(self.shift, grid, self.window_size, strict=True)
        )
        return (window_size[0], window_size[1]), (shift[0], shift[1])

    def attend(self, query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None) -> Tensor:
        window_size, shift = self.fit((query.shape[1], query.shape[2]))
        return window_attention(query, key, value, window_size, shift, bias=bias, dropout=self.active_dropout())

    def look(self, query: Tensor, key: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
        grid = (query.shape[1], query.shape[2])
        window_size, shift = self.fit(grid)
        weights = window_attention_weights(query, key, window_size, shift, bias=bias)
        return weights, window_keys(*grid, window_size, shift)
