"""What a decoder says about the next word: the interface, and exact arithmetic on rows of logits that is fast."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor


class Generated(NamedTuple):
    """One caption: its words without start and end, and log p(words and end | image) under the model.

    A caption that was cut off at the greatest length has no end; then it is log p(words | image). The probability is
    the model's own, whatever temperature, bans or penalties the words were chosen with.
    """

    token_ids: list[int]
    log_probability: float


class DecoderState(Protocol):
    """What a decoder remembers of images and of the words so far; rows are images * num_beams, image by image."""

    def reorder(self, indices: Tensor) -> None:
        """indices (rows,): which former row each row continues; it is one of the same image."""

    def keep(self, images: Tensor) -> None:
        """images (n,), ascending: which images stay; the rows of the others are gone."""


class Decoder(Protocol):
    """What decoding asks of a model; `visattn.heads.CaptionDecoder` is one."""

    def begin(self, memory: Tensor, memory_mask: Tensor | None = None, *, num_beams: int = 1, max_length: int) -> Any:
        """Image tokens (images, N, C) and their mask to a `DecoderState` for captions of max_length words."""

    def step(self, token_ids: Tensor, state: Any) -> Tensor:
        """New words (rows, n) to the logits (rows, vocabulary) behind the last; the state takes the words in."""


def log_normalizer(logits: Tensor) -> Tensor:
    """(rows, vocabulary) -> (rows,): what is to be subtracted from a logit to make it a log-probability.

    On CPUs some rows at a time: with 1 MB of numbers all passes but the first find them in the cache.

    Raises:
        ValueError: a logit is no number or infinite.
    """
    rows = max(1, 2**18 // logits.shape[1] if logits.device.type == "cpu" else len(logits))
    normalizer = torch.cat([part.logsumexp(dim=-1) for part in logits.split(rows)])
    if not normalizer.isfinite().all():
        raise ValueError("the decoder's logits are not finite: its weights, or the image tokens, hold NaN or infinity")
    return normalizer


def best_words(logits: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The highest logits of each row, in falling order, and their words; as `logits.topk(count)`, but fast.

    The count highest numbers lie in the count blocks with the highest maxima, so that only those are searched.

    Args:
        logits: (rows, vocabulary).
        count: how many; at most the vocabulary.

    Returns:
        values and words, both (rows, count).
    """
    rows, vocabulary = logits.shape
    width = 64
    blocks = vocabulary // width
    if blocks < 8 * count:
        return logits.topk(count)
    maxima = logits[:, : blocks * width].unflatten(1, (blocks, width)).amax(dim=2)  # (rows, blocks)
    first = maxima.topk(count, sorted=False).indices * width  # (rows, count)
    words = (first[:, :, None] + torch.arange(width, device=logits.device)).flatten(1)  # (rows, count * width)
    rest = torch.arange(blocks * width, vocabulary, device=logits.device).expand(rows, -1)
    words = torch.cat([words, rest], dim=1)
    values, places = logits.gather(1, words).topk(count)
    return values, words.gather(1, places)


class Bans:
    """Words that may not come next: the end before a least length, and what would repeat an n-gram.

    Args:
        end_id: the end.
        min_new_tokens: words that a caption has at least, the end not among them.
        no_repeat_ngram: no n-gram of this many words occurs twice, those of the start included; 0 allows all.
    """

    def __init__(self, end_id: int, min_new_tokens: int, no_repeat_ngram: int) -> None:
        self.end_id = end_id
        self.min_new_tokens = min_new_tokens
        self.no_repeat_ngram = no_repeat_ngram

    def apply(self, logits: Tensor, captions: Sequence[list[int]], num_new: int) -> None:
        """Sets the logits (rows, vocabulary) of banned words to -inf, in place.

        Args:
            logits: of the words behind `captions`.
            captions: for each row the start and the words so far.
            num_new: how many words follow the start so far.
        """
        if num_new < self.min_new_tokens:
            logits[:, self.end_id] = float("-inf")
        if self.no_repeat_ngram:
            banned = [(row, word) for row, caption in enumerate(captions) for word in self.repeating(caption)]
            if banned:
                rows, words = torch.tensor(banned, device=logits.device).unbind(1)
                logits[rows, words] = float("-inf")

    def repeating(self, caption: list[int]) -> list[int]:
        """The words that would complete an n-gram for the second time."""
        before = self.no_repeat_ngram - 1
        if len(caption) < before:
            return []
        last = caption[len(caption) - before :]
        return [caption[i + before] for i in range(len(caption) - before) if caption[i : i + before] == last]


def start_rows(start_ids: Sequence[int] | Tensor, memory: Tensor, copies: int) -> Tensor:
    """The start of each caption: (images * copies, n), long.

    Args:
        start_ids: n ids for all images, or (images, n).
        memory: (images, N, C).
        copies: captions per image.

    Raises:
        ValueError: there is no start, or not one for each image.
    """
    starts = torch.as_tensor(start_ids, dtype=torch.long, device=memory.device)
    if starts.ndim == 1:
        starts = starts.expand(memory.shape[0], -1)
    if starts.ndim != 2 or starts.shape[0] != memory.shape[0] or starts.shape[1] == 0:
        shape = tuple(starts.shape)
        raise ValueError(f"start_ids {shape} are neither n ids for all nor ({memory.shape[0]}, n), an id at least")
    return starts.repeat_interleave(copies, dim=0)


def worth_dropping(remaining: int, held: int) -> bool:
    """Whether so few of the images are unfinished that copying what is remembered of them pays."""
    return 0 < remaining <= 0.75 * held
