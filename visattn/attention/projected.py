"""What the attention modules have in common: the linear maps before and after, norms of queries and keys, recording."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn


class ProjectedAttention(nn.Module):
    """The base of every attention module.

    `record` is None, or a callable that sees every forward: `record(weights, keys)`, with weights (batch, heads,
    queries, n) after the softmax and before dropout. keys is None where each query sees all keys in order, else a
    long tensor (queries, n): the token index of each key, -1 for padding. While it is set, the weights are computed
    explicitly and the output from them; otherwise fused kernels run and nothing is kept.

    Args:
        dim: channels of a token.
        num_heads: attention heads.
        head_dim: channels of a head; None divides dim by num_heads.
        qkv_bias, projection_bias: biases of the linear layers.
        qk_norm: LayerNorm over the channels of a head, for queries and keys; other norms can be put in their place:
            `module.query_norm`, `module.key_norm`.
        dropout: probability that an attention weight is dropped in training.
        projection_dropout: probability that an output channel is dropped in training.
        context_dim: channels of the tokens that keys and values are made of; None: self-attention.
        out_dim: channels of the tokens that come out; None: dim.

    Raises:
        ValueError: num_heads doesn't divide dim and no head_dim is given.
    """

    record: Any = None  # set on an instance; a type of callable would be read as that of a method

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        head_dim: int | None = None,
        qkv_bias: bool = True,
        qk_norm: bool = False,
        projection_bias: bool = True,
        dropout: float = 0.0,
        projection_dropout: float = 0.0,
        context_dim: int | None = None,
        out_dim: int | None = None,
    ) -> None:
        super().__init__()
        if head_dim is None and dim % num_heads:
            raise ValueError(f"{num_heads} heads don't divide {dim} channels; choose a divisor or set head_dim")
        self.num_heads = num_heads
        self.head_dim = head_dim or dim // num_heads
        self.dropout = dropout
        width = num_heads * self.head_dim
        if context_dim is None:
            self.qkv = nn.Linear(dim, 3 * width, bias=qkv_bias)
        else:
            self.query = nn.Linear(dim, width, bias=qkv_bias)
            self.key_value = nn.Linear(context_dim, 2 * width, bias=qkv_bias)
        self.query_norm: nn.Module | None = nn.LayerNorm(self.head_dim) if qk_norm else None
        self.key_norm: nn.Module | None = nn.LayerNorm(self.head_dim) if qk_norm else None
        self.projection = nn.Linear(width, out_dim or dim, bias=projection_bias)
        self.projection_dropout = nn.Dropout(projection_dropout)

    def normalize(self, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        """Queries and keys (..., head_dim), normalised where the module has norms for them."""
        query = query if self.query_norm is None else self.query_norm(query)
        key = key if self.key_norm is None else self.key_norm(key)
        return query, key

    def project(self, attended: Tensor) -> Tensor:
        """(batch, tokens, heads * head_dim) -> (batch, tokens, out_dim)."""
        return self.projection_dropout(self.projection(attended))

    def active_dropout(self) -> float:
        return self.dropout if self.training else 0.0


def pair(value: int | Sequence[int], name: str) -> tuple[int, int]:
    """One number for both axes, or (vertical, horizontal).

    Raises:
        ValueError: it is neither, or a number is below 0.
    """
    numbers = (value, value) if isinstance(value, int) else tuple(value)
    if len(numbers) != 2 or min(numbers) < 0:
        raise ValueError(f"{name} {value} is neither one number nor a pair (vertical, horizontal)")
    return numbers[0], numbers[1]
