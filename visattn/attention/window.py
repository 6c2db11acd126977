"""Window attention: the map is cut into windows, and the tokens of a window see each other."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor, nn
from torch.nn import functional

from visattn.attention.dot_product import dot_product_attention, explicit_is_faster
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
    grid, heads = (query.shape[1], query.shape[2]), query.shape[3:]
    window_size, shift = check_window(grid, window_size, shift)
    added = window_bias(grid, window_size, shift, bias, query)
    windows = [into_windows(cells.flatten(3), window_size, shift).unflatten(2, heads) for cells in (query, key, value)]
    attended = attend_within(windows[0], windows[1], windows[2], added, dropout, scale)
    return from_windows(attended, grid, window_size, shift).unflatten(3, heads)


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


def attend_within(
    query: Tensor, key: Tensor, value: Tensor, added: Tensor | None, dropout: float, scale: float | None
) -> Tensor:
    """Attention among the tokens of each window.

    Args:
        query, key, value: (batch * windows, window tokens, heads, head_dim).
        added: to the scores: (1 or windows, 1 or heads, window tokens, window tokens), the same for every image.
        dropout, scale: see `window_attention`.

    Returns:
        (batch * windows, window tokens, heads * head_dim).
    """
    query, key, value = query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2)
    if added is None or added.shape[0] == 1:
        attended = dot_product_attention(query, key, value, bias=added, dropout=dropout, scale=scale)
    elif explicit_is_faster(query, key, value, added):  # with a dimension for the images, along which nothing is copied
        query, key, value = (heads.unflatten(0, (-1, added.shape[0])) for heads in (query, key, value))
        attended = dot_product_attention(query, key, value, bias=added, dropout=dropout, scale=scale).flatten(0, 1)
    else:
        added = added.expand(query.shape[0] // added.shape[0], *added.shape).flatten(0, 1)
        attended = dot_product_attention(query, key, value, bias=added, dropout=dropout, scale=scale)
    return attended.transpose(1, 2).flatten(2)


def into_windows(cells: Tensor, window_size: tuple[int, int], shift: tuple[int, int]) -> Tensor:
    """(batch, height, width, channels) -> (batch * windows, window tokens, channels)."""
    high, wide = window_size
    below, right = -cells.shape[1] % high, -cells.shape[2] % wide
    if below or right:
        cells = functional.pad(cells, (0, 0, 0, right, 0, below))
    if any(shift):
        cells = torch.roll(cells, (-shift[0], -shift[1]), dims=(1, 2))
    batch, height, width, channels = cells.shape
    cells = cells.reshape(batch, height // high, high, width // wide, wide, channels)
    return cells.transpose(2, 3).reshape(-1, high * wide, channels)


def from_windows(
    windows: Tensor, grid: tuple[int, int], window_size: tuple[int, int], shift: tuple[int, int]
) -> Tensor:
    """(batch * windows, window tokens, channels) -> (batch, height, width, channels)."""
    rows, columns = -(-grid[0] // window_size[0]), -(-grid[1] // window_size[1])
    cells = windows.reshape(-1, rows, columns, *window_size, windows.shape[2]).transpose(2, 3)
    cells = cells.reshape(-1, rows * window_size[0], columns * window_size[1], windows.shape[2])
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
    added = None if bias is None else relative_bias(bias, window_size)[None].to(query.dtype)
    if not any(shift) and grid[0] % window_size[0] == 0 and grid[1] % window_size[1] == 0:
        return added
    make = kept_window_mask if is_worth_keeping(query) else window_mask
    mask = make(grid, window_size, shift, query.dtype, query.device)
    return mask if added is None else mask + added


def is_worth_keeping(like: Tensor) -> bool:
    """Whether a constant made for such a tensor can be kept: compilers do so by themselves, and what is made among
    tensors of another class, such as those without contents, may be of that class."""
    return type(like) in (Tensor, nn.Parameter) and not torch.compiler.is_compiling()


def window_mask(
    grid: tuple[int, int],
    window_size: tuple[int, int],
    shift: tuple[int, int],
    dtype: torch.dtype,
    device: torch.device,
) -> Tensor:
    """0 where tokens of a window are neighbors on the map, else -inf: (windows, 1, window tokens, window tokens)."""
    rows, columns = (
        axis_regions(side, side + -side % window, step)
        for side, window, step in zip(grid, window_size, shift, strict=True)
    )
    region = into_windows((rows[:, None] * 4 + columns)[None, :, :, None], window_size, (0, 0))  # (windows, n, 1)
    apart = (region != region.transpose(1, 2))[:, None].to(device)
    return torch.zeros(apart.shape, dtype=dtype, device=device).masked_fill(apart, float("-inf"))


# What is made and kept within inference_mode could not serve a later training.
kept_window_mask = lru_cache(maxsize=64)(torch.inference_mode(False)(window_mask))


def axis_regions(length: int, padded: int, shift: int) -> Tensor:
    """Along one axis, after the shift, a number for what belongs together within a window: (padded,)."""
    place = (torch.arange(padded) + shift) % padded  # where a shifted cell comes from
    wrapped = torch.arange(padded) >= padded - shift
    return torch.where(place >= length, 3, wrapped.long())


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
        self.scale: float | None = None  # of the scores, as in `window_attention`
        if any(step >= window for step, window in zip(self.shift, self.window_size, strict=True)):
            raise ValueError(f"shift {self.shift} must be below window_size {self.window_size}")

    def fit(self, grid: tuple[int, int]) -> tuple[tuple[int, int], tuple[int, int]]:
        """The window size and shift on this map."""
        (height, width), (high, wide), (down, right) = grid, self.window_size, self.shift
        return (min(high, height), min(wide, width)), (down if height > high else 0, right if width > wide else 0)

    def forward(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        """Tokens (batch, height * width, dim) of the grid (height, width) in, tokens of the same shape out.

        Raises:
            ValueError: the number of tokens isn't height * width.
        """
        if self.record is not None:
            return super().forward(tokens, grid)
        self.check_tokens(tokens, grid)
        window_size, shift = self.fit(grid)
        # Linear layers see each token by itself, so the map is cut into windows once, before them.
        windows = into_windows(tokens.unflatten(1, grid), window_size, shift)  # (batch * windows, n, dim)
        qkv = self.qkv(windows).unflatten(2, (3, self.num_heads, self.head_dim))
        query, key, value = qkv.unbind(2)  # (batch * windows, n, heads, head_dim)
        query, key = self.normalize(query, key)
        added = window_bias(grid, window_size, shift, self.bias_for(window_size), query)
        attended = attend_within(query, key, value, added, self.active_dropout(), self.scale)
        return from_windows(self.project(attended), grid, window_size, shift).flatten(1, 2)

    def look(self, query: Tensor, key: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
        grid = (query.shape[1], query.shape[2])
        window_size, shift = self.fit(grid)
        weights = window_attention_weights(query, key, window_size, shift, scale=self.scale, bias=bias)
        return weights, window_keys(*grid, window_size, shift)
