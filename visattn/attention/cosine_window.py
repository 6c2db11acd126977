"""Window attention by cosines: the lengths of queries and keys don't count, and the bias is a function of distance."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.linalg import vector_norm
from torch.nn import functional

from visattn.attention.projected import pair
from visattn.attention.window import WindowAttention, is_worth_keeping, window_attention

_largest_scale = 100.0


def cosine_window_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    window_size: int | Sequence[int],
    shift: int | Sequence[int] = 0,
    scale: float | Tensor = 10.0,
    bias: Tensor | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """softmax(scale * cos(query, key) + bias) value, among the tokens of a window.

    Cost: tokens * window_size[0] * window_size[1] * head_dim.

    Args:
        query, key, value: (batch, height, width, heads, head_dim). A vector of zeros has the cosine 0 with all others.
        window_size, shift, bias, dropout: see `window_attention`.
        scale: of the cosines, one number or one of each head: (heads,).

    Returns:
        (batch, height, width, heads, head_dim).

    Raises:
        ValueError: the window exceeds the map, or the shift the window.

    Source: Liu et al. 2022 (Swin V2, https://arxiv.org/abs/2111.09883), section 3.2, equation 2, where 1 / tau is our
        scale.
    """
    query, key = directions(query, key, scale)
    return window_attention(query, key, value, window_size, shift, scale=1.0, bias=bias, dropout=dropout)


def directions(query: Tensor, key: Tensor, scale: float | Tensor) -> tuple[Tensor, Tensor]:
    """Queries and keys (..., heads, head_dim) whose products are the scaled cosines; scale: (heads,) or a number."""
    factor = scale.to(query.dtype)[:, None] if isinstance(scale, Tensor) else scale
    shortest = max(1e-12, torch.finfo(query.dtype).tiny)  # which is 0 in no precision: padding has keys of zeros
    lengths = [vector_norm(vectors, dim=-1, keepdim=True).clamp_min(shortest) for vectors in (query, key)]
    return query / lengths[0] * factor, key / lengths[1]


def log_spaced_coordinates(
    extent: tuple[int, int], reference: tuple[int, int], dtype: torch.dtype, device: torch.device
) -> Tensor:
    """Relative positions within a window on a logarithmic scale: -1 to 1 where the extent is the reference, times
    log2(9) / 3, the published normalisation.

    Args:
        extent: (height, width) of the window in tokens.
        reference: (height, width) of the window that the network was trained with first.

    Returns:
        (2 * height - 1, 2 * width - 1, 2), vertical before horizontal.

    Source: Liu et al. 2022, https://arxiv.org/abs/2111.09883, equation 4; the factors 8 and 1 / log2(8) are those of
        the published code.
    """
    axes = []
    for side, known in zip(extent, reference, strict=True):
        distance = torch.arange(1 - side, side) * (8 / max(known - 1, 1))  # (2 * side - 1,)
        axes.append(distance.sign() * torch.log2(distance.abs() + 1) / 3)
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).to(device, dtype)


# What is made and kept within inference_mode could not serve a later training.
kept_coordinates = lru_cache(maxsize=64)(torch.inference_mode(False)(log_spaced_coordinates))


class CosineWindowAttention(WindowAttention):
    """Self-attention of several heads within windows by cosines, as in Swin V2.

    Each head learns the scale of its cosines, up to 100. The bias of a relative position is 16 * sigmoid(MLP(position
    on a logarithmic scale)), so that it is known for windows of any size. Keys have no bias of their own.

    Along an axis where the map isn't larger than the window, the window is the map and there is no shift.

    Args:
        dim, num_heads, **options: see `ProjectedAttention`.
        window_size: side of a window in tokens, a number or (vertical, horizontal).
        shift: how far the windows are moved, a number or (vertical, horizontal).
        reference_window_size: the window whose borders have the coordinates that the MLP was trained on first; None is
            window_size.
        position_hidden_dim: hidden channels of the MLP.

    Source: Liu et al. 2022, https://arxiv.org/abs/2111.09883, sections 3.2 and 3.3.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        window_size: int | Sequence[int] = 8,
        shift: int | Sequence[int] = 0,
        reference_window_size: int | Sequence[int] | None = None,
        position_hidden_dim: int = 512,
        qkv_bias: bool = True,
        **options: Any,
    ) -> None:
        super().__init__(dim, num_heads, window_size=window_size, shift=shift, relative_position_bias=False, **options)
        reference = window_size if reference_window_size is None else reference_window_size
        self.reference_window_size = pair(reference, "reference_window_size")
        self.qkv = KeysWithoutBias(dim, num_heads * self.head_dim, bias=qkv_bias)
        self.logit_scale = nn.Parameter(torch.full((num_heads,), math.log(10.0)))
        self.position_mlp = nn.Sequential(
            nn.Linear(2, position_hidden_dim), nn.ReLU(), nn.Linear(position_hidden_dim, num_heads, bias=False)
        )
        self.scale = 1.0  # that of the cosines is in the queries

    def normalize(self, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        query, key = super().normalize(query, key)
        return directions(query, key, self.logit_scale.clamp(max=math.log(_largest_scale)).exp())

    def bias_for(self, extent: tuple[int, int]) -> Tensor:
        """What the MLP says of each relative position: (heads, 2 * extent[0] - 1, 2 * extent[1] - 1)."""
        like = self.logit_scale
        make = kept_coordinates if is_worth_keeping(like) else log_spaced_coordinates
        coordinates = make(extent, self.reference_window_size, like.dtype, like.device)
        return 16 * self.position_mlp(coordinates).permute(2, 0, 1).sigmoid()


class KeysWithoutBias(nn.Linear):
    """Tokens (..., dim) to queries, keys and values (..., 3 * width); the keys' bias is 0."""

    def __init__(self, dim: int, width: int, *, bias: bool) -> None:
        super().__init__(dim, 3 * width, bias=False)
        self.query_bias = nn.Parameter(torch.zeros(width)) if bias else None
        self.value_bias = nn.Parameter(torch.zeros(width)) if bias else None

    def forward(self, tokens: Tensor) -> Tensor:
        if self.query_bias is None or self.value_bias is None:
            return functional.linear(tokens, self.weight)
        bias = torch.cat([self.query_bias, torch.zeros_like(self.query_bias), self.value_bias])
        return functional.linear(tokens, self.weight, bias)
