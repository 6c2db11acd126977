"""Attention to a coarser map: keys and values of a few cells together."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from visattn.attention.dot_product import attention_weights, dot_product_attention
from visattn.attention.projected import ProjectedAttention
from visattn.attention.self_attention import check_grid


def pooled_attention(
    query: Tensor, key: Tensor, value: Tensor, reduction: int, scale: float | None = None, dropout: float = 0.0
) -> Tensor:
    """Every query sees the means of squares of reduction x reduction cells. Cost: tokens^2 / reduction^2 * head_dim.

    Args:
        query, key, value: (batch, height, width, heads, head_dim).
        reduction: side of a square in cells; squares at the lower and right border may have fewer.
        scale: of the scores; None is 1 / sqrt(head_dim).
        dropout: probability that a weight is dropped.

    Returns:
        (batch, height, width, heads, head_dim).

    Raises:
        ValueError: reduction is below 1.

    Source: the average pooling of PVT v2 (Wang et al. 2022, https://arxiv.org/abs/2106.13797, section 3.2) and MViT
        (Fan et al. 2021, https://arxiv.org/abs/2104.11227, section 3.1).
    """
    grid = query.shape[1:3]
    query = query.flatten(1, 2).transpose(1, 2)  # (batch, heads, N, head_dim)
    key, value = (pool_cells(cells.flatten(3), reduction).unflatten(2, cells.shape[3:]) for cells in (key, value))
    key, value = key.transpose(1, 2), value.transpose(1, 2)  # (batch, heads, squares, head_dim)
    attended = dot_product_attention(query, key, value, dropout=dropout, scale=scale)
    return attended.transpose(1, 2).unflatten(1, grid)


def pool_cells(cells: Tensor, reduction: int) -> Tensor:
    """(batch, height, width, channels) to the means of squares (batch, squares, channels), row by row."""
    if reduction < 1:
        raise ValueError(f"reduction {reduction} must be at least 1")
    pooled = functional.avg_pool2d(cells.permute(0, 3, 1, 2), reduction, ceil_mode=True)
    return pooled.flatten(2).transpose(1, 2)


class PooledAttention(ProjectedAttention):
    """Self-attention of several heads whose keys and values are made of a coarser map.

    What it records are the weights of the squares, each spread evenly over its cells.

    Args:
        dim, num_heads, **options: see `ProjectedAttention`.
        reduction: side in cells of what becomes one key.
        pooling: "average"; "convolution": a kernel as large as its stride, and a norm behind it (PVT); or "adaptive":
            the means of squares x squares rectangles, whatever the size of the map, and behind them a linear layer, a
            norm and GELU (the linear attention of PVT v2), with no use for `reduction`.
        remainder: of "convolution": what becomes of rows and columns that reduction doesn't divide. They are "padded"
            with zeros, or "dropped" as in the published PVT, where a map smaller than a square is padded still.
        squares: of "adaptive": rectangles along one axis; where they don't divide it, they share cells.
        norm_eps: epsilon of the norm of reduced tokens.

    Raises:
        ValueError: reduction or squares is below 1, or pooling or remainder is unknown.

    Source: Wang et al. 2021 (PVT, https://arxiv.org/abs/2102.12122), equations 2 and 3; "adaptive": Wang et al. 2022
        (PVT v2, https://arxiv.org/abs/2106.13797), section 3.2.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        reduction: int = 2,
        pooling: str = "average",
        remainder: str = "padded",
        squares: int = 7,
        norm_eps: float = 1e-5,
        **options: Any,
    ) -> None:
        super().__init__(dim, num_heads, **options | {"context_dim": dim})
        if min(reduction, squares) < 1:
            raise ValueError(f"reduction {reduction} and squares {squares} must be at least 1")
        if pooling not in ("average", "convolution", "adaptive"):
            raise ValueError(f"pooling {pooling!r} is unknown; choose average, convolution or adaptive")
        if remainder not in ("padded", "dropped"):
            raise ValueError(f"remainder {remainder!r} is unknown; choose padded or dropped")
        self.reduction, self.squares = reduction, squares
        self.adaptive, self.drops = pooling == "adaptive", pooling == "convolution" and remainder == "dropped"
        learned = self.adaptive or (pooling == "convolution" and reduction > 1)
        side = 1 if self.adaptive else reduction
        self.reduce = nn.Conv2d(dim, dim, side, side) if learned else None
        self.reduce_norm = nn.LayerNorm(dim, eps=norm_eps) if learned else None

    def forward(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        """Tokens (batch, height * width, dim) of the grid (height, width) in, tokens of the same shape out.

        Raises:
            ValueError: the number of tokens isn't height * width.
        """
        heads = (self.num_heads, self.head_dim)
        query = self.query(tokens).unflatten(2, heads).transpose(1, 2)  # (batch, heads, N, head_dim)
        check_grid(query, grid, "pooled")
        joint = self.key_value(self.coarse(tokens, grid)).unflatten(2, (2, *heads))
        key, value = joint.permute(2, 0, 3, 1, 4).unbind(0)  # (batch, heads, squares, head_dim)
        query, key = self.normalize(query, key)
        if self.record is None:
            attended = dot_product_attention(query, key, value, dropout=self.active_dropout())
        else:
            weights = attention_weights(query, key)
            self.record(weights @ self.shares(grid).to(weights), None)
            attended = functional.dropout(weights, self.active_dropout()) @ value
        return self.project(attended.transpose(1, 2).flatten(2))

    def coarse(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        """Tokens (batch, N, dim) to those of the squares (batch, squares, dim)."""
        cells = tokens.unflatten(1, grid)
        if self.reduce is None or self.reduce_norm is None:
            return tokens if self.reduction == 1 else pool_cells(cells, self.reduction)
        cells = cells.permute(0, 3, 1, 2)  # (batch, dim, height, width)
        if self.adaptive:
            cells = functional.adaptive_avg_pool2d(cells, self.squares)
            return functional.gelu(self.reduce_norm(self.reduce(cells).flatten(2).transpose(1, 2)))
        below, right = (self.squares_along(side) * self.reduction - side for side in grid)
        if below > 0 or right > 0:
            cells = functional.pad(cells, (0, max(right, 0), 0, max(below, 0)))
        return self.reduce_norm(self.reduce(cells).flatten(2).transpose(1, 2))

    def squares_along(self, side: int) -> int:
        """How many squares an axis of this many cells has."""
        if self.adaptive:
            return self.squares
        return max(side // self.reduction, 1) if self.drops else -(-side // self.reduction)

    def shares(self, grid: tuple[int, int]) -> Tensor:
        """How much of a square's weight each cell has: (squares, height * width); each row sums to 1."""
        return torch.kron(self.axis_shares(grid[0]), self.axis_shares(grid[1]))

    def axis_shares(self, side: int) -> Tensor:
        """The shares along one axis: (squares, side)."""
        count, cells = self.squares_along(side), torch.arange(side)
        square = torch.arange(count)[:, None]
        if self.adaptive:
            first, end = square * side // count, -(-(square + 1) * side // count)
        else:
            first, end = square * self.reduction, (square + 1) * self.reduction
        member = ((first <= cells) & (cells < end)).float()
        return member / member.sum(dim=1, keepdim=True)
