"""Scaled dot-product attention, and the module with several heads: self-attention or attention to a context."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from visattn.attention.key_value_cache import KeyValueCache
from visattn.attention.projected import ProjectedAttention


def dot_product_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None = None,
    bias: Tensor | None = None,
    dropout: float = 0.0,
    scale: float | None = None,
    is_causal: bool = False,
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
        is_causal: the i-th query sees the first i + 1 keys only, as if by a mask that need not be built.

    Returns:
        (batch, heads, queries, head_dim).

    Raises:
        ValueError: is_causal is given together with a mask or a bias.

    Source: Vaswani et al. 2017, https://arxiv.org/abs/1706.03762, section 3.2.1.
    """
    if is_causal and (mask is not None or bias is not None):
        raise ValueError("is_causal goes without mask and bias; put the causal part into the mask")
    if explicit_is_faster(query, key, value, bias):
        weights = attention_weights(query, key, causal_mask(query, key) if is_causal else mask, bias, scale)
        return functional.dropout(weights, dropout) @ value
    if mask is not None and bias is not None:
        bias = bias.masked_fill(~mask, float("-inf"))
    added = mask if bias is None else bias.to(query.dtype)
    return functional.scaled_dot_product_attention(query, key, value, added, dropout, is_causal, scale=scale)


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


def causal_mask(query: Tensor, key: Tensor) -> Tensor:
    """(queries, keys), bool: the i-th query sees the first i + 1 keys."""
    return torch.ones(query.shape[-2], key.shape[-2], dtype=torch.bool, device=query.device).tril()


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
        context: Tensor | tuple[Tensor, Tensor] | None = None,
        mask: Tensor | None = None,
        bias: Tensor | None = None,
        *,
        is_causal: bool = False,
        cache: KeyValueCache | None = None,
        position: Tensor | None = None,
        context_position: Tensor | None = None,
    ) -> Tensor:
        """Tokens in, tokens out.

        A context, or the store of a cache, may have fewer rows than the tokens: then as many rows of tokens in turn as
        the quotient says share one, and nothing is repeated. Mask and bias speak of these shared rows: their batch is
        that of the context, their queries are those of the rows behind each other.

        Args:
            tokens: (batch, N, dim), any number of prefix tokens among them.
            grid: not used; here so that kinds of attention are interchangeable.
            context: (batch, M, context_dim), where the module attends to a context; or the keys and values that
                `keys_and_values` made of it.
            mask, bias, is_causal: see `dot_product_attention`.
            cache: of self-attention: the tokens also see those that the cache holds, and are kept in it.
            position: added to the tokens where queries are made of them, and keys if there is no context, but not to
                the values; broadcasts to (batch, N, dim).
            context_position: added to the context where keys are made of it, but not to the values; broadcasts to
                (batch, M, context_dim).

        Returns:
            (batch, N, dim).
        """
        query, key, value = self.heads(tokens, context, position, context_position)  # (batch, heads, N or M, head_dim)
        if cache is not None:
            key, value = cache.extend(key, value)
        return self.project(self.attend(query, key, value, mask, bias, is_causal, cache))

    def heads(
        self,
        tokens: Tensor,
        context: Tensor | tuple[Tensor, Tensor] | None,
        position: Tensor | None = None,
        context_position: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Queries of the tokens, keys and values of the context or the same tokens, normalised."""
        if context is None:
            query, key, value = self.split(self.qkv, tokens, position, parts=3)
            return *self.normalize(query, key), value
        query = self.query(tokens if position is None else tokens + position)
        query = query.unflatten(2, (self.num_heads, self.head_dim)).transpose(1, 2)
        query = query if self.query_norm is None else self.query_norm(query)
        return query, *(self.keys_and_values(context, context_position) if isinstance(context, Tensor) else context)

    def keys_and_values(self, context: Tensor, position: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Keys and values of a context (batch, M, context_dim), each (batch, heads, M, head_dim), to be used again."""
        key, value = self.split(self.key_value, context, position, parts=2)
        return key if self.key_norm is None else self.key_norm(key), value

    def split(self, layer: nn.Linear, tokens: Tensor, position: Tensor | None, parts: int) -> tuple[Tensor, ...]:
        """A layer's output on tokens in parts, each (batch, heads, tokens, head_dim); the last one sees no position."""
        if position is None:
            joint = layer(tokens).unflatten(2, (parts, self.num_heads, self.head_dim))
            return joint.permute(2, 0, 3, 1, 4).unbind(0)
        width = self.num_heads * self.head_dim
        rows = [(parts - 1) * width, width]
        weights = layer.weight.split(rows)
        biases = (None, None) if layer.bias is None else layer.bias.split(rows)
        placed = functional.linear(tokens + position, weights[0], biases[0])  # (batch, tokens, (parts - 1) * width)
        value = functional.linear(tokens, weights[1], biases[1])  # (batch, tokens, width)
        placed = placed.unflatten(2, (parts - 1, self.num_heads, self.head_dim)).permute(2, 0, 3, 1, 4)
        return *placed.unbind(0), value.unflatten(2, (self.num_heads, self.head_dim)).transpose(1, 2)

    def attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
        bias: Tensor | None,
        is_causal: bool,
        cache: KeyValueCache | None,
    ) -> Tensor:
        """Queries (batch, heads, N, head_dim), and keys of as many rows or fewer, to (batch, N, heads * head_dim)."""
        batch, _, length, _ = query.shape
        sharing = batch // max(key.shape[0], 1)  # rows of queries to one row of keys
        if sharing > 1:
            query = query.unflatten(0, (-1, sharing)).transpose(1, 2).flatten(2, 3)  # (rows, heads, sharing * N, ...)
        if self.record is None:
            attended = dot_product_attention(query, key, value, mask, bias, self.active_dropout(), is_causal=is_causal)
        else:
            weights = attention_weights(query, key, causal_mask(query, key) if is_causal else mask, bias)
            seen = weights if cache is None else cache.by_position(weights)
            if sharing > 1:
                seen = seen.unflatten(2, (sharing, -1)).transpose(1, 2).flatten(0, 1)
            self.record(seen, None)  # (batch, heads, N, keys)
            attended = functional.dropout(weights, self.active_dropout()) @ value
        return attended.transpose(1, 2).reshape(batch, length, self.num_heads * self.head_dim)
