"""Graph attention on maps: a cell sees those most like it, wherever they are, or those next to it."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from visattn.attention.focal import square_shares
from visattn.attention.pooled import pool_cells
from visattn.attention.projected import ProjectedAttention
from visattn.attention.self_attention import check_grid


def map_graph_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    score: Tensor,
    neighbors: Tensor,
    negative_slope: float = 0.2,
    dropout: float = 0.0,
) -> Tensor:
    """Every query sees its neighbors, by the softmax of score . LeakyReLU(query + key). Cost: queries * n * head_dim.

    With key = value this is GATv2 over the edges from the neighbors.

    Args:
        query: (batch, queries, heads, head_dim).
        key, value: (batch, keys, heads, head_dim).
        score: (heads, head_dim).
        neighbors: (batch, queries, n), or (queries, n) for all images, long: the keys that a query sees, at least one;
            -1 for none.
        negative_slope: of LeakyReLU.
        dropout: probability that a weight is dropped.

    Returns:
        (batch, queries, heads, head_dim).

    Source: Brody et al. 2022, https://arxiv.org/abs/2105.14491, equation 7.
    """
    weights = neighbor_weights(query, gather_neighbors(key, neighbors), score, neighbors, negative_slope)
    weights = functional.dropout(weights, dropout)
    return (weights.unsqueeze(-1) * gather_neighbors(value, neighbors)).sum(dim=2)


def neighbor_weights(
    query: Tensor, key: Tensor, score: Tensor, neighbors: Tensor, negative_slope: float = 0.2
) -> Tensor:
    """The weights (batch, queries, n, heads) of keys (batch, queries, n, heads, head_dim), one for each neighbor."""
    joint = functional.leaky_relu(query.unsqueeze(2) + key, negative_slope).flatten(3)
    # As a matrix product it needs no second tensor of the size of `joint`.
    scores = joint @ torch.block_diag(*score.to(joint.dtype).unsqueeze(-1))  # (batch, queries, n, heads)
    return scores.masked_fill(neighbors.unsqueeze(-1) < 0, float("-inf")).softmax(dim=2)


def gather_neighbors(cells: Tensor, neighbors: Tensor) -> Tensor:
    """Cells (batch, keys, ...) of the neighbors ([batch,] queries, n): (batch, queries, n, ...); any cell for -1."""
    batch, keys = cells.shape[:2]
    first = (torch.arange(batch, device=cells.device) * keys)[:, None, None]
    places = neighbors.clamp(min=0) + first  # (batch, queries, n), among the cells of all images
    # Rows of a matrix, since these are gathered and their gradients added up several times faster than elements.
    rows = cells.flatten(2).flatten(0, 1).index_select(0, places.flatten())
    return rows.view(*places.shape, *cells.shape[2:])


def nearest_cells(
    tokens: Tensor, candidates: Tensor, count: int, dilation: int = 1, closeness: Tensor | None = None
) -> Tensor:
    """The candidates most like each token, the nearest first: (batch, N, count), long.

    With dilation d, every d-th of the count * d nearest is taken. Where there are fewer candidates, dilation and then
    count shrink to what fits. Cost: tokens * candidates * channels.

    Args:
        tokens: (batch, N, channels).
        candidates: (batch, M, channels), compared by the squared distance of directions to the tokens.
        closeness: (N, M), subtracted from the distance.

    Source: Han et al. 2022 (Vision GNN, https://arxiv.org/abs/2206.00272), section 3.1; dilation: Li et al. 2019
        (DeepGCNs, https://arxiv.org/abs/1904.03751), section 3.3.
    """
    count = min(count, candidates.shape[1])
    dilation = min(dilation, candidates.shape[1] // count)
    wide = torch.promote_types(tokens.dtype, torch.float32)  # numbers of 16 bits would make many equal
    directions = [functional.normalize(cells.detach().to(wide), dim=-1) for cells in (tokens, candidates)]
    likeness = directions[0] @ directions[1].transpose(1, 2)  # (batch, N, M)
    if closeness is not None:
        likeness = likeness + closeness.to(wide) / 2  # the squared distance is 2 - 2 * likeness
    return likeness.topk(count * dilation, dim=-1).indices[..., ::dilation]


def adjacent_cells(grid: tuple[int, int], device: torch.device | None = None) -> Tensor:
    """Each cell and the eight around it: (height * width, 9), long, -1 beyond the map."""
    sides = [torch.arange(side, device=device)[:, None] + torch.arange(-1, 2, device=device) for side in grid]
    rows, columns = (
        cells.masked_fill((cells < 0) | (cells >= side), -1) for cells, side in zip(sides, grid, strict=True)
    )  # (height, 3), (width, 3)
    rows, columns = rows[:, None, :, None], columns[None, :, None, :]
    return torch.where((rows < 0) | (columns < 0), -1, rows * grid[1] + columns).flatten(2).flatten(0, 1)


@lru_cache(maxsize=64)
@torch.inference_mode(False)  # what is made and kept within inference_mode could not serve a later training
def grid_closeness(grid: tuple[int, int], dim: int, reduction: int = 1, device: torch.device | None = None) -> Tensor:
    """How close each cell is to each square of reduction x reduction cells, from 1 down: (height * width, squares).

    It is twice the mean product of sinusoidal position embeddings of `dim` channels. As in the published network, the
    table of cells is shrunk to one of squares along its flattened columns, bicubically, which puts squares elsewhere
    than they are.

    Source: Han et al. 2022, the published code (https://github.com/huawei-noah/Efficient-AI-Backbones, vig_pytorch).
    """
    frequencies = 10_000.0 ** -(torch.arange(dim // 4, dtype=torch.float64, device=device) / (dim // 4))
    rows, columns = (
        (torch.arange(side, device=device)[:, None] * frequencies).cos().mean(dim=1).float() for side in grid
    )  # by the distance along the axis
    cells = torch.arange(grid[0] * grid[1], device=device)[:, None]
    squares = -(-grid[0] // reduction) * -(-grid[1] // reduction)
    place = (torch.arange(squares, dtype=torch.float64, device=device) + 0.5) * (len(cells) / squares) - 0.5
    before = place.floor()
    closeness = torch.zeros(len(cells), squares, device=device)
    for step in range(-1, 3):
        column = (before + step).clamp(0, len(cells) - 1).long()  # (squares,), of the table of cells
        down, right = cells // grid[1] - column // grid[1], cells % grid[1] - column % grid[1]
        share = cubic_share((place - before - step).abs()).float()
        closeness += (rows[down.abs()] + columns[right.abs()]) / 2 * share
    return closeness


def cubic_share(distance: Tensor) -> Tensor:
    """How much a sample at this distance, up to 2, counts in torch's bicubic interpolation."""
    near = (1.25 * distance - 2.25) * distance**2 + 1
    far = ((-0.75 * distance + 3.75) * distance - 6) * distance + 3
    return torch.where(distance <= 1, near, far)


class MapGraph(NamedTuple):
    """Which cells of a map each cell sees.

    Attributes:
        kind: "nearest", those with the most alike tokens, itself among them, wherever they are; or "grid", itself and
            the eight around it.
        neighbors: of "nearest": how many.
        dilation: of "nearest": every how many-th of the nearest; it and neighbors shrink to what fits on small maps.
        reduction: of "nearest": side in cells of the squares whose means are seen in place of cells.
        closeness: of "nearest": whether cells that are close to each other count as more alike, see `grid_closeness`.
    """

    kind: str = "nearest"
    neighbors: int = 9
    dilation: int = 1
    reduction: int = 1
    closeness: bool = False

    def check(self) -> None:
        """Refuses what is no graph.

        Raises:
            ValueError: the kind is unknown, or a number below 1.
        """
        if self.kind not in ("nearest", "grid"):
            raise ValueError(f"graph {self.kind!r} is unknown; choose nearest or grid")
        if min(self.neighbors, self.dilation, self.reduction) < 1:
            raise ValueError(
                f"neighbors {self.neighbors}, dilation {self.dilation}, reduction {self.reduction} must be at least 1"
            )

    def pool(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        """Tokens (batch, N, channels) of the map to those of what is seen (batch, M, channels)."""
        if self.kind == "grid" or self.reduction == 1:
            return tokens
        return pool_cells(tokens.unflatten(1, grid), self.reduction)

    def connect(self, tokens: Tensor, candidates: Tensor, grid: tuple[int, int]) -> Tensor:
        """Which candidates, pooled tokens, each token sees: (batch, N, n), or (N, n) of all images; -1 for none."""
        if self.kind == "grid":
            return adjacent_cells(grid, tokens.device)
        closeness = None
        if self.closeness:
            closeness = grid_closeness(tuple(grid), tokens.shape[-1], self.reduction, tokens.device)
        return nearest_cells(tokens, candidates, self.neighbors, self.dilation, closeness)


class MapGraphAttention(ProjectedAttention):
    """Graph attention of several heads among the cells of a map: GATv2 whose values have a projection of their own.

    What it records are the weights of the neighbors; of "nearest", whose neighbors differ from image to image, with
    zeros for all other cells, those of a square spread evenly over its cells.

    Args:
        dim, num_heads, **options: see `ProjectedAttention`.
        graph, neighbors, dilation, reduction, closeness: kind and attributes of a `MapGraph`.
        negative_slope: of LeakyReLU.

    Raises:
        ValueError: the graph is unknown, or a number of it below 1.

    Source: Brody et al. 2022, https://arxiv.org/abs/2105.14491, over the graph of Han et al. 2022 (Vision GNN,
        https://arxiv.org/abs/2206.00272).
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        graph: str = "nearest",
        neighbors: int = 9,
        dilation: int = 1,
        reduction: int = 1,
        closeness: bool = False,
        negative_slope: float = 0.2,
        **options: Any,
    ) -> None:
        super().__init__(dim, num_heads, **options)
        self.graph = MapGraph(graph, neighbors, dilation, reduction, closeness)
        self.graph.check()
        self.negative_slope = negative_slope
        self.score = nn.Parameter(torch.empty(num_heads, self.head_dim))
        nn.init.xavier_uniform_(self.score)

    def forward(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        """Tokens (batch, height * width, dim) of the grid (height, width) in, tokens of the same shape out.

        Raises:
            ValueError: the number of tokens isn't height * width.
        """
        check_grid(tokens[:, None], grid, "graph")
        neighbors = self.graph.connect(tokens, self.graph.pool(tokens, grid), grid)
        heads = (self.num_heads, self.head_dim)
        width = self.num_heads * self.head_dim
        query, key_value = self.qkv(tokens).split([width, 2 * width], dim=-1)
        key_value = self.graph.pool(key_value, grid)  # the same as keys and values of pooled tokens
        query, (key, value) = query.unflatten(2, heads), key_value.unflatten(2, (2, *heads)).unbind(2)
        query, key = self.normalize(query, key)
        dropout = self.active_dropout()
        if self.record is None:
            attended = map_graph_attention(query, key, value, self.score, neighbors, self.negative_slope, dropout)
        else:
            seen = gather_neighbors(key, neighbors)
            weights = neighbor_weights(query, seen, self.score, neighbors, self.negative_slope)
            self.show(weights.permute(0, 3, 1, 2), neighbors, grid, keys=key.shape[1])
            weights = functional.dropout(weights, dropout).unsqueeze(-1)
            attended = (weights * gather_neighbors(value, neighbors)).sum(dim=2)
        return self.project(attended.flatten(2))

    def show(self, weights: Tensor, neighbors: Tensor, grid: tuple[int, int], keys: int) -> None:
        """Records weights (batch, heads, N, n)."""
        if self.graph.kind == "grid":
            self.record(weights, neighbors)
            return
        dense = weights.new_zeros(*weights.shape[:3], keys)
        dense = dense.scatter(3, neighbors[:, None].expand_as(weights), weights)
        if self.graph.reduction > 1:
            dense = dense @ square_shares(grid, self.graph.reduction).to(dense)
        self.record(dense, None)
