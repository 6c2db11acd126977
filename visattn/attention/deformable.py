"""Multi-scale deformable attention: each query looks at a few learned points of several maps, between their cells."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

Grids = Sequence[tuple[int, int]]


def deformable_attention(
    value: Tensor,
    locations: Tensor,
    weights: Tensor,
    grids: Grids,
    points: Sequence[int] | None = None,
    *,
    sampling: str = "bilinear",
) -> Tensor:
    """The weighted sum of values at a few places, each interpolated bilinearly among four cells, zeros beyond the map.

    Cost: queries * samples * 4 * head_dim, however large the maps are.

    Args:
        value: (batch, keys, heads, head_dim), the cells of all maps, those of a map in reading order, the maps behind
            each other.
        locations: (batch, queries, heads, samples, 2), x and y of each sample as parts of its map's width and height:
            (0, 0) is the corner of the map, not the center of its first cell.
        weights: (batch, queries, heads, samples), after the softmax.
        grids: (height, width) of each map.
        points: how many of the samples belong to each map, in the order of the maps; None: equally many.
        sampling: "bilinear", or "nearest": the one cell whose column and row are nearest to x * width and y * height,
            kept within the map, without a gradient for the locations.

    Returns:
        (batch, queries, heads, head_dim).

    Raises:
        ValueError: keys don't fill the grids, or the points of all maps aren't the samples, or sampling is unknown.

    Source: Zhu et al. 2021, https://arxiv.org/abs/2010.04159, equation 3; nearest cells Lv et al. 2024,
        https://arxiv.org/abs/2407.17140 (RT-DETRv2), section 3.1, as published in code.
    """
    batch, keys, heads, head_dim = value.shape
    queries, samples = locations.shape[1], locations.shape[3]
    if sampling not in ("bilinear", "nearest"):
        raise ValueError(f"sampling {sampling!r} is unknown; choose bilinear or nearest")
    find = bilinear_cells if sampling == "bilinear" else nearest_cells
    cells, shares = find(locations, grids, samples_of_maps(keys, samples, grids, points))
    shares = (shares * weights[..., None, :]).to(value.dtype)  # (batch, queries, heads, 4 or 1, samples)
    # Each head of each key is a row of one table, and each head of each query sums some rows of it.
    image = torch.arange(batch, device=value.device, dtype=cells.dtype).view(-1, 1, 1, 1, 1) * keys
    rows = (cells + image) * heads + torch.arange(heads, device=value.device, dtype=cells.dtype).view(-1, 1, 1)
    sums = (batch * queries * heads, shares.shape[3] * samples)
    table = value.reshape(batch * keys * heads, head_dim)
    attended = WeightedRows.apply(table, rows.view(sums), shares.reshape(sums))
    return attended.view(batch, queries, heads, head_dim)


def deformable_attention_weights(
    locations: Tensor,
    weights: Tensor,
    grids: Grids,
    points: Sequence[int] | None = None,
    *,
    sampling: str = "bilinear",
) -> Tensor:
    """How much `deformable_attention` takes from each key: (batch, heads, queries, keys).

    A row sums to 1 where all samples are within the maps.
    """
    batch, queries, heads, samples, _ = locations.shape
    keys = sum(height * width for height, width in grids)
    find = bilinear_cells if sampling == "bilinear" else nearest_cells
    cells, shares = find(locations, grids, samples_of_maps(keys, samples, grids, points))
    shares = (shares * weights[..., None, :]).transpose(1, 2).flatten(3)  # (batch, heads, queries, 4 * samples)
    dense = shares.new_zeros(batch, heads, queries, keys)
    return dense.scatter_add(3, cells.transpose(1, 2).flatten(3).long(), shares)


def bilinear_cells(locations: Tensor, grids: Grids, points: Sequence[int]) -> tuple[Tensor, Tensor]:
    """The four cells around each sample and their shares of it, both (batch, queries, heads, 4, samples).

    Cells beyond a map have a share of 0.
    """
    sizes, first = maps_of_samples(grids, points, locations.device)  # (2, samples), (samples,)
    locations = locations if locations.dtype == torch.float64 else locations.float()
    (left, of_left, right, of_right), (upper, of_upper, lower, of_lower) = (
        neighbours(along * size - 0.5, size) for along, size in zip(locations.unbind(-1), sizes, strict=True)
    )
    upper, lower = upper * sizes[0] + first, lower * sizes[0] + first
    shares = torch.stack([of_upper * of_left, of_upper * of_right, of_lower * of_left, of_lower * of_right], dim=-2)
    return torch.stack([upper + left, upper + right, lower + left, lower + right], dim=-2), shares


def neighbours(places: Tensor, size: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Along one axis the cell before each place and its share, and the cell behind it and its share.

    Args:
        places: (..., samples), in cells, from the center of the first one.
        size: (samples,), cells of the axis.
    """
    before = places.detach().floor()
    behind = before + 1
    last = (size - 1).to(before.dtype)
    cell_before, cell_behind = before.clamp(min=0).minimum(last), behind.clamp(min=0).minimum(last)
    share = places - before
    share_before, share_behind = (1 - share) * (before == cell_before), share * (behind == cell_behind)
    return cell_before.int(), share_before, cell_behind.int(), share_behind


