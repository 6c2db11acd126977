"""What the kinds of self-attention have in common that don't look at each pair of tokens by itself."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from visattn.attention.projected import ProjectedAttention


class SelfAttention(ProjectedAttention):
    """The base of self-attention whose output is linear in the values, by weights that need not be computed.

    A kind of it says how to attend (`attend`), and which weights that amounts to (`look`), for those who want to see.

    Args:
        dim, num_heads, **options: see `ProjectedAttention`.

    Raises:
        ValueError: weights should be dropped, of which there are none.
    """

    def __init__(self, dim: int, num_heads: int, **options: Any) -> None:
        super().__init__(dim, num_heads, **options)
        if self.dropout:
            raise ValueError(f"{type(self).__name__} has no weights to drop: set dropout {self.dropout} to 0")

    def attend(self, query: Tensor, key: Tensor, value: Tensor, grid: tuple[int, int]) -> Tensor:
        """(batch, heads, tokens, head_dim) to the same, for tokens of the grid (height, width)."""
        raise NotImplementedError

    def look(self, query: Tensor, key: Tensor, grid: tuple[int, int]) -> Tensor:
        """The weights (batch, heads, tokens, tokens) by which `attend` sums the values."""
        raise NotImplementedError

    def forward(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        """Tokens (batch, N, dim) of the grid (height, width) in, tokens of the same shape out."""
        qkv = self.qkv(tokens).unflatten(2, (3, self.num_heads, self.head_dim))
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # (batch, heads, N, head_dim)
        query, key = self.normalize(query, key)
        if self.record is None:
            attended = self.attend(query, key, value, grid)
        else:
            weights = self.look(query, key, grid)
            self.record(weights, None)
            attended = weights @ value
        return self.project(attended.transpose(1, 2).flatten(2))


def check_grid(tokens: Tensor, grid: tuple[int, int], kind: str) -> None:
    """Refuses tokens (batch, heads, N, head_dim) that are not those of a map (height, width).

    Raises:
        ValueError: there are more, such as class tokens, or fewer.
    """
    if tokens.shape[2] != grid[0] * grid[1]:
        raise ValueError(
            f"{tokens.shape[2]} tokens don't fill a {grid[0]}x{grid[1]} map; {kind} attention takes height * width "
            "tokens without prefix tokens"
        )
