"""From image tokens to captions: one function for every way to write them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from visattn.text import sampling
from visattn.text.beam_search import beam_search
from visattn.text.constrained_beam_search import constrained_beam_search
from visattn.text.finished_captions import EarlyStopping
from visattn.text.word_scores import Decoder, Generated


def generate(
    decoder: Decoder,
    memory: Tensor,
    *,
    start_ids: Sequence[int] | Tensor,
    end_id: int,
    padding_id: int,
    num_beams: int = 1,
    max_new_tokens: int = 20,
    num_return: int = 1,
    length_penalty: float = 1.0,
    no_repeat_ngram: int = 0,
    min_new_tokens: int = 0,
    forced_words: Sequence[Sequence[int]] = (),
    num_groups: int = 1,
    diversity: float = 0.0,
    sample: bool = False,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    generator: torch.Generator | None = None,
    early_stopping: EarlyStopping = False,
    memory_mask: Tensor | None = None,
) -> list[list[Generated]]:
    """Writes captions: greedily, by beam search, by diverse or constrained beam search, or by drawing words.

    Gradients are off; dropout is as the decoder's mode says, so call `eval()` first.

    Args:
        decoder: see `Decoder`.
        memory: (images, N, C), the image tokens.
        start_ids: what every caption begins with: ids, or (images, n) with n ids for each image.
        end_id: the end of a caption.
        padding_id: what stands behind the end, where the decoder reads captions of other lengths.
        num_beams: captions that a beam search keeps; 1 and no forced words: greedy.
        max_new_tokens: words and end that a caption may have; without an end it is cut off there.
        num_return: captions per image: at most num_beams with beams, any number with `sample`.
        length_penalty: a beam search compares log-probability / (words and end) ** length_penalty.
        no_repeat_ngram: no n-gram of so many words occurs twice, start ids included; 0 allows all.
        min_new_tokens: words that a caption has at least, without the end.
        forced_words: ids that each caption must contain, each a word or several in a row.
        num_groups: beams that avoid each other's words; a divisor of num_beams.
        diversity: what a word costs a beam for each caption of an earlier one that has it at the same place.
        sample: draw words at random.
        temperature, top_k, top_p: divide the logits by the first, then keep the k likeliest words (0: all), then the
            fewest with the probability p together.
        generator: of the random numbers; None: torch's own.
        early_stopping: when a beam search ends: True, when num_beams captions have ended; False, when the best
            beginning, scored as if it ended there, is no better than the worst of num_beams finished ones; "never",
            when it can't become better at any length.
        memory_mask: (images, N), bool, True for image tokens that exist; None: all.

    Returns:
        For each image num_return captions, best first: beams by the score above, drawn ones by probability. Beams
        return fewer where fewer exist: in a tiny vocabulary, or when several groups found the same.

    Raises:
        ValueError: options that don't go together or are out of range, logits that aren't finite, or a caption that
            can't be, because every next word is banned.
    """
    check_options(
        num_beams, num_return, max_new_tokens, min_new_tokens, no_repeat_ngram, num_groups, diversity, early_stopping
    )
    if sample:
        check_sampling(temperature, top_k, top_p, alone=num_beams == 1 and num_groups == 1 and not forced_words)
    elif (temperature, top_k, top_p, generator) != (1.0, 0, 1.0, None):
        raise ValueError("temperature, top_k, top_p and generator are for drawn words: set sample=True")
    elif num_return > num_beams:
        raise ValueError(f"num_return {num_return} exceeds the {num_beams} captions that are kept: raise num_beams")
    elif forced_words and num_groups > 1:
        raise ValueError("forced_words and num_groups don't go together")

    common: dict[str, Any] = {
        "start_ids": start_ids,
        "end_id": end_id,
        "max_new_tokens": max_new_tokens,
        "min_new_tokens": min_new_tokens,
        "no_repeat_ngram": no_repeat_ngram,
        "memory_mask": memory_mask,
    }
    beams: dict[str, Any] = {
        "num_beams": num_beams,
        "num_return": num_return,
        "length_penalty": length_penalty,
        "early_stopping": early_stopping,
    }
    if memory.shape[0] == 0:
        return []
    with torch.inference_mode(), without_autocast_cache(memory.device.type):
        if sample:
            return sampling.sample(
                decoder,
                memory,
                padding_id=padding_id,
                num_return=num_return,
                temperature=temperature,
                top_k=top_k,
                top_p=top_p,
                generator=generator,
                **common,
            )
        if forced_words:
            return constrained_beam_search(decoder, memory, forced_words=forced_words, **beams, **common)
        if num_beams == 1:
            return sampling.greedy(decoder, memory, padding_id=padding_id, **common)
        return beam_search(decoder, memory, num_groups=num_groups, diversity=diversity, **beams, **common)


def check_options(
    num_beams: int,
    num_return: int,
    max_new_tokens: int,
    min_new_tokens: int,
    no_repeat_ngram: int,
    num_groups: int,
    diversity: float,
    early_stopping: EarlyStopping,
) -> None:
    """Raises ValueError where an option of `generate` is out of range."""
    for name, value, least in (
        ("num_beams", num_beams, 1),
        ("num_return", num_return, 1),
        ("max_new_tokens", max_new_tokens, 1),
        ("min_new_tokens", min_new_tokens, 0),
        ("no_repeat_ngram", no_repeat_ngram, 0),
        ("num_groups", num_groups, 1),
        ("diversity", diversity, 0),
    ):
        if value < least:
            raise ValueError(f"{name} {value} is too small: at least {least}")
    if num_beams % num_groups:
        raise ValueError(f"num_groups {num_groups} doesn't divide num_beams {num_beams}")
    if diversity and num_groups == 1:
        raise ValueError(f"diversity {diversity} needs groups that avoid each other: set num_groups")
    if not isinstance(early_stopping, bool) and early_stopping != "never":
        raise ValueError(f"early_stopping {early_stopping!r} is none of True, False, 'never'")


def check_sampling(temperature: float, top_k: int, top_p: float, alone: bool) -> None:
    """Raises ValueError where an option of drawing words is out of range, or others are given that it doesn't know."""
    if not alone:
        raise ValueError("sample draws captions one by one: leave out num_beams, num_groups and forced_words")
    if not temperature > 0:
        raise ValueError(f"temperature {temperature} is not above 0; for the likeliest words leave out sample")
    if top_k < 0:
        raise ValueError(f"top_k {top_k} is below 0; 0 keeps all words")
    if not 0 < top_p <= 1:
        raise ValueError(f"top_p {top_p} is not above 0 and at most 1")


@contextmanager
def without_autocast_cache(device: str) -> Iterator[None]:
    """Within autocast, keeps the 16-bit weights made here out of its cache: a training step after it needs others,
    through which gradients flow."""
    if not torch.is_autocast_enabled(device):
        yield
        return
    with torch.autocast(device, torch.get_autocast_dtype(device), cache_enabled=False):
        yield