def nearest_cells(locations: Tensor, grids: Grids, points: Sequence[int]) -> tuple[Tensor, Tensor]:
    """The cell of each sample and its share, which is 1, both (batch, queries, heads, 1, samples)."""
    sizes, first = maps_of_samples(grids, points, locations.device)
    column, row = (
        (along * size + 0.5).int().clamp(min=0).minimum(size - 1)
        for along, size in zip(locations.detach().unbind(-1), sizes, strict=True)
    )
    cells = (row * sizes[0] + column + first)[..., None, :]
    return cells, torch.ones_like(cells, dtype=locations.dtype)


def maps_of_samples(grids: Grids, points: Sequence[int], device: torch.device) -> tuple[Tensor, Tensor]:
    """Of each sample's map the width and the height, (2, samples), and the number of its first cell, (samples,)."""
    widths, heights, first, cells = [], [], [], 0
    for (height, width), count in zip(grids, points, strict=True):
        widths += [width] * count
        heights += [height] * count
        first += [cells] * count
        cells += height * width
    numbers = torch.tensor([widths, heights, first], device=device, dtype=torch.int32)
    return numbers[:2], numbers[2]


def samples_of_maps(keys: int, samples: int, grids: Grids, points: Sequence[int] | None) -> tuple[int, ...]:
    """How many samples belong to each map.

    Raises:
        ValueError: as `deformable_attention` says.
    """
    cells = sum(height * width for height, width in grids)
    if keys != cells:
        sides = ", ".join(f"{height}x{width}" for height, width in grids)
        raise ValueError(f"{keys} keys don't fill maps of {sides}, which have {cells} cells")
    if points is None:
        if samples % len(grids):
            raise ValueError(f"{samples} samples can't be shared equally by {len(grids)} maps; say points=")
        return (samples // len(grids),) * len(grids)
    if len(points) != len(grids) or sum(points) != samples:
        raise ValueError(f"points {tuple(points)} don't say how {samples} samples belong to {len(grids)} maps")
    return tuple(points)


class WeightedRows(torch.autograd.Function):
    """Sums of weighted rows of a table, as `embedding_bag`, with a backward that is several times as fast on CPUs.

    Torch's own handles one row after the other; here the gradient of the table is itself such sums, of rows of the
    gradient in the order of the table, and that of the weights are the entries of a matrix product at the places that
    were summed.
    """

    @staticmethod
    def forward(ctx: Any, table: Tensor, rows: Tensor, weights: Tensor) -> Tensor:
        """Table (R, dim), rows (sums, n), int32, and their weights (sums, n) to (sums, dim)."""
        ctx.save_for_backward(table, rows, weights)
        return functional.embedding_bag(rows, table, mode="sum", per_sample_weights=weights)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, None, Tensor | None]:
        table, rows, weights = ctx.saved_tensors
        gradient = gradient.contiguous()
        of_table = of_weights = None
        if ctx.needs_input_grad[0]:
            sorted_rows, order = rows.flatten().sort()
            starts = torch.searchsorted(sorted_rows, torch.arange(len(table), device=rows.device, dtype=rows.dtype))
            of_table = functional.embedding_bag(
                order.div(rows.shape[1], rounding_mode="floor"),
                gradient,
                starts,
                mode="sum",
                per_sample_weights=weights.flatten()[order],
            )
        if ctx.needs_input_grad[2]:
            of_weights = products_at(gradient, table, rows)
        return of_table, None, of_weights


