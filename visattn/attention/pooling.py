"""Pooling by attention: many tokens to one, by weights that the tokens themselves decide; and over two levels."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


def additive_attention_weights(scores: Tensor, mask: Tensor | None = None) -> Tensor:
    """Softmax of scores (..., tokens) over the tokens that exist; zeros where none does.

    Args:
        mask: (..., tokens), bool, True for tokens that exist.
    """
    if mask is None:
        return scores.softmax(dim=-1)
    weights = scores.masked_fill(~mask, torch.finfo(scores.dtype).min).softmax(dim=-1)
    return weights.masked_fill(~mask, 0.0)


class ScoredPooling(nn.Module):
    """The base of pooling by scores that each token has by itself (`score`): softmax over the tokens, weighted mean.

    Attributes:
        record: None, or a callable that sees the weights (..., N) of every forward.
    """

    record: Any = None

    def score(self, tokens: Tensor) -> Tensor:
        """Tokens (..., N, dim) to scores (..., N)."""
        raise NotImplementedError

    def forward(self, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        """The mean of tokens (..., N, dim) that exist by the mask (..., N), bool; zeros where none does."""
        weights = additive_attention_weights(self.score(tokens), mask)
        if self.record is not None:
            self.record(weights)
        return (weights.unsqueeze(-2) @ tokens).squeeze(-2)


class AdditiveAttentionPooling(ScoredPooling):
    """Tokens (..., N, dim) to their weighted mean (..., dim), with weights softmax(context . tanh(W token + b)).

    Cost: tokens * dim * hidden_dim.

    Args:
        dim: channels of a token.
        hidden_dim: of W's output; None is dim.

    Source: Yang et al. 2016, "Hierarchical Attention Networks for Document Classification", equations 5 to 7; the score
        is that of Bahdanau et al. 2015, https://arxiv.org/abs/1409.0473.
    """

    def __init__(self, dim: int, hidden_dim: int | None = None) -> None:
        super().__init__()
        self.hidden = nn.Linear(dim, hidden_dim or dim)
        self.context = nn.Linear(hidden_dim or dim, 1, bias=False)

    def score(self, tokens: Tensor) -> Tensor:
        return self.context(self.hidden(tokens).tanh()).squeeze(-1)  # (..., N)


class SequencePooling(ScoredPooling):
    """Tokens (..., N, dim) to their weighted mean (..., dim), with weights softmax(w . token + b).

    Cost: tokens * dim.

    Args:
        dim: channels of a token.

    Source: Hassani et al. 2021 (Compact Transformers), https://arxiv.org/abs/2104.05704.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.linear = nn.Linear(dim, 1)

    def score(self, tokens: Tensor) -> Tensor:
        return self.linear(tokens).squeeze(-1)  # (..., N)


class HierarchicalAttentionPooling(nn.Module):
    """Tokens of groups to one vector: the tokens of a group to the group, then the groups to the whole.

    Patches to frames and frames to a clip, or words to sentences and sentences to a document.

    Args:
        dim: channels of a token.
        hidden_dim: of the scores of both levels; None is dim.

    Source: Yang et al. 2016, section 2.2, without its recurrent encoders: give it tokens that have seen each other.
    """

    def __init__(self, dim: int, hidden_dim: int | None = None) -> None:
        super().__init__()
        self.tokens = AdditiveAttentionPooling(dim, hidden_dim)
        self.norm = nn.LayerNorm(dim)
        self.groups = AdditiveAttentionPooling(dim, hidden_dim)

    def forward(self, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        """(batch, groups, tokens, dim) to (batch, dim).

        Args:
            mask: (batch, groups, tokens), bool, True for tokens that exist; a group without any doesn't either.
        """
        groups = self.norm(self.tokens(tokens, mask))  # (batch, groups, dim)
        return self.groups(groups, None if mask is None else mask.any(dim=-1))
