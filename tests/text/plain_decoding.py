"""Decoding as defined: one image, no cache, every word of the vocabulary, a whole forward at each step."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable

import torch
from torch import Tensor

from visattn.heads import CaptionDecoder

START, END, PADDING = 1, 2, 0
Probabilities = Callable[[list[int]], list[float]]  # words so far to the log-probability of each next word


def small_decoder(seed: int, vocabulary: int = 23, style: str = "cross", end: float = 0.0, spread: float = 0.4):
    """Random weights far from 0, so that captions differ from image to image; `end` makes the end likelier."""
    generator = torch.Generator().manual_seed(seed)
    decoder = CaptionDecoder(
        vocabulary, 10, dim=24, depth=2, num_heads=3, max_length=24, style=style, head_bias=True, tie_embeddings=False
    )
    for name, parameter in decoder.named_parameters():
        if parameter.ndim > 1:
            std = spread if "head" in name else 0.4
            parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * std)  # however it lies in memory
    decoder.head.bias.data[END] += end
    return decoder.eval()


def image_tokens(seed: int, images: int = 3) -> Tensor:
    return torch.randn(images, 5, 10, generator=torch.Generator().manual_seed(seed))


def probabilities_of(decoder: CaptionDecoder, memory: Tensor, start: list[int], mask: Tensor | None = None):
    """Of one image's tokens (N, C): a function from words to the log-probabilities of the next one."""

    @functools.cache
    @torch.no_grad()
    def probabilities(words: tuple[int, ...]) -> list[float]:
        logits = decoder(memory[None], torch.tensor([[*start, *words]]), None if mask is None else mask[None])
        return logits[0, -1].double().log_softmax(dim=0).tolist()

    return lambda words: probabilities(tuple(words))


def banned(words: list[int], start: list[int], word: int, no_repeat_ngram: int, min_new_tokens: int) -> bool:
    if word == END and len(words) < min_new_tokens:
        return True
    text, n = [*start, *words, word], no_repeat_ngram
    return n > 0 and len(text) >= n and text[-n:] in [text[i : i + n] for i in range(len(text) - n)]


def total(probabilities: Probabilities, words: list[int], has_end: bool) -> float:
    """log p(words and end)"""
    text = words + [END] * has_end
    return sum(probabilities(text[:i])[word] for i, word in enumerate(text))


def plain_greedy(probabilities, start, max_new_tokens, no_repeat_ngram=0, min_new_tokens=0):
    words: list[int] = []
    while len(words) < max_new_tokens:
        scores = probabilities(words)
        allowed = [w for w in range(len(scores)) if not banned(words, start, w, no_repeat_ngram, min_new_tokens)]
        word = max(allowed, key=scores.__getitem__)
        if word == END:
            return words
        words = [*words, word]
    return words


def plain_beam_search(
    probabilities,
    start,
    max_new_tokens,
    num_beams,
    length_penalty=1.0,
    early_stopping=False,
    no_repeat_ngram=0,
    min_new_tokens=0,
    cost=lambda words, word: 0.0,
    chosen=None,
):
    """Finished captions as (score, words), best first.

    cost(words so far, word) is subtracted from log-probabilities; `chosen` is called with the words of the beginnings
    that are kept at each step.
    """
    running, finished = [(0.0, [])], []
    for length in range(1, max_new_tokens + 1):
        candidates = [
            (score + log_probability - cost(words, word), [*words, word])
            for score, words in running
            for word, log_probability in enumerate(probabilities(words))
            if not banned(words, start, word, no_repeat_ngram, min_new_tokens)
        ]
        candidates.sort(key=lambda candidate: -candidate[0])
        top = candidates[: 2 * num_beams]
        for score, text in top[:num_beams]:
            if text[-1] == END or length == max_new_tokens:
                finished.append((score / length**length_penalty, text))
        finished = sorted(finished, key=lambda caption: -caption[0])[:num_beams]
        running = [(score, text) for score, text in top if text[-1] != END][:num_beams]
        if length == max_new_tokens or not running:
            break
        if len(finished) == num_beams:
            reach = max_new_tokens if early_stopping == "never" and length_penalty > 0 else length
            if early_stopping is True or running[0][0] / reach**length_penalty <= finished[-1][0]:
                break
        if chosen is not None:
            chosen(length, [text[-1] for _, text in running])
    return [(score, [word for word in text if word != END], text[-1] == END) for score, text in finished]


