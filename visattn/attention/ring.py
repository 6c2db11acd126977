"""Exact attention of tokens that are spread over processes: keys and values travel from process to process."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple

import torch
from torch import Tensor, distributed
from torch.autograd.function import once_differentiable

from visattn.attention.chunked import add_gradients, attend_more, chunk_sizes, nothing_seen
from visattn.attention.dot_product import MultiHeadAttention, attention_weights
from visattn.attention.key_value_cache import KeyValueCache

_alone: ContextVar[bool] = ContextVar("alone", default=False)


def ring_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scale: float | None = None,
    group: distributed.ProcessGroup | None = None,
    *,
    query_chunk: int | None = None,
    key_chunk: int | None = None,
) -> Tensor:
    """`dot_product_attention` among the tokens of all processes, of which each holds a part.

    While a process attends to the keys it has, they are sent on to the next; after as many rounds as there are
    processes all queries have met all keys, and the parts are joined as in `chunked_attention`. In the backward the
    gradients of keys and values travel with them and come home complete. Cost of a process: its queries * all keys *
    head_dim; sent by it: all keys and values, and in the backward three times that. Memory: two parts of keys and
    values, and a chunk of scores.

    Without `torch.distributed`, or with one process, it is `chunked_attention`.

    Args:
        query, key, value: (batch, heads, tokens here, head_dim); processes may hold different numbers of tokens.
        scale: of the scores; None is 1 / sqrt(head_dim).
        group: of the processes; None is all of them.
        query_chunk, key_chunk: at once, see `chunked_attention`.

    Returns:
        (batch, heads, tokens here, head_dim).

    Raises:
        ValueError: a chunk is below 1.

    Source: Liu, Zaharia & Abbeel 2023, https://arxiv.org/abs/2310.01889.
    """
    chunks = chunk_sizes(query_chunk, key_chunk, query.device)
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    return RingAttentionFunction.apply(query, key, value, scale, group, *chunks)


class RingAttention(MultiHeadAttention):
    """Self-attention of several heads among the tokens of all processes: `MultiHeadAttention`, with the same weights.

    What it records are the weights of the tokens here for those of all processes, in order of the processes; in one
    process the output is computed from them.

    Args as `ProjectedAttention`; dropout of weights isn't possible.
    """

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
        """Queries, keys and values here (batch, heads, N, head_dim) to (batch, N, heads * head_dim).

        Raises:
            ValueError: there is a mask, a bias or a cache, or weights should be dropped.
        """
        if mask is not None or bias is not None or is_causal or cache is not None:
            raise ValueError("ring attention lets every token see all tokens: it takes no mask, bias or cache")
        if self.active_dropout():
            raise ValueError(f"ring attention never sees a whole row of weights: set dropout {self.dropout} to 0")
        if self.record is not None and not is_spread(None):  # by the weights, so that they have gradients
            return super().attend(query, key, value, None, None, False, None)
        if self.record is not None:
            self.record(attention_weights(query, gather_tokens(key, dim=2)), None)
        return ring_attention(query, key, value).transpose(1, 2).flatten(2)


def tokens_here(tokens: Tensor, dim: int = 1, group: distributed.ProcessGroup | None = None) -> Tensor:
    """The part of all tokens that this process works on, of nearly equal length; the inverse of `gather_tokens`."""
    if not is_spread(group):
        return tokens
    return tokens.tensor_split(distributed.get_world_size(group), dim)[distributed.get_rank(group)]


def gather_tokens(tokens: Tensor, dim: int = 1, group: distributed.ProcessGroup | None = None) -> Tensor:
    """The tokens of all processes, in their order, in each of them.

    The gradient of the tokens here is that of their place in the result, times the number of processes: where every
    process goes on to compute the same loss, and gradients of parameters are averaged as DistributedDataParallel does,
    they are then those of one process that holds all tokens.

    Args:
        tokens: of which the processes may hold different numbers; all other axes are equal.
        dim: the axis of the tokens.
    """
    return GatherFunction.apply(tokens, dim, group)


class RingAttentionFunction(torch.autograd.Function):
    """Round by round, forward and backward."""

    @staticmethod
    def forward(ctx, query, key, value, scale, group, query_chunk, key_chunk):
        ring = Ring(key.shape[2], key.device, group)
        attended = nothing_seen(query)
        held = torch.stack((key, value))  # (2, batch, heads, tokens, head_dim)
        for step in range(ring.size):
            passing = ring.start_passing(held, step) if step < ring.size - 1 else None
            attend_more(attended, query, held[0], held[1], scale, query_chunk=query_chunk, key_chunk=key_chunk)
            held = held if passing is None else passing.wait()
        output = attended.output.to(query.dtype)
        ctx.save_for_backward(query, key, value, output, attended.log_normalizer)
        ctx.options = (scale, ring, query_chunk, key_chunk)
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        query, key, value, output, log_normalizer = ctx.saved_tensors
        scale, ring, query_chunk, key_chunk = ctx.options
        mean_gradient = (output * gradient).sum(dim=-1, dtype=log_normalizer.dtype)  # (batch, heads, queries)
        query_gradient = torch.zeros_like(query, dtype=log_normalizer.dtype)
        held = torch.stack((key, value))
        held_gradients = torch.zeros_like(held, dtype=log_normalizer.dtype)
        for step in range(ring.size):
            passing = ring.start_passing(held, step) if step < ring.size - 1 else None
            add_gradients(
                (query_gradient, held_gradients[0], held_gradients[1]),
                gradient,
                query,
                held[0],
                held[1],
                scale,
                log_normalizer,
                mean_gradient,
                query_chunk=query_chunk,
                key_chunk=key_chunk,
            )
            held = held if passing is None else passing.wait()
            if ring.size > 1:
                held_gradients = ring.start_passing(held_gradients, step).wait()
        key_gradient, value_gradient = held_gradients.to(key.dtype)
        return query_gradient.to(query.dtype), key_gradient, value_gradient, None, None, None, None


class Ring:
    """The processes of a group, each of which sends to the next what it holds of another one's tokens.

    Args:
        length: tokens here.
        device: of what is sent.
        group: None is all processes.

    Attributes:
        size: number of processes.
    """

    def __init__(self, length: int, device: torch.device, group: distributed.ProcessGroup | None) -> None:
        self.group = group
        spread = is_spread(group)
        self.size, self.rank = (distributed.get_world_size(group), distributed.get_rank(group)) if spread else (1, 0)
        self.lengths = lengths_of(length, device, group) if spread else [length]

    def start_passing(self, held: Tensor, step: int) -> Passing:
        """Sends what is held in this step (from 0) on, and receives what the process before holds.

        Args:
            held: (2, batch, heads, tokens, head_dim), of the process `step` places before this one.
        """
        length = self.lengths[(self.rank - step - 1) % self.size]
        incoming = held.new_empty(*held.shape[:3], length, held.shape[4])
        ranks = [(self.rank + 1) % self.size, (self.rank - 1) % self.size]
        following, preceding = (
            rank if self.group is None else distributed.get_global_rank(self.group, rank) for rank in ranks
        )
        held = held.contiguous()
        works = distributed.batch_isend_irecv(
            [
                distributed.P2POp(distributed.isend, held, following, self.group),
                distributed.P2POp(distributed.irecv, incoming, preceding, self.group),
            ]
        )
        return Passing(works, incoming, held)


class Passing(NamedTuple):
    """What is under way; `sent` must live until it has arrived."""

    works: list[Any]
    incoming: Tensor
    sent: Tensor

    def wait(self) -> Tensor:
        for work in self.works:
            work.wait()
        return self.incoming


class GatherFunction(torch.autograd.Function):
    """Concatenates the tensors of all processes."""

    @staticmethod
    def forward(ctx, tokens, dim, group):
        ctx.dim = dim
        if not is_spread(group):
            ctx.place = (0, tokens.shape[dim], 1)
            return tokens.clone()
        size, rank = distributed.get_world_size(group), distributed.get_rank(group)
        lengths = lengths_of(tokens.shape[dim], tokens.device, group)
        ctx.place = (sum(lengths[:rank]), lengths[rank], size)
        shape = list(tokens.shape)
        shape[dim] = max(lengths)
        mine = tokens.new_zeros(shape)
        mine.narrow(dim, 0, lengths[rank]).copy_(tokens)
        parts = [torch.empty_like(mine) for _ in range(size)]
        distributed.all_gather(parts, mine, group=group)
        return torch.cat([part.narrow(dim, 0, length) for part, length in zip(parts, lengths, strict=True)], dim)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        start, length, size = ctx.place
        return gradient.narrow(ctx.dim, start, length) * size, None, None


@contextmanager
def without_other_processes() -> Iterator[None]:
    """Within it this process has all tokens and waits for no other: for what one of them does alone after a run."""
    token = _alone.set(True)
    try:
        yield
    finally:
        _alone.reset(token)


def is_spread(group: distributed.ProcessGroup | None) -> bool:
    """Whether there are several processes that share the tokens."""
    together = distributed.is_available() and distributed.is_initialized() and not _alone.get()
    return together and distributed.get_world_size(group) > 1


def lengths_of(length: int, device: torch.device, group: distributed.ProcessGroup | None) -> list[int]:
    """How many tokens each process holds."""
    mine = torch.tensor([length], device=device)
    lengths = [torch.empty_like(mine) for _ in range(distributed.get_world_size(group))]
    distributed.all_gather(lengths, mine, group=group)
    return [int(length) for length in lengths]
