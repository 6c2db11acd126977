"""Attention through few tokens in place of all: Linformer's learned mixtures of keys, Nystrom's landmarks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from visattn.attention.dot_product import attention_weights, dot_product_attention
from visattn.attention.self_attention import SelfAttention, check_grid


def linformer_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    key_mixture: Tensor,
    value_mixture: Tensor,
    scale: float | None = None,
) -> Tensor:
    """softmax(query (E key)^T) (F value): the keys and values are a few mixtures of all. Cost: tokens * mixtures.

    Args:
        query: (batch, heads, queries, head_dim).
        key, value: (batch, heads, keys, head_dim).
        key_mixture, value_mixture: (mixtures, keys), E and F.
        scale: of the scores; None is 1 / sqrt(head_dim).

    Returns:
        (batch, heads, queries, head_dim).

    Source: Wang et al. 2020, https://arxiv.org/abs/2006.04768, equation 7.
    """
    return dot_product_attention(query, key_mixture.to(key) @ key, value_mixture.to(value) @ value, scale=scale)


def nystrom_attention(
    query: Tensor, key: Tensor, value: Tensor, num_landmarks: int, iterations: int = 6, scale: float | None = None
) -> Tensor:
    """softmax(q k~^T) softmax(q~ k~^T)^+ (softmax(q~ k^T) v), with landmarks q~ and k~. Cost: tokens * landmarks.

    Landmarks are the means of `num_landmarks` segments of nearly equal length. With as many landmarks as tokens this is
    softmax attention, up to the pseudo-inverse, which is iterated.

    Args:
        query, key, value: (batch, heads, tokens, head_dim).
        num_landmarks: at most the tokens.
        iterations: of the pseudo-inverse.
        scale: of the scores; None is 1 / sqrt(head_dim).

    Returns:
        (batch, heads, tokens, head_dim).

    Raises:
        ValueError: num_landmarks is below 1 or exceeds the tokens.

    Source: Xiong et al. 2021, https://arxiv.org/abs/2102.03902, equations 10, 13 and 14.
    """
    first, inverse, last = nystrom_factors(query, key, num_landmarks, iterations, scale)
    return first @ (inverse @ (last @ value))


def nystrom_factors(
    query: Tensor, key: Tensor, num_landmarks: int, iterations: int, scale: float | None
) -> tuple[Tensor, Tensor, Tensor]:
    """What the weights of `nystrom_attention` are a product of: (..., N, n), (..., n, n) and (..., n, N)."""
    if not 1 <= num_landmarks <= query.shape[2]:
        raise ValueError(f"num_landmarks {num_landmarks} of {query.shape[2]} tokens; choose 1 to {query.shape[2]}")
    query_landmarks, key_landmarks = segment_means(query, num_landmarks), segment_means(key, num_landmarks)
    first = attention_weights(query, key_landmarks, scale=scale)  # (batch, heads, N, n)
    middle = attention_weights(query_landmarks, key_landmarks, scale=scale)  # (batch, heads, n, n)
    last = attention_weights(query_landmarks, key, scale=scale)  # (batch, heads, n, N)
    return first, pseudo_inverse(middle, iterations), last


def segment_means(tokens: Tensor, count: int) -> Tensor:
    """(batch, heads, N, head_dim) to the means of `count` segments, whose lengths differ by one at most."""
    shape = tokens.shape[:2]
    means = functional.adaptive_avg_pool1d(tokens.flatten(0, 1).transpose(1, 2), count)
    return means.transpose(1, 2).unflatten(0, shape)


def pseudo_inverse(matrix: Tensor, iterations: int) -> Tensor:
    """The pseudo-inverse of matrices (..., n, n), nearly, by products alone; a third order method.

    Source: Razavi et al. 2014, as in Xiong et al. 2021, equations 11 and 12.
    """
    dtype = matrix.dtype
    matrix = matrix.to(torch.promote_types(dtype, torch.float32))
    unit = torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)
    columns, rows = matrix.abs().sum(dim=-2).amax(dim=-1), matrix.abs().sum(dim=-1).amax(dim=-1)
    inverse = matrix.transpose(-2, -1) / (columns * rows)[..., None, None]
    for _ in range(iterations):
        product = matrix @ inverse
        inverse = inverse @ (13 * unit - product @ (15 * unit - product @ (7 * unit - product))) / 4
    return inverse.to(dtype)


class LinformerAttention(SelfAttention):
    """Self-attention of several heads to learned mixtures of the tokens, the same mixtures for keys of all heads.

    The mixtures are made for the tokens of a map; on a map of another size they are resampled, and there are no prefix
    tokens.

    Args:
        dim, num_heads, **options: see `SelfAttention`.
        grid: (height, width) of the map.
        num_mixtures: k in the paper.

    Source: Wang et al. 2020, https://arxiv.org/abs/2006.04768.
    """

    def __init__(
        self, dim: int, num_heads: int, *, grid: Sequence[int], num_mixtures: int = 64, **options: Any
    ) -> None:
        super().__init__(dim, num_heads, **options)
        cells = grid[0] * grid[1]
        self.key_mixture = nn.Parameter(torch.randn(num_mixtures, *grid) * cells**-0.5)
        self.value_mixture = nn.Parameter(torch.randn(num_mixtures, *grid) * cells**-0.5)

    def mixtures(self, grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """For keys and values, each (num_mixtures, height * width)."""
        return mixture_on(self.key_mixture, grid), mixture_on(self.value_mixture, grid)

    def attend(self, query: Tensor, key: Tensor, value: Tensor, grid: tuple[int, int]) -> Tensor:
        check_grid(query, grid, "Linformer")
        return linformer_attention(query, key, value, *self.mixtures(grid))

    def look(self, query: Tensor, key: Tensor, grid: tuple[int, int]) -> Tensor:
        key_mixture, value_mixture = self.mixtures(grid)
        return attention_weights(query, key_mixture.to(key) @ key) @ value_mixture.to(key)


def mixture_on(mixture: Tensor, grid: tuple[int, int]) -> Tensor:
    """Mixtures (k, height, width) on another map (k, height * width); a mixture of a constant map stays what it is."""
    before = mixture.shape[1:]
    if tuple(before) != tuple(grid):
        mixture = functional.interpolate(mixture[None], grid, mode="bilinear", antialias=True)[0]
        mixture = mixture * (before[0] * before[1] / (grid[0] * grid[1]))
    return mixture.flatten(1)


class NystromAttention(SelfAttention):
    """Self-attention of several heads through landmarks; as many as there are tokens, if there are fewer.

    Args:
        dim, num_heads, **options: see `SelfAttention`.
        num_landmarks: segments of the tokens.
        iterations: of the pseudo-inverse.

    Source: Xiong et al. 2021, https://arxiv.org/abs/2102.03902.
    """

    def __init__(
        self, dim: int, num_heads: int, *, num_landmarks: int = 64, iterations: int = 6, **options: Any
    ) -> None:
        super().__init__(dim, num_heads, **options)
        self.num_landmarks, self.iterations = num_landmarks, iterations

    def attend(self, query: Tensor, key: Tensor, value: Tensor, grid: tuple[int, int]) -> Tensor:
        return nystrom_attention(query, key, value, min(self.num_landmarks, query.shape[2]), self.iterations)

    def look(self, query: Tensor, key: Tensor, grid: tuple[int, int]) -> Tensor:
        landmarks = min(self.num_landmarks, query.shape[2])
        first, inverse, last = nystrom_factors(query, key, landmarks, self.iterations, None)
        return first @ inverse @ last
