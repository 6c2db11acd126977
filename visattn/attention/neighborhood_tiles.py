"""The fast path of neighborhood attention: tiles of queries, and for each the rectangle of keys that it sees.

The map is cut into tiles of queries, a few rows by a few columns. All queries of a tile together see a rectangle of
keys that is only kernel_size - 1 longer on each axis, so their scores are one matrix product, with -inf added where a
key lies outside the window of a query. Along the width, keys are copied once into strips, one for each column of tiles;
along the height, the rectangles are slices of these strips. Work goes through in portions that fit into the caches of
the processor's cores. The backward keeps the weights where they are small, else it computes them again.

Both directions are custom operators, which `torch.compile` takes as they are.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import groupby
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from visattn.attention.neighborhood_tiling import Tiling, tiling_of


class Portion(NamedTuple):
    """The images and columns of tiles that are worked on together."""

    images: slice
    columns: slice

    def queries(self, cells: Tensor, tiling: Tiling) -> Tensor:
        """This part of a map (batch, height, width, heads, head_dim), as a view."""
        size = tiling.columns.size
        return cells[self.images, :, self.columns.start * size : self.columns.stop * size]


def portions(query: Tensor, tiling: Tiling) -> Iterator[Portion]:
    """Cuts the work so that the scores of one row of tiles fit into the caches."""
    limit = 160_000 if query.device.type == "cpu" else 50_000_000  # scores
    batch, _, _, heads, _ = query.shape
    columns = len(tiling.columns.starts)
    fitting = max(1, limit // (heads * tiling.queries * tiling.keys))  # columns of tiles
    for images in equal_slices(batch, max(1, fitting // columns)):
        for column in equal_slices(columns, fitting):
            yield Portion(images, column)


def equal_slices(length: int, longest: int) -> list[slice]:
    """The fewest slices of nearly equal length that cover `length`."""
    step = -(-length // max(1, -(-length // longest))) or 1
    return [slice(start, min(start + step, length)) for start in range(0, length, step)]


def to_tiles(cells: Tensor, tiling: Tiling) -> Tensor:
    """(batch, height, width, heads, head_dim) -> (rows, batch * heads * columns, queries, head_dim)."""
    high, wide = tiling.rows.size, tiling.columns.size
    below, right = -cells.shape[1] % high, -cells.shape[2] % wide
    if below or right:
        cells = functional.pad(cells, (0, 0, 0, 0, 0, right, 0, below))
    tiles = cells.unflatten(2, (-1, wide)).unflatten(1, (-1, high))  # (batch, rows, high, columns, wide, heads, d)
    tiles = tiles.permute(1, 0, 5, 3, 2, 4, 6)  # (rows, batch, heads, columns, high, wide, head_dim)
    return tiles.reshape(tiles.shape[0], -1, high * wide, cells.shape[4])


def from_tiles(tiles: Tensor, tiling: Tiling, cells: Tensor) -> None:
    """The inverse of `to_tiles`, written into cells."""
    batch, height, width, heads, _ = cells.shape
    tiles = tiles.unflatten(2, (tiling.rows.size, tiling.columns.size)).unflatten(1, (batch, heads, -1))
    tiles = tiles.permute(1, 0, 4, 3, 5, 2, 6)  # (batch, rows, high, columns, wide, heads, head_dim)
    if (tiles.shape[1] * tiles.shape[2], tiles.shape[3] * tiles.shape[4]) == (height, width):
        cells.unflatten(2, tiles.shape[3:5]).unflatten(1, tiles.shape[1:3]).copy_(tiles)
    else:
        cells.copy_(tiles.flatten(3, 4).flatten(1, 2)[:, :height, :width])


def to_strips(cells: Tensor, tiling: Tiling, columns: slice) -> Tensor:
    """Keys or values (batch, height, width, heads, head_dim) -> (batch * heads * columns, height * span, head_dim)."""
    batch, height, _, heads, head_dim = cells.shape
    span, starts = tiling.columns.span, tiling.columns.starts[columns]
    strips = cells.new_empty(batch, heads, len(starts), height, span, head_dim)
    for index, start in enumerate(starts):
        strips[:, :, index] = cells[:, :, start : start + span].permute(0, 3, 1, 2, 4)
    return strips.view(-1, height * span, head_dim)


def add_strips(strips: Tensor, tiling: Tiling, columns: slice, cells: Tensor) -> None:
    """The transpose of `to_strips`: adds the strips to the cells (batch, height, width, heads, head_dim)."""
    batch, height, _, heads, head_dim = cells.shape
    span, starts = tiling.columns.span, tiling.columns.starts[columns]
    strips = strips.view(batch, heads, len(starts), height, span, head_dim)
    for index, start in enumerate(starts):
        cells[:, :, start : start + span] += strips[:, :, index].permute(0, 2, 3, 1, 4)


def tile_bias(tiling: Tiling, table: Tensor | None, dtype: torch.dtype, device: torch.device) -> Tensor:
    """What is added to the scores of a tile: the bias, and -inf where a query doesn't see a key.

    Returns:
        (kinds of rows, kinds of columns, heads or 1, queries, keys).
    """
    mask = tile_mask(tiling, dtype, device)
    if table is None:
        return mask
    vertical, horizontal = tiling.rows.table_places(table), tiling.columns.table_places(table)
    added = torch.einsum("hab,rija,cklb->rchikjl", table, vertical, horizontal)
    return added.flatten(5, 6).flatten(3, 4).to(dtype) + mask


@lru_cache(maxsize=64)
@torch.inference_mode(False)  # what is made and kept within inference_mode could not serve a later training
def tile_mask(tiling: Tiling, dtype: torch.dtype, device: torch.device) -> Tensor:
    """0 where a query sees a key, else -inf: (kinds of rows, kinds of columns, 1, queries, keys)."""
    rows, columns = tiling.rows.seen(device), tiling.columns.seen(device)  # (kinds, size, span)
    seen = rows[:, None, :, None, :, None] & columns[:, None, :, None, :]
    seen = seen.flatten(4, 5).flatten(2, 3)[:, :, None]
    return torch.zeros(seen.shape, dtype=dtype, device=device).masked_fill_(~seen, float("-inf"))


def table_gradient(gradient: Tensor, tiling: Tiling) -> Tensor:
    """From the gradient of what `tile_bias` returns to that of the table, by matrix products instead of scattering."""
    rows, columns = tiling.rows, tiling.columns
    tiles = gradient.unflatten(4, (rows.span, columns.span)).unflatten(3, (rows.size, columns.size))
    vertical, horizontal = rows.table_places(gradient), columns.table_places(gradient)
    return torch.einsum("rchikjl,rija,cklb->hab", tiles, vertical, horizontal)


def runs(kinds: Sequence[int]) -> list[tuple[int, slice]]:
    """Neighbors of the same kind, together."""
    result, start = [], 0
    for kind, group in groupby(kinds):
        stop = start + len(list(group))
        result.append((kind, slice(start, stop)))
        start = stop
    return result


class Work(NamedTuple):
    """One portion, copied into the layout of tiles and strips, and what forward and backward both do with it.

    Attributes:
        tiling: of the whole map.
        kinds: of the columns of tiles at hand.
        queries: (rows, matrices, queries, head_dim), with matrices = batch * heads * columns.
        keys, values: (matrices, height * span, head_dim).
        added: (kinds of rows, heads or 1, columns, queries, keys), from `tile_bias`.
        heads, scale: of the attention.
    """

    tiling: Tiling
    kinds: tuple[int, ...]
    queries: Tensor
    keys: Tensor
    values: Tensor
    added: Tensor
    heads: int
    scale: float

    @property
    def shape(self) -> torch.Size:
        """Of the scores of one row of tiles: (matrices, queries, keys)."""
        return torch.Size((self.keys.shape[0], self.tiling.queries, self.tiling.keys))

    def by_column(self, scores: Tensor) -> Tensor:
        """(matrices, queries, keys) -> (batch, heads, columns, queries, keys)."""
        return scores.unflatten(0, (-1, self.heads, len(self.kinds)))

    def weigh(self, row: int, out: Tensor, log_normalizer: Tensor | None = None) -> None:
        """Writes the weights of one row of tiles (matrices, queries, keys), and log sum exp of its scores (..., 1)."""
        keys = self.keys[:, self.tiling.window(row)]
        self.by_column(out).copy_(self.added[self.tiling.rows.kinds[row]])
        out.baddbmm_(self.queries[row], keys.transpose(1, 2), alpha=self.scale)
        if log_normalizer is None:
            torch.softmax(out, dim=-1, out=out)
            return
        highest = out.amax(dim=-1, keepdim=True)
        torch.softmax(out, dim=-1, out=out)
        # The highest score has the weight exp(score - log sum exp).
        torch.sub(highest, out.amax(dim=-1, keepdim=True).log_(), out=log_normalizer)


def prepare(
    query: Tensor, key: Tensor, value: Tensor, added: Tensor, tiling: Tiling, portion: Portion, scale: float
) -> Work:
    """Copies one portion of the inputs."""
    columns = portion.columns
    kinds = tiling.columns.kinds[columns]
    return Work(
        tiling,
        kinds,
        to_tiles(portion.queries(query, tiling), tiling),
        to_strips(key[portion.images], tiling, columns),
        to_strips(value[portion.images], tiling, columns),
        added[:, list(kinds)].transpose(1, 2),
        query.shape[3],
        scale,
    )


def weights_worth_keeping(query: Tensor, tiling: Tiling) -> int:
    """How many weights the forward should keep for the backward: all, or none if they need much memory."""
    batch, _, _, heads, head_dim = query.shape
    several = tiling.keys > 6 * head_dim  # the weights are twice as large as query, key and value
    return 0 if several else batch * heads * tiling.scores


def dropped(weights: Tensor, dropout: float, seed: Tensor | None, place: int) -> Tensor:
    """The factors of dropout: 0, or 1 / (1 - dropout); the same for the same seed and place."""
    assert seed is not None
    generator = torch.Generator(weights.device).manual_seed(int(seed) + place)
    return torch.empty_like(weights).bernoulli_(1 - dropout, generator=generator).div_(1 - dropout)


@torch.library.custom_op("visattn::neighborhood_attention", mutates_args=())
def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    table: Tensor | None,
    kernel_size: Sequence[int],
    scale: float,
    dropout: float,
    seed: Tensor | None,
    keep: bool,
    normalize: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """The output of neighborhood attention without dilation; the weights if they are to be kept and worth it; and, if
    `normalize`, log sum exp of each query's scores (batch, height, width, heads, 1)."""
    tiling = tiling_of(query, kernel_size)
    added = tile_bias(tiling, table, query.dtype, query.device)
    output = torch.empty(query.shape, dtype=query.dtype, device=query.device)
    log_normalizer = query.new_empty((*query.shape[:-1], 1) if normalize else 0)
    kept = query.new_empty(weights_worth_keeping(query, tiling) if keep else 0)
    used = place = 0
    for portion in portions(query, tiling):
        work = prepare(query, key, value, added, tiling, portion, scale)
        attended = torch.empty_like(work.queries)
        normalizers = work.queries.new_empty(*work.queries.shape[:-1], 1) if normalize else None
        scratch = query.new_empty(0 if kept.numel() else work.shape)
        for row in range(len(tiling.rows.starts)):
            weights = kept[used : used + work.shape.numel()].view(work.shape) if kept.numel() else scratch
            used += weights.numel()
            work.weigh(row, weights, None if normalizers is None else normalizers[row])
            shown = weights * dropped(weights, dropout, seed, place) if dropout else weights
            torch.bmm(shown, work.values[:, tiling.window(row)], out=attended[row])
            place += 1
        from_tiles(attended, tiling, portion.queries(output[:], tiling))
        if normalizers is not None:
            from_tiles(normalizers, tiling, portion.queries(log_normalizer[:], tiling))
    return output, kept, log_normalizer