def plain_diverse_beam_search(probabilities, start, max_new_tokens, num_beams, num_groups, diversity, **options):
    """The captions of all groups as (score without costs, words), each group searched to its end before the next."""
    taken: dict[int, list[int]] = {}  # step to the words that earlier groups went on with
    captions = {}
    for _ in range(num_groups):
        own: dict[int, list[int]] = {}
        penalty = options.get("length_penalty", 1.0)
        for _, words, has_end in plain_beam_search(
            probabilities,
            start,
            max_new_tokens,
            num_beams // num_groups,
            cost=lambda words, word: diversity * taken.get(len(words) + 1, []).count(word),
            chosen=own.__setitem__,
            **options,
        ):
            score = total(probabilities, words, has_end)
            captions[tuple(words)] = (score / (len(words) + has_end) ** penalty, words, has_end)
        for step, words in own.items():
            taken[step] = taken.get(step, []) + words
    return sorted(captions.values(), key=lambda caption: -caption[0])


def contains(words: list[int], forced: list[int]) -> bool:
    return any(words[i : i + len(forced)] == forced for i in range(len(words)))


def plain_grid_search(
    probabilities, start, max_new_tokens, num_beams, forced_words, length_penalty=1.0, early_stopping=False
):
    """Finished captions as (score, words, whether it has an end): a beam for each number of forced ids so far."""
    total_length = sum(map(len, forced_words))

    def place(words: list[int]) -> int:
        found = [forced for forced in forced_words if contains(words, forced)]
        begun = [
            size
            for forced in forced_words
            if forced not in found
            for size in range(1, len(forced))
            if words[-size:] == forced[:size]
        ]
        return sum(map(len, found)) + max(begun, default=0)

    running, finished = [(0.0, [])], []
    for length in range(1, max_new_tokens + 1):
        beams: dict[int, list] = {}
        for score, words in running:
            for word, log_probability in enumerate(probabilities(words)):
                if word != END or place(words) == total_length:
                    where = total_length if word == END else place([*words, word])
                    beams.setdefault(where, []).append((score + log_probability, [*words, word]))
        running = []
        for where, candidates in beams.items():
            top = sorted(candidates, key=lambda candidate: -candidate[0])[: 2 * num_beams]
            running += [candidate for candidate in top if candidate[1][-1] != END][:num_beams]
            if where == total_length:
                ends = [c for c in top[:num_beams] if c[1][-1] == END or length == max_new_tokens]
                finished += [(score / length**length_penalty, text) for score, text in ends]
        finished = sorted(finished, key=lambda caption: -caption[0])[:num_beams]
        best = max(score for score, _ in running) / length**length_penalty
        if len(finished) == num_beams and (early_stopping or best <= finished[-1][0]):
            break
    return [(score, [word for word in text if word != END], text[-1] == END) for score, text in finished]


def all_captions(probabilities, vocabulary, max_new_tokens, length_penalty=1.0):
    """Every caption there is as (score, words, whether it has an end), best first."""
    others = [word for word in range(vocabulary) if word != END]
    captions = []
    for length in range(max_new_tokens + 1):
        for words in itertools.product(others, repeat=length):
            has_end = length < max_new_tokens
            score = total(probabilities, list(words), has_end) / (length + has_end) ** length_penalty
            captions.append((score, list(words), has_end))
    return sorted(captions, key=lambda caption: -caption[0])
