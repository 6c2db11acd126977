"""Scaled dot-product attention, and the module with several heads: self-attention or attention to a context."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from visattn.attention.projected import ProjectedAttention


def dot_product_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None = None,
    bias: Tensor | None = None,
    dropout: float = 0.0,
    scale: float | None = None,
) -> Tensor:
    """Every query sees every key: softmax(scale * query key^T + bias) value. Cost: queries * keys * head_dim.

    Args:
        query: (batch, heads, queries, head_dim).
        key, value: (batch, heads, keys, head_dim).
        mask: bool, True where a query may see a key; broadcasts to (batch, heads, queries, keys). A query that may
            see nothing gets zeros.
        bias: added to the scaled scores; broadcasts to (batch, heads, queries, keys).
        dropout: probability that a weight is dropped.
        scale: of the scores; None is 1 / sqrt(head_dim).

    Returns:
        (batch, heads, queries, head_dim).

    Source: Vaswani et al. 2017, https://arxiv.org/abs/1706.03762, section 3.2.1.
    """
    if explicit_is_faster(query, key, value, bias):
        weights = attention_weights(query, key, mask, bias, scale)
        return functional.dropout(weights, dropout) @ value
    if mask is not None and bias is not None:
        bias = bias.masked_fill(~mask, float("-inf"))
    added = mask if bias is None else bias.to(query.dtype)
    return functional.scaled_dot_product_attention(query, key, value, added, dropout, scale=scale)


def attention_weights(
    query: Tensor,
    key: Tensor,
    mask: Tensor | None = None,
    bias: Tensor | None = None,
    scale: float | None = None,
) -> Tensor:
    """The weights of `dot_product_attention`, (batch, heads, queries, keys); each row sums to 1, or 0 if masked."""
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    scores = (query * scale) @ key.transpose(-2, -1)  # (batch, heads, queries, keys)
    if bias is not None:
        scores = scores + bias.to(scores.dtype)
    if mask is None:
        return scores.softmax(dim=-1)
    # Not -inf: where a whole row is masked, its softmax and the gradient stay numbers.
    weights = scores.masked_fill(~mask, torch.finfo(scores.dtype).min).softmax(dim=-1)
    return weights.masked_fill(~mask, 0.0)


def explicit_is_faster(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None) -> bool:
    """Whether two matrix products and a softmax beat torch's fused kernel.

    On CPUs the backward of the fused kernel is slow for short sequences of 16-bit numbers: at 64 tokens 54 ms against
    9 ms, at 256 tokens even. It has no gradient for a bias and leaves that case to slower products of its own.
    """
    if query.device.type != "cpu" or not torch.is_grad_enabled():
        return False
    if bias is not None and bias.requires_grad:
        return True
    low_precision = query.dtype in (torch.bfloat16, torch.float16)
    trained = query.requires_grad or key.requires_grad or value.requires_grad
    return low_precision and trained and key.shape[-2] <= 256


class MultiHeadAttention(ProjectedAttention):
    """Dot-product attention of several heads, among tokens or from tokens to a context.

    Args as `ProjectedAttention`.

    Source: Vaswani et al. 2017, https://arxiv.org/abs/1706.03762, section 3.2.2.
    """

    def forward(
        self,
        tokens: Tensor,
        grid: tuple[int, int] | None = None,
        context: Tensor | None = None,
        mask: Tensor | None = None,
        bias: Tensor | None = None,
    ) -> Tensor:
        """Tokens in, tokens out.

        Args:
            tokens: (batch, N, dim), any number of prefix tokens among them.
            grid: not used; here so that kinds of attention are interchangeable.
            context: (batch, M, context_dim), where the module attends to a context.
            mask, bias: see `dot_product_attention`.

        Returns:
            (batch, N, dim).
        """
        query, key, value = self.heads(tokens, context)  # (batch, heads, N or M, head_dim)
        query, key = self.normalize(query, key)
        if self.record is not None:
            weights = attention_weights(query, key, mask, bias)  # (batch, heads, N, M)
            self.record(weights, None)
            attended = functional.dropout(weights, self.active_dropout()) @ value
        else:
            attended = dot_product_attention(query, key, value, mask, bias, self.active_dropout())
        return self.project(attended.transpose(1, 2).flatten(2))

    def heads(self, tokens: Tensor, context: Tensor | None) -> tuple[Tensor, ...]:
        """Queries of the tokens, keys and values of the context or the same tokens."""
        if context is None:
            qkv = self.qkv(tokens).unflatten(2, (3, self.num_heads, self.head_dim))
            return qkv.permute(2, 0, 3, 1, 4).unbind(0)
        query = self.query(tokens).unflatten(2, (self.num_heads, self.head_dim)).transpose(1, 2)
        key_value = self.key_value(context).unflatten(2, (2, self.num_heads, self.head_dim))
        return query, *key_value.permute(2, 0, 3, 1, 4).unbind(0)