@torch.library.custom_op("visattn::neighborhood_attention_backward", mutates_args=())
def attend_backward(
    gradient: Tensor,
    normalizer_gradient: Tensor | None,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    table: Tensor | None,
    kept: Tensor,
    kernel_size: Sequence[int],
    scale: float,
    dropout: float,
    seed: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The gradients of query, key, value and table; the last is empty if there is no table."""
    tiling = tiling_of(query, kernel_size)
    added = tile_bias(tiling, table, query.dtype, query.device)
    added_gradient = torch.zeros(added.shape if table is not None else 0, device=query.device)
    if query.dtype == torch.float64:
        added_gradient = added_gradient.double()
    query_gradient = torch.empty(query.shape, dtype=query.dtype, device=query.device)
    key_gradient, value_gradient = torch.zeros_like(query_gradient), torch.zeros_like(query_gradient)
    used = place = 0
    for portion in portions(query, tiling):
        work = prepare(query, key, value, added, tiling, portion, scale)
        keys, values = torch.zeros_like(work.keys), torch.zeros_like(work.values)
        scratch = query.new_empty(0 if kept.numel() else work.shape)
        scores = query.new_empty(work.shape)  # their gradients
        summand = query.new_empty(work.keys.shape[0], tiling.keys, query.shape[4])
        for row in range(len(tiling.rows.starts)):
            window = tiling.window(row)
            high = tiling.rows.size
            outer = portion.queries(gradient, tiling)[:, row * high : (row + 1) * high]
            (gradients,) = to_tiles(outer, tiling)  # (matrices, queries, head_dim)
            if kept.numel():
                weights = kept[used : used + scores.numel()].view(work.shape)
                used += weights.numel()
            else:
                weights = scratch
                work.weigh(row, weights)
            torch.bmm(gradients, work.values[:, window].transpose(1, 2), out=scores)
            shown = weights
            if dropout:
                factors = dropped(weights, dropout, seed, place)
                shown = weights * factors
                scores.mul_(factors)
            # Matrix products run in parallel only into contiguous memory, hence the detour for slices of strips.
            values[:, window].add_(torch.bmm(shown.transpose(1, 2), gradients, out=summand))
            torch.ops.aten._softmax_backward_data.out(scores, weights, -1, weights.dtype, grad_input=scores)
            if normalizer_gradient is not None:  # whose gradient in the scores are the weights
                outer = portion.queries(normalizer_gradient, tiling)[:, row * high : (row + 1) * high]
                scores.addcmul_(weights, to_tiles(outer, tiling)[0])
            keys[:, window].add_(torch.bmm(scores.transpose(1, 2), work.queries[row], out=summand), alpha=scale)
            queries = work.queries[row]  # no longer needed: their gradients take their place
            torch.baddbmm(queries, scores, work.keys[:, window], beta=0, alpha=scale, out=queries)
            if table is not None:
                sums = added_gradient[tiling.rows.kinds[row]]  # (kinds of columns, heads, queries, keys)
                for kind, run in runs(work.kinds):
                    sums[kind] += work.by_column(scores)[:, :, run].sum(dim=(0, 2), dtype=sums.dtype)
            place += 1
        from_tiles(work.queries, tiling, portion.queries(query_gradient, tiling))
        add_strips(keys, tiling, portion.columns, key_gradient[portion.images])
        add_strips(values, tiling, portion.columns, value_gradient[portion.images])
    table_grad = added_gradient if table is None else table_gradient(added_gradient, tiling).to(table.dtype)
    return query_gradient, key_gradient, value_gradient, table_grad


@attend.register_fake
def _(query, key, value, table, kernel_size, scale, dropout, seed, keep, normalize):
    kept = weights_worth_keeping(query, tiling_of(query, kernel_size)) if keep else 0
    log_normalizer = query.new_empty((*query.shape[:-1], 1) if normalize else 0)
    return torch.empty(query.shape, dtype=query.dtype, device=query.device), query.new_empty(kept), log_normalizer


@attend_backward.register_fake
def _(gradient, normalizer_gradient, query, key, value, table, kept, kernel_size, scale, dropout, seed):
    new = [torch.empty(query.shape, dtype=query.dtype, device=query.device) for _ in range(3)]
    return *new, query.new_empty(0) if table is None else torch.empty_like(table)


def save_for_backward(ctx, inputs, output) -> None:
    query, key, value, table, kernel_size, scale, dropout, seed, _, _ = inputs
    ctx.save_for_backward(query, key, value, table, output[1], seed)
    ctx.options = (kernel_size, scale, dropout)
    ctx.set_materialize_grads(False)


def backward(ctx, gradient, _, normalizer_gradient):
    if gradient is None and normalizer_gradient is None:  # the kept weights never have a gradient
        return (None,) * 10
    query, key, value, table, kept, seed = ctx.saved_tensors
    gradient = torch.zeros_like(query) if gradient is None else gradient
    gradients = attend_backward(gradient, normalizer_gradient, query, key, value, table, kept, *ctx.options, seed)
    return *gradients[:3], None if table is None else gradients[3], None, None, None, None, None, None


attend.register_autograd(backward, setup_context=save_for_backward)