@torch.library.custom_op("visattn::products_at", mutates_args=())
def products_at(gradient: Tensor, table: Tensor, rows: Tensor) -> Tensor:
    """The products of each row i of (sums, dim) with the rows (sums, n)[i] of a table (R, dim): (sums, n).

    An operator of its own, since torch.compile doesn't know the sparse matrices by which CPUs are fast.
    """
    if gradient.device.type != "cpu" or rows.shape[1] > len(table):  # the sparse product takes no fuller rows
        return torch.einsum("sd,snd->sn", gradient, table[rows])
    sums, n = rows.shape
    exact = torch.promote_types(gradient.dtype, torch.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # sparse matrices of this layout warn that they are new
        places = torch.sparse_csr_tensor(
            torch.arange(0, (sums + 1) * n, n, dtype=rows.dtype),
            rows.flatten(),
            gradient.new_zeros(sums * n, dtype=exact),
            size=(sums, len(table)),
            check_invariants=False,  # columns needn't rise for this product
        )
    found = torch.sparse.sampled_addmm(places, gradient.to(exact), table.to(exact).t(), beta=0.0)
    return found.values().view(sums, n).to(gradient.dtype)


@products_at.register_fake
def _(gradient: Tensor, table: Tensor, rows: Tensor) -> Tensor:
    return gradient.new_empty(rows.shape)


class DeformableAttention(nn.Module):
    """Queries look at a few points around where they stand, of several maps at once, as far off as they choose.

    Args:
        dim: channels of queries and of cells.
        num_heads: attention heads; the points of each begin in a direction of their own.
        levels: maps.
        points: that each head looks at in each map; a sequence says it map by map.
        offset_scale: how far apart the points around a box stand, as a part of the box and for as many units of the
            offsets as the map has points.
        sampling: see `deformable_attention`.

    Attributes:
        record: as in `ProjectedAttention`, with the weights spread over all cells of all maps in their order.

    Raises:
        ValueError: num_heads doesn't divide dim, or points don't say it for each map.

    Source: Zhu et al. 2021, https://arxiv.org/abs/2010.04159, section 4.1 and A.4; points of each map, offset_scale and
        sampling Lv et al. 2024 (RT-DETRv2), https://arxiv.org/abs/2407.17140, section 3.1.
    """

    record: Any = None  # set on an instance; a type of callable would be read as that of a method
    level: Tensor
    scale: Tensor

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        levels: int = 4,
        points: int | Sequence[int] = 4,
        offset_scale: float = 0.5,
        sampling: str = "bilinear",
    ) -> None:
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"{num_heads} heads don't divide {dim} channels")
        self.points = (points,) * levels if isinstance(points, int) else tuple(points)
        if len(self.points) != levels:
            raise ValueError(f"points {self.points} must be one number for each of {levels} maps")
        self.num_heads, self.sampling = num_heads, sampling
        samples = sum(self.points)
        self.offsets = nn.Linear(dim, num_heads * samples * 2)
        self.weights = nn.Linear(dim, num_heads * samples)
        self.value = nn.Linear(dim, dim)
        self.projection = nn.Linear(dim, dim)
        for layer in (self.offsets, self.weights):
            nn.init.zeros_(layer.weight)
        for layer in (self.value, self.projection):
            nn.init.xavier_uniform_(layer.weight)
        for layer in (self.weights, self.value, self.projection):
            nn.init.zeros_(layer.bias)
        angles = torch.arange(num_heads) * (2 * math.pi / num_heads)
        direction = torch.stack([angles.cos(), angles.sin()], dim=1)  # (heads, 2)
        direction = direction / direction.abs().amax(dim=1, keepdim=True)
        steps = torch.cat([torch.arange(1, count + 1) for count in self.points])[:, None]  # (samples, 1)
        with torch.no_grad():
            self.offsets.bias.copy_((direction[:, None] * steps).flatten())  # of (heads, samples, 2)
        level = torch.arange(levels).repeat_interleave(torch.tensor(self.points))
        scale = torch.tensor([offset_scale / count for count in self.points])[level, None]
        self.register_buffer("level", level, persistent=False)  # (samples,), of each sample
        self.register_buffer("scale", scale, persistent=False)  # (samples, 1)

    def forward(
        self, queries: Tensor, reference: Tensor, context: Tensor, grids: Grids, padding: Tensor | None = None
    ) -> Tensor:
        """Queries (batch, Q, dim) to the same.

        Args:
            reference: (batch, Q, levels or 1, 2 or 4), where each query stands on each map, or on all: a point, from
                which offsets are counted in cells, or a box (center x, center y, width, height), by whose size they are
                scaled; as parts of the map's width and height.
            context: (batch, keys, dim), the cells of all maps, those of a map in reading order, the maps behind each
                other.
            grids: (height, width) of each map.
            padding: (batch, keys), bool, True for cells that count as zeros.
        """
        value = self.value(context)  # (batch, keys, dim)
        if padding is not None:
            value = value.masked_fill(padding[..., None], 0.0)
        value = value.unflatten(2, (self.num_heads, -1))
        weights = self.weights(queries).unflatten(2, (self.num_heads, -1)).softmax(dim=-1)  # (batch, Q, heads, samples)
        offsets = self.offsets(queries).unflatten(2, (self.num_heads, -1, 2))  # (batch, Q, heads, samples, 2)
        if reference.shape[2] > 1:
            reference = reference[:, :, self.level]
        reference = reference[:, :, None]  # (batch, Q, 1, samples or 1, 2 or 4)
        if reference.shape[-1] == 2:
            sizes = torch.tensor([[width, height] for height, width in grids], device=queries.device)
            locations = reference + offsets / sizes[self.level]
        else:
            locations = reference[..., :2] + offsets * self.scale * reference[..., 2:]
        if self.record is None:
            attended = deformable_attention(value, locations, weights, grids, self.points, sampling=self.sampling)
        else:
            seen = deformable_attention_weights(locations, weights, grids, self.points, sampling=self.sampling)
            self.record(seen, None)  # (batch, heads, Q, keys)
            attended = (seen.to(value.dtype) @ value.transpose(1, 2)).transpose(1, 2)  # (batch, Q, heads, head_dim)
        return self.projection(attended.flatten(2))
