"""Neighborhood attention: every pixel of a map attends to the window of keys nearest to it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from visattn.attention.dot_product import attention_weights, dot_product_attention
from visattn.attention.local import LocalAttention
from visattn.attention.neighborhood_tiles import attend, tile_bias, tile_mask
from visattn.attention.neighborhood_tiling import whole_map
from visattn.attention.projected import pair


def neighborhood_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    kernel_size: int | Sequence[int],
    dilation: int | Sequence[int] = 1,
    scale: float | None = None,
    bias: Tensor | None = None,
    dropout: float = 0.0,
    global_key: Tensor | None = None,
    global_value: Tensor | None = None,
) -> Tensor:
    """Every query sees exactly kernel_size[0] * kernel_size[1] keys. Cost: tokens * keys seen * head_dim.

    The window of keys is centred on the query; at a border it is shifted inward, never padded. With dilation d, a
    query at i sees keys at positions equal to i modulo d only, and the window counts these. An even kernel_size has
    one more key before the query than behind it.

    Args:
        query, key, value: (batch, height, width, heads, head_dim).
        kernel_size: keys that a query sees along one axis, a number or (vertical, horizontal).
        dilation: distance between neighboring keys, a number or (vertical, horizontal).
        scale: of the scores; None is 1 / sqrt(head_dim).
        bias: (heads, 2 * kernel_size[0] - 1, 2 * kernel_size[1] - 1), added to the scaled scores by the position of
            the key relative to the query: the centre of the table is the query's own position.
        dropout: probability that a weight is dropped.
        global_key, global_value: (batch, tokens, heads, head_dim), of tokens beside the map that every query sees as
            well, such as class and register tokens: one softmax over them and the neighborhood. They have no bias.

    Returns:
        (batch, height, width, heads, head_dim).

    Raises:
        ValueError: kernel_size * dilation exceeds the map, or only one of global_key and global_value is given.

    Source: Hassani et al. 2023, https://arxiv.org/abs/2204.07143; dilated: https://arxiv.org/abs/2209.15001; global
        tokens within local attention: Beltagy et al. 2020, https://arxiv.org/abs/2004.05150, section 3.1.
    """
    kernel_size, dilation = check_neighborhood((query.shape[1], query.shape[2]), kernel_size, dilation)
    if not query.shape == key.shape == value.shape:
        raise ValueError(f"query {query.shape}, key {key.shape} and value {value.shape} differ in shape")
    if (global_key is None) != (global_value is None):
        raise ValueError("global_key and global_value belong together; give both or none")
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    query, key = query.to(value.dtype), key.to(value.dtype)
    if global_key is not None and global_value is not None and global_key.shape[1]:
        parts = normalized_attention(query, key, value, kernel_size, dilation, scale, bias, dropout)
        return join_globals(query, *parts, global_key, global_value, scale, dropout)
    if dilation == (1, 1) and not torch.compiler.is_compiling() and dense_is_faster(query):
        return attend_densely(query, key, value, kernel_size, scale, bias, dropout)
    attend_undilated = undilated(query, key, value, kernel_size, scale, bias, dropout, normalize=False)
    return over_dilation_groups(attend_undilated, query, key, value, dilation)


def normalized_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    kernel_size: tuple[int, int],
    dilation: tuple[int, int],
    scale: float,
    bias: Tensor | None,
    dropout: float,
) -> tuple[Tensor, Tensor]:
    """The output of `neighborhood_attention`, and what it takes to join it with attention to other keys.

    Returns:
        (batch, height, width, heads, head_dim), and log of the sum of exp(score) (batch, height, width, heads).
    """
    attend_undilated = undilated(query, key, value, kernel_size, scale, bias, dropout, normalize=True)
    joint = over_dilation_groups(attend_undilated, query, key, value, dilation)
    return joint[..., :-1], joint[..., -1]


def undilated(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    kernel_size: tuple[int, int],
    scale: float,
    bias: Tensor | None,
    dropout: float,
    *,
    normalize: bool,
) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """Attention of any part of these maps as one map; its log normalizer is a last channel if `normalize`."""
    keep = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (query, key, value))
    seed = torch.randint(2**62, ()) if dropout else None

    def attend_undilated(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        output, _, log_normalizer = attend(query, key, value, bias, kernel_size, scale, dropout, seed, keep, normalize)
        return torch.cat([output, log_normalizer], dim=-1) if normalize else output

    return attend_undilated


def join_globals(
    query: Tensor,
    output: Tensor,
    log_normalizer: Tensor,
    global_key: Tensor,
    global_value: Tensor,
    scale: float,
    dropout: float,
) -> Tensor:
    """Attention to the neighborhood, and to global tokens, under one softmax.

    Args:
        query, output: (batch, height, width, heads, head_dim).
        log_normalizer: (batch, height, width, heads), log of the sum of exp(score) within the neighborhood.
        global_key, global_value: (batch, tokens, heads, head_dim).
    """
    scores = torch.einsum("bijhd,bnhd->bijhn", query * scale, global_key.to(query.dtype)).to(log_normalizer.dtype)
    weights = functional.dropout(scores.softmax(dim=-1), dropout)  # (batch, height, width, heads, tokens)
    of_globals = torch.einsum("bijhn,bnhd->bijhd", weights, global_value.to(weights.dtype))
    share = torch.sigmoid(log_normalizer - scores.logsumexp(dim=-1)).unsqueeze(-1)  # of the neighborhood
    return torch.lerp(of_globals, output, share)


def dense_is_faster(query: Tensor) -> bool:
    """Whether all scores of the maps (batch, height, width, heads, head_dim) take less time than tiles.

    Measured on a CPU: up to 8x8 cells always, up to 16x16 while the scores fit into the processor's caches. On the meta
    device, where nothing is computed, the operator shows to counters of operations what is seen, without the masked.
    """
    batch, height, width, heads, _ = query.shape
    cells = height * width
    if query.is_meta:
        return False
    return cells <= 64 or (cells <= 256 and batch * heads * cells**2 * query.element_size() <= 2**24)


def attend_densely(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    kernel_size: tuple[int, int],
    scale: float,
    bias: Tensor | None,
    dropout: float,
) -> Tensor:
    """All scores of a small map, most of them masked."""
    height, width = query.shape[1], query.shape[2]
    tiling = whole_map(height, width, kernel_size)
    if bias is None:
        added = tile_mask(tiling, query.dtype, query.device)
    else:
        added = tile_bias(tiling, bias, query.dtype, query.device)
    query, key, value = (
        tensor.flatten(1, 2).transpose(1, 2) for tensor in (query, key, value)
    )  # (batch, heads, N, head_dim)
    attended = dot_product_attention(query, key, value, bias=added[0], dropout=dropout, scale=scale)
    return attended.transpose(1, 2).unflatten(1, (height, width))


def over_dilation_groups(
    attend_undilated: Callable[[Tensor, Tensor, Tensor], Tensor],
    query: Tensor,
    key: Tensor,
    value: Tensor,
    dilation: tuple[int, int],
) -> Tensor:
    """Applies attention to every group of cells that are multiples of the dilation apart, as if they were one map.

    Where the dilation doesn't divide the map, the first groups have a row or column more than the others; groups of the
    same size become images of one batch.
    """
    if dilation == (1, 1):
        return attend_undilated(query, key, value)
    down, right = dilation
    _, height, width, _, _ = query.shape
    padding = (0, 0, 0, 0, 0, -width % right, 0, -height % down)
    groups = [
        functional.pad(tensor, padding).unflatten(2, (-1, right)).unflatten(1, (-1, down)).permute(0, 2, 4, 1, 3, 5, 6)
        for tensor in (query, key, value)
    ]  # (batch, down, right, rows, columns, heads, head_dim)
    rows = []
    for top, high in group_sizes(height, down):
        columns = []
        for left, wide in group_sizes(width, right):
            maps = [tensor[:, top, left, :high, :wide] for tensor in groups]
            attended = attend_undilated(*(part.flatten(0, 2) for part in maps)).unflatten(0, maps[0].shape[:3])
            short = (-(-height // down) - high, -(-width // right) - wide)
            columns.append(functional.pad(attended, (0, 0, 0, 0, 0, short[1], 0, short[0])))
        rows.append(torch.cat(columns, dim=2))
    cells = torch.cat(rows, dim=1).permute(0, 3, 1, 4, 2, 5, 6)  # (batch, rows, down, columns, right, heads, head_dim)
    return cells.flatten(3, 4).flatten(1, 2)[:, :height, :width]


def group_sizes(length: int, dilation: int) -> list[tuple[slice, int]]:
    """Along one axis, the groups of equal size, and this size."""
    longer = length % dilation  # groups that have one position more
    groups = [(slice(0, longer), length // dilation + 1), (slice(longer, dilation), length // dilation)]
    return groups if longer else groups[1:]


def neighborhood_attention_weights(
    query: Tensor,
    key: Tensor,
    kernel_size: int | Sequence[int],
    dilation: int | Sequence[int] = 1,
    scale: float | None = None,
    bias: Tensor | None = None,
) -> Tensor:
    """The weights of `neighborhood_attention`: (batch, heads, height * width, kernel_size[0] * kernel_size[1]).

    The i-th weight of a query belongs to its i-th key of `neighborhood_keys`. Arguments as there.
    """
    _, height, width, _, head_dim = query.shape
    scale = head_dim**-0.5 if scale is None else scale
    keys = neighborhood_keys(height, width, kernel_size, dilation).to(query.device)  # (N, n)
    seen = key.flatten(1, 2)[:, keys]  # (batch, N, n, heads, head_dim)
    scores = torch.einsum("bqhd,bqnhd->bhqn", query.flatten(1, 2) * scale, seen)
    if bias is not None:
        positions = relative_positions(height, width, kernel_size, dilation).to(query.device)  # (N, n)
        scores = scores + bias.flatten(1)[:, positions].to(scores.dtype)
    return scores.softmax(dim=-1)


def neighborhood_keys(
    height: int, width: int, kernel_size: int | Sequence[int], dilation: int | Sequence[int] = 1
) -> Tensor:
    """The token index (row * width + column) of every key that a query sees, row by row.

    Returns:
        (height * width, kernel_size[0] * kernel_size[1]), long.

    Raises:
        ValueError: kernel_size * dilation exceeds the map.
    """
    (high, wide), (down, right) = check_neighborhood((height, width), kernel_size, dilation)
    rows, columns = axis_keys(height, high, down), axis_keys(width, wide, right)  # (height, high), (width, wide)
    keys = rows[:, None, :, None] * width + columns[None, :, None, :]  # (height, width, high, wide)
    return keys.reshape(height * width, high * wide)


def relative_positions(
    height: int, width: int, kernel_size: int | Sequence[int], dilation: int | Sequence[int] = 1
) -> Tensor:
    """Where the flattened bias table has the value for each key of `neighborhood_keys`; the same shape, long."""
    (high, wide), (down, right) = check_neighborhood((height, width), kernel_size, dilation)
    rows = (axis_keys(height, high, down) - torch.arange(height)[:, None]) // down + high - 1  # (height, high)
    columns = (axis_keys(width, wide, right) - torch.arange(width)[:, None]) // right + wide - 1  # (width, wide)
    positions = rows[:, None, :, None] * (2 * wide - 1) + columns[None, :, None, :]
    return positions.reshape(height * width, high * wide)


def axis_keys(length: int, kernel_size: int, dilation: int) -> Tensor:
    """Along one axis, the positions of the keys that each query sees: (length, kernel_size), long."""
    queries = torch.arange(length)
    group, place = queries % dilation, queries // dilation
    group_length = (length - group + dilation - 1) // dilation
    start = torch.minimum((place - kernel_size // 2).clamp(min=0), group_length - kernel_size)
    return (start[:, None] + torch.arange(kernel_size)) * dilation + group[:, None]


def check_neighborhood(
    grid: tuple[int, int], kernel_size: int | Sequence[int], dilation: int | Sequence[int]
) -> tuple[tuple[int, int], tuple[int, int]]:
    """Both as pairs.

    Raises:
        ValueError: they are below 1, or the map is too small for them.
    """
    kernels, dilations = pair(kernel_size, "kernel_size"), pair(dilation, "dilation")
    if min(kernels + dilations) < 1:
        raise ValueError(f"kernel_size {kernel_size} and dilation {dilation} must be at least 1")
    for side, kernel, step in zip(grid, kernels, dilations, strict=True):
        if kernel * step > side:
            raise ValueError(
                f"kernel_size {kernel} with dilation {step} exceeds the {grid[0]}x{grid[1]} map; "
                f"at most kernel_size {side // step} fits"
            )
    return kernels, dilations


def with_prefix(
    prefix: int,
    grid: tuple[int, int],
    kernel_size: tuple[int, int],
    dilation: tuple[int, int],
    bias: Tensor | None,
    like: Tensor,
) -> tuple[Tensor, Tensor | None]:
    """Who sees whom among prefix tokens and those of a map, bool (N, N), and the bias (heads, N, N) of the scores."""
    keys = neighborhood_keys(*grid, kernel_size, dilation).to(like.device)  # (height * width, n)
    size = prefix + len(keys)
    mask = torch.ones(size, size, dtype=torch.bool, device=like.device)
    mask[prefix:, prefix:] = torch.zeros(len(keys), len(keys), dtype=torch.bool, device=like.device).scatter(
        1, keys, True
    )
    if bias is None:
        return mask, None
    values = bias.flatten(1)[:, relative_positions(*grid, kernel_size, dilation).to(like.device)].to(like.dtype)
    cells = values.new_zeros(len(bias), len(keys), len(keys)).scatter(2, keys.expand_as(values), values)
    return mask, functional.pad(cells, (prefix, 0, prefix, 0))


class NeighborhoodAttention(LocalAttention):
    """Self-attention of several heads within the neighborhood of each token.

    On a map smaller than kernel_size * dilation, dilation and then kernel_size shrink to what fits, and the centre of
    the bias table is used. Prefix tokens (class, registers) see all tokens, and every token sees them under the same
    softmax as its neighborhood.

    Args:
        dim, num_heads, **options: see `ProjectedAttention`.
        kernel_size: keys that a query sees along one axis, a number or (vertical, horizontal).
        dilation: distance between neighboring keys, a number or (vertical, horizontal).
        relative_position_bias: learn a bias for each head and relative position.

    Source: Hassani et al. 2023, https://arxiv.org/abs/2204.07143.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        kernel_size: int | Sequence[int] = 7,
        dilation: int | Sequence[int] = 1,
        relative_position_bias: bool = True,
        **options,
    ) -> None:
        extent = pair(kernel_size, "kernel_size")
        super().__init__(dim, num_heads, extent=extent, relative_position_bias=relative_position_bias, **options)
        self.kernel_size, self.dilation = extent, pair(dilation, "dilation")

    def fit(self, grid: tuple[int, int]) -> tuple[tuple[int, int], tuple[int, int]]:
        """The kernel size and dilation that the map has room for."""
        kernel_size = tuple(min(kernel, side) for kernel, side in zip(self.kernel_size, grid, strict=True))
        dilation = tuple(
            max(1, min(step, side // kernel))
            for step, side, kernel in zip(self.dilation, grid, kernel_size, strict=True)
        )
        return (kernel_size[0], kernel_size[1]), (dilation[0], dilation[1])

    def forward(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        """Tokens (batch, prefix + height * width, dim) of the grid (height, width) in, tokens of the same shape out.

        Raises:
            ValueError: there are fewer than height * width tokens.
        """
        prefix = tokens.shape[1] - grid[0] * grid[1]
        if prefix <= 0:
            return super().forward(tokens, grid)
        qkv = self.qkv(tokens).unflatten(2, (3, self.num_heads, self.head_dim))
        query, key, value = qkv.unbind(2)  # (batch, N, heads, head_dim)
        query, key = self.normalize(query, key)
        (kernel_size, dilation), bias = self.fit(grid), self.bias_for(self.fit(grid)[0])
        sequences = [tensor.transpose(1, 2) for tensor in (query, key, value)]  # (batch, heads, N, head_dim)
        if self.record is not None:
            mask, added = with_prefix(prefix, grid, kernel_size, dilation, bias, query)
            weights = attention_weights(sequences[0], sequences[1], mask, added)  # (batch, heads, N, N)
            self.record(weights, None)
            attended = (functional.dropout(weights, self.active_dropout()) @ sequences[2]).transpose(1, 2)
            return self.project(attended.flatten(2))
        of_prefix = dot_product_attention(
            sequences[0][:, :, :prefix], sequences[1], sequences[2], dropout=self.active_dropout()
        )
        cells = [tensor[:, prefix:].unflatten(1, grid) for tensor in (query, key, value)]
        of_map = neighborhood_attention(
            cells[0],
            cells[1],
            cells[2],
            kernel_size,
            dilation,
            bias=bias,
            dropout=self.active_dropout(),
            global_key=key[:, :prefix],
            global_value=value[:, :prefix],
        )
        attended = torch.cat([of_prefix.transpose(1, 2), of_map.flatten(1, 2)], dim=1)
        return self.project(attended.flatten(2))

    def attend(self, query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None) -> Tensor:
        kernel_size, dilation = self.fit((query.shape[1], query.shape[2]))
        return neighborhood_attention(
            query, key, value, kernel_size, dilation, bias=bias, dropout=self.active_dropout()
        )

    def look(self, query: Tensor, key: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
        grid = (query.shape[1], query.shape[2])
        kernel_size, dilation = self.fit(grid)
        weights = neighborhood_attention_weights(query, key, kernel_size, dilation, bias=bias)
        return weights, neighborhood_keys(*grid, kernel_size, dilation)
