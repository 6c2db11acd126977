"""Exact attention in chunks of queries and keys: memory doesn't grow with the number of keys, in either direction."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def chunked_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None = None,
    scale: float | None = None,
    is_causal: bool = False,
    *,
    query_chunk: int | None = None,
    key_chunk: int | None = None,
) -> Tensor:
    """`dot_product_attention` whose scores never exist but for query_chunk queries and key_chunk keys at a time.

    Attention to a part of the keys is a weighted mean, and its weights sum to Z = sum exp(score). Two parts join as
    (Z1 output1 + Z2 output2) / (Z1 + Z2), computed with log Z so that nothing overflows. The backward makes the weights
    again from the scores and log Z. Cost: queries * keys * head_dim, one product more than with kept weights. Memory
    beyond inputs and output: batch * heads * query_chunk * key_chunk.

    Args:
        query: (batch, heads, queries, head_dim).
        key, value: (batch, heads, keys, head_dim).
        mask: bool, True where a query may see a key; broadcasts to (batch, heads, queries, keys). A query that may
            see nothing gets zeros.
        scale: of the scores; None is 1 / sqrt(head_dim).
        is_causal: the i-th query sees the first i + 1 keys only.
        query_chunk, key_chunk: at once; None is 256 on a CPU, whose caches hold the scores of so many, else 1024.

    Returns:
        (batch, heads, queries, head_dim).

    Raises:
        ValueError: a chunk is below 1.

    Source: Rabe & Staats 2021, https://arxiv.org/abs/2112.05682; the backward as in Dao et al. 2022 (FlashAttention,
        https://arxiv.org/abs/2205.14135), algorithm 4.
    """
    chunks = chunk_sizes(query_chunk, key_chunk, query.device)
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    return ChunkedAttention.apply(query, key, value, mask, scale, is_causal, *chunks)


def chunk_sizes(query_chunk: int | None, key_chunk: int | None, device: torch.device) -> tuple[int, int]:
    """The chunks, or for None those that suit a device.

    Raises:
        ValueError: a chunk is below 1.
    """
    usual = 256 if device.type == "cpu" else 1024
    query_chunk = usual if query_chunk is None else query_chunk
    key_chunk = usual if key_chunk is None else key_chunk
    if min(query_chunk, key_chunk) < 1:
        raise ValueError(f"query_chunk {query_chunk} and key_chunk {key_chunk} must be at least 1")
    return query_chunk, key_chunk


class Partial(NamedTuple):
    """Attention to some of the keys.

    Attributes:
        output: (batch, heads, queries, head_dim).
        log_normalizer: (batch, heads, queries), log of the sum of exp(score); -inf where no key is seen.
    """

    output: Tensor
    log_normalizer: Tensor


def attend_to(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float) -> Partial:
    """Attention to these keys alone, in float32 at least; arguments as `chunked_attention`."""
    scores = masked_scores(query, key, mask, scale)  # (batch, heads, queries, keys)
    log_normalizer = scores.logsumexp(dim=-1)
    weights = normalized(scores, log_normalizer[..., None])
    return Partial((weights.to(value.dtype) @ value).to(scores.dtype), log_normalizer)


def join(first: Partial, second: Partial) -> Partial:
    """Attention to the keys of both."""
    total = torch.logaddexp(first.log_normalizer, second.log_normalizer)
    output = first.output * normalized(first.log_normalizer, total)[..., None]
    output += second.output * normalized(second.log_normalizer, total)[..., None]
    return Partial(output, total)


def gradients_of(
    gradient: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    scale: float,
    log_normalizer: Tensor,
    mean_gradient: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """What some queries and some keys contribute to the gradients of query, key and value.

    Args:
        gradient: of the output for these queries.
        log_normalizer: (batch, heads, queries), over all keys that the queries see.
        mean_gradient: (batch, heads, queries), of output times gradient: the mean of the weights' gradients.
    """
    scores = masked_scores(query, key, mask, scale)  # (batch, heads, queries, keys)
    weights = normalized(scores, log_normalizer[..., None])
    value_gradient = weights.to(value.dtype).transpose(-2, -1) @ gradient
    scores_gradient = (gradient @ value.transpose(-2, -1)).to(weights.dtype).sub_(mean_gradient[..., None])
    scores_gradient = scores_gradient.mul_(weights).mul_(scale).to(query.dtype)
    return scores_gradient @ key, scores_gradient.transpose(-2, -1) @ query, value_gradient


def masked_scores(query: Tensor, key: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """(batch, heads, queries, keys) in float32 at least, -inf where the mask is False."""
    scores = query @ key.transpose(-2, -1)
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32)).mul_(scale)
    return scores if mask is None else scores.masked_fill_(~mask, float("-inf"))


def normalized(score: Tensor, log_normalizer: Tensor) -> Tensor:
    """exp(score) as a share of its sum; 0 where there is nothing to see."""
    return (score - log_normalizer.masked_fill(log_normalizer == float("-inf"), 0.0)).exp_()


class ChunkedAttention(torch.autograd.Function):
    """Chunk by chunk, forward and backward."""

    @staticmethod
    def forward(ctx, query, key, value, mask, scale, is_causal, query_chunk, key_chunk):
        ctx.chunks = {"mask": mask, "is_causal": is_causal, "query_chunk": query_chunk, "key_chunk": key_chunk}
        ctx.scale = scale
        attended = nothing_seen(query)
        attend_more(attended, query, key, value, scale, **ctx.chunks)
        output = attended.output.to(query.dtype)
        ctx.save_for_backward(query, key, value, output, attended.log_normalizer)
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        query, key, value, output, log_normalizer = ctx.saved_tensors
        # Sums over many chunks are kept in float32 at least.
        sums = [torch.zeros_like(tensor, dtype=log_normalizer.dtype) for tensor in (query, key, value)]
        mean_gradient = (output * gradient).sum(dim=-1, dtype=log_normalizer.dtype)  # (batch, heads, queries)
        add_gradients(sums, gradient, query, key, value, ctx.scale, log_normalizer, mean_gradient, **ctx.chunks)
        gradients = (total.to(tensor.dtype) for total, tensor in zip(sums, (query, key, value), strict=True))
        return *gradients, None, None, None, None, None


def nothing_seen(query: Tensor) -> Partial:
    """What attention starts from, for `attend_more` to fill; in float32 at least."""
    output = torch.zeros_like(query, dtype=torch.promote_types(query.dtype, torch.float32))
    return Partial(output, output.new_full(query.shape[:-1], float("-inf")))


def attend_more(
    attended: Partial,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scale: float,
    *,
    query_chunk: int,
    key_chunk: int,
    mask: Tensor | None = None,
    is_causal: bool = False,
) -> None:
    """Joins attention to more keys with what was attended to before, in place and chunk by chunk."""
    for queries in slices(query.shape[2], query_chunk):
        joined = Partial(attended.output[:, :, queries], attended.log_normalizer[:, :, queries])
        for keys in slices(key.shape[2], key_chunk):
            seen = mask_of(mask, queries, keys, is_causal, query.device)
            if seen is None or seen.any():
                part = attend_to(query[:, :, queries], key[:, :, keys], value[:, :, keys], seen, scale)
                joined = join(joined, part)
        attended.output[:, :, queries] = joined.output
        attended.log_normalizer[:, :, queries] = joined.log_normalizer


def add_gradients(
    sums: Sequence[Tensor],
    gradient: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scale: float,
    log_normalizer: Tensor,
    mean_gradient: Tensor,
    *,
    query_chunk: int,
    key_chunk: int,
    mask: Tensor | None = None,
    is_causal: bool = False,
) -> None:
    """Adds to `sums` what these queries and keys contribute to the gradients of query, key and value.

    Args:
        gradient, log_normalizer, mean_gradient: see `gradients_of`.
    """
    for keys in slices(key.shape[2], key_chunk):
        for queries in slices(query.shape[2], query_chunk):
            seen = mask_of(mask, queries, keys, is_causal, query.device)
            if seen is not None and not seen.any():
                continue
            parts = gradients_of(
                gradient[:, :, queries],
                query[:, :, queries],
                key[:, :, keys],
                value[:, :, keys],
                seen,
                scale,
                log_normalizer[:, :, queries],
                mean_gradient[:, :, queries],
            )
            for total, part, place in zip(sums, parts, (queries, keys, keys), strict=True):
                total[:, :, place] += part


def slices(length: int, chunk: int) -> Iterator[slice]:
    return (slice(start, min(start + chunk, length)) for start in range(0, length, chunk))


def mask_of(mask: Tensor | None, queries: slice, keys: slice, is_causal: bool, device: torch.device) -> Tensor | None:
    """The part of a mask that some queries and keys need; broadcasts to (batch, heads, queries, keys)."""
    if mask is not None:
        mask = mask[..., queries if mask.shape[-2] > 1 else slice(None), keys if mask.shape[-1] > 1 else slice(None)]
    if is_causal and keys.stop > queries.start + 1:
        past = torch.arange(queries.start, queries.stop, device=device)[:, None]
        seen = torch.arange(keys.start, keys.stop, device=device) <= past
        mask = seen if mask is None else mask & seen
    return mask
