"""What neighborhood and window attention have in common: tokens of a map, a bias by relative position, recording."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from visattn.attention.continuous_bias import ContinuousPositionBias
from visattn.attention.projected import ProjectedAttention

Pair = tuple[int, int]


class LocalAttention(ProjectedAttention):
    """The base of self-attention in which a cell of a map sees the cells of a rectangle near it.

    A kind of it says how large the rectangle is on a given map (`fit`), how to attend (`attend`), and which weights
    belong to which keys (`look`).

    Args:
        dim, num_heads, **options: see `ProjectedAttention`.
        extent: (height, width) of the rectangle in tokens.
        relative_position_bias: learn a bias for each head and relative position.
        bias_hidden_dim: hidden channels of an MLP that makes the biases of the distances, instead of a table of them.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        extent: Sequence[int],
        relative_position_bias: bool,
        bias_hidden_dim: int | None = None,
        **options,
    ) -> None:
        super().__init__(dim, num_heads, **options)
        self.relative_position_bias: nn.Parameter | None = None
        self.continuous_bias: ContinuousPositionBias | None = None
        if not relative_position_bias:
            return
        if bias_hidden_dim is None:
            table = torch.empty(num_heads, 2 * extent[0] - 1, 2 * extent[1] - 1)
            self.relative_position_bias = nn.Parameter(table)
            nn.init.trunc_normal_(self.relative_position_bias, std=0.02)
        else:
            self.continuous_bias = ContinuousPositionBias(num_heads, bias_hidden_dim)

    def fit(self, grid: Pair) -> tuple[Pair, Pair]:
        """On a map (height, width): the rectangle's (height, width), and the kind's other pair."""
        raise NotImplementedError

    def attend(self, query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None) -> Tensor:
        """(batch, height, width, heads, head_dim) to the same."""
        raise NotImplementedError

    def look(self, query: Tensor, key: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """The weights (batch, heads, N, n), and the index of each key (N, n), -1 beyond the map; None: all in order."""
        raise NotImplementedError

    def forward(self, tokens: Tensor, grid: Pair) -> Tensor:
        """Tokens (batch, height * width, dim) of the grid (height, width) in, tokens of the same shape out.

        Raises:
            ValueError: the number of tokens isn't height * width.
        """
        self.check_tokens(tokens, grid)
        qkv = self.qkv(tokens).unflatten(2, (3, self.num_heads, self.head_dim)).unflatten(1, grid)
        query, key, value = qkv.unbind(3)  # (batch, height, width, heads, head_dim)
        query, key = self.normalize(query, key)
        bias = self.bias_for(self.fit(grid)[0])
        if self.record is None:
            attended = self.attend(query, key, value, bias).flatten(3)  # (batch, height, width, heads * head_dim)
        else:
            weights, keys = self.look(query, key, bias)
            keys = None if keys is None else keys.to(tokens.device)
            self.record(weights, keys)
            weights = functional.dropout(weights, self.active_dropout())
            values = value.flatten(1, 2)  # (batch, N, heads, head_dim)
            if keys is None:
                attended = torch.einsum("bhqk,bkhd->bqhd", weights, values).flatten(2)
            else:
                seen = values[:, keys.clamp(min=0)]  # (batch, N, n, heads, head_dim)
                attended = torch.einsum("bhqn,bqnhd->bqhd", weights, seen).flatten(2)
        return self.project(attended.reshape(*tokens.shape[:2], self.num_heads * self.head_dim))

    def check_tokens(self, tokens: Tensor, grid: Pair) -> None:
        """Refuses tokens (batch, N, dim) that are not those of a map (height, width).

        Raises:
            ValueError: there are more, such as class tokens, or fewer.
        """
        if tokens.shape[1] != grid[0] * grid[1]:
            raise ValueError(
                f"{tokens.shape[1]} tokens don't fill a {grid[0]}x{grid[1]} map; local attention takes height * width "
                "tokens without prefix tokens"
            )

    def bias_for(self, extent: Pair) -> Tensor | None:
        """The centre of the bias table, or what the MLP makes: (heads, 2 * extent[0] - 1, 2 * extent[1] - 1)."""
        table = self.relative_position_bias
        if self.continuous_bias is not None:
            return self.continuous_bias(extent)
        if table is None:
            return None
        top, left = (table.shape[1] + 1) // 2 - extent[0], (table.shape[2] + 1) // 2 - extent[1]
        return table[:, top : table.shape[1] - top, left : table.shape[2] - left]


def relative_bias(table: Tensor, size: tuple[int, int]) -> Tensor:
    """A table (heads, 2 * size[0] - 1, 2 * size[1] - 1) as what is added to scores (heads, queries, keys).

    The entry of a query at i and a key at k is the table's at i - k: with keys counted backwards, a window of the table
    that moves with the query.
    """
    moving = table.unfold(1, size[0], 1).unfold(2, size[1], 1)  # (heads, high, wide, high, wide), keys backwards
    return moving.flip(3, 4).flatten(3, 4).flatten(1, 2)
