"""Linear attention: a kernel in place of the exponential, so that the sum over keys is taken once for all queries."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from visattn.attention.self_attention import SelfAttention


def linear_attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Weights proportional to phi(query) phi(key)^T with phi(x) = elu(x) + 1. Cost: tokens * head_dim^2.

    Args:
        query: (batch, heads, queries, head_dim).
        key, value: (batch, heads, keys, head_dim).

    Returns:
        (batch, heads, queries, head_dim).

    Source: Katharopoulos et al. 2020, https://arxiv.org/abs/2006.16236, equations 5 and 7.
    """
    return kernel_attention(functional.elu(query) + 1, functional.elu(key) + 1, value)


def performer_attention(
    query: Tensor, key: Tensor, value: Tensor, projection: Tensor, scale: float | None = None
) -> Tensor:
    """Softmax attention in expectation over random features. Cost: tokens * features * head_dim.

    exp(x y) is the mean over normal w of exp(w x - x^2 / 2) exp(w y - y^2 / 2); the weights take the mean over the rows
    of `projection`. The relative error falls as 1 / sqrt(features), and grows with exp(|x + y|^2): small scores are
    approximated well, peaked ones badly.

    Args:
        query: (batch, heads, queries, head_dim).
        key, value: (batch, heads, keys, head_dim).
        projection: (features, head_dim), from `orthogonal_projection`.
        scale: of the scores that are approximated; None is 1 / sqrt(head_dim).

    Returns:
        (batch, heads, queries, head_dim).

    Source: Choromanski et al. 2021, https://arxiv.org/abs/2009.14794, equation 5 and lemma 1.
    """
    return kernel_attention(*positive_features(query, key, projection, scale), value)


def positive_features(query: Tensor, key: Tensor, projection: Tensor, scale: float | None) -> tuple[Tensor, Tensor]:
    """Queries and keys (batch, heads, tokens, head_dim) as (batch, heads, tokens, features), all above 0.

    A common factor of a query's features, and one of all keys' features, falls out of the weights; it is chosen so that
    nothing overflows.
    """
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    projection = projection.to(query.dtype)
    query, key = query * math.sqrt(scale), key * math.sqrt(scale)
    query_exponents = query @ projection.T - query.square().sum(dim=-1, keepdim=True) / 2
    key_exponents = key @ projection.T - key.square().sum(dim=-1, keepdim=True) / 2
    query_features = (query_exponents - query_exponents.detach().amax(dim=-1, keepdim=True)).exp()
    key_features = (key_exponents - key_exponents.detach().amax(dim=(-1, -2), keepdim=True)).exp()
    return query_features + 1e-6, key_features + 1e-6


def kernel_attention(query_features: Tensor, key_features: Tensor, value: Tensor) -> Tensor:
    """Weights proportional to the products of features; see `kernel_weights`.

    Args:
        query_features: (batch, heads, queries, features), above 0.
        key_features: (batch, heads, keys, features), above 0.
        value: (batch, heads, keys, head_dim).
    """
    context = key_features.transpose(-2, -1) @ value  # (batch, heads, features, head_dim)
    normalizer = query_features @ key_features.sum(dim=-2).unsqueeze(-1)  # (batch, heads, queries, 1)
    return query_features @ context / normalizer


def kernel_weights(query_features: Tensor, key_features: Tensor) -> Tensor:
    """The weights of `kernel_attention`: (batch, heads, queries, keys)."""
    products = query_features @ key_features.transpose(-2, -1)
    return products / products.sum(dim=-1, keepdim=True)


def orthogonal_projection(features: int, head_dim: int, generator: torch.Generator | None = None) -> Tensor:
    """Random rows (features, head_dim), each normal, and orthogonal to others in groups of head_dim.

    Source: Choromanski et al. 2021, section 2.4.
    """
    blocks = []
    for _ in range(-(-features // head_dim)):
        normal = torch.randn(head_dim, head_dim, generator=generator)
        columns, triangle = torch.linalg.qr(normal)
        # Without these signs some directions would be likelier than others (Mezzadri 2007, section 4).
        blocks.append((columns * triangle.diagonal().sign()).T)
    lengths = torch.randn(features, head_dim, generator=generator).norm(dim=1, keepdim=True)
    return torch.cat(blocks)[:features] * lengths


class LinearAttention(SelfAttention):
    """Self-attention of several heads with the kernel elu + 1.

    Args as `SelfAttention`.

    Source: Katharopoulos et al. 2020, https://arxiv.org/abs/2006.16236.
    """

    def attend(self, query: Tensor, key: Tensor, value: Tensor, grid: tuple[int, int]) -> Tensor:
        return linear_attention(query, key, value)

    def look(self, query: Tensor, key: Tensor, grid: tuple[int, int]) -> Tensor:
        return kernel_weights(functional.elu(query) + 1, functional.elu(key) + 1)


class PerformerAttention(SelfAttention):
    """Self-attention of several heads that approximates softmax by random features.

    Args:
        dim, num_heads, **options: see `SelfAttention`.
        num_features: random features; None is head_dim * log(head_dim), rounded, as the paper's experiments.

    Attributes:
        projection_features: (num_features, head_dim), a buffer that belongs to the weights; `redraw` draws it anew.

    Source: Choromanski et al. 2021, https://arxiv.org/abs/2009.14794.
    """

    def __init__(self, dim: int, num_heads: int, *, num_features: int | None = None, **options: Any) -> None:
        super().__init__(dim, num_heads, **options)
        self.num_features = num_features or round(self.head_dim * math.log(self.head_dim))
        self.projection_features: Tensor
        self.register_buffer("projection_features", orthogonal_projection(self.num_features, self.head_dim))

    def redraw(self, generator: torch.Generator | None = None) -> None:
        """Draws new random features, which during training keeps the network from relying on one draw's errors."""
        self.projection_features.copy_(orthogonal_projection(self.num_features, self.head_dim, generator))

    def attend(self, query: Tensor, key: Tensor, value: Tensor, grid: tuple[int, int]) -> Tensor:
        return performer_attention(query, key, value, self.projection_features)

    def look(self, query: Tensor, key: Tensor, grid: tuple[int, int]) -> Tensor:
        return kernel_weights(*positive_features(query, key, self.projection_features, None))
