"""Beam search, with one beam for each image or several that avoid each other's words."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from visattn.text.finished_captions import EarlyStopping, FinishedCaptions
from visattn.text.word_scores import Bans, Decoder, Generated, best_words, log_normalizer, start_rows, worth_dropping


def beam_search(
    decoder: Decoder,
    memory: Tensor,
    *,
    start_ids: Sequence[int] | Tensor,
    end_id: int,
    num_beams: int = 5,
    num_groups: int = 1,
    diversity: float = 0.0,
    num_return: int = 1,
    max_new_tokens: int = 20,
    length_penalty: float = 1.0,
    early_stopping: EarlyStopping = False,
    no_repeat_ngram: int = 0,
    min_new_tokens: int = 0,
    memory_mask: Tensor | None = None,
) -> list[list[Generated]]:
    """Keeps the num_beams likeliest beginnings of each image's caption. Args and Returns as `generate`.

    A caption that ends while it is among the num_beams likeliest is finished. Its score is its log-probability divided
    by (number of words and end) ** length_penalty; the num_beams best finished ones are kept.

    With several groups each is a beam of num_beams / num_groups captions. At each step a word costs a beam `diversity`
    for every caption of an earlier beam that goes on with this word at the same place (Hamming diversity); costs add
    up over a caption and steer its own beam. The captions of all beams come back together, equal ones once, by scores
    without costs.

    Source: Graves 2012, https://arxiv.org/abs/1211.3711, section 2.7; score, ends and stopping rule are those of
        Hugging Face's transformers 5, so that captions equal those of its `generate`. Groups: Vijayakumar et al. 2018,
        https://arxiv.org/abs/1610.02424, algorithm 1.
    """
    size = num_beams // num_groups
    token_ids = start_rows(start_ids, memory, num_beams)  # (images * num_beams, n)
    num_start = token_ids.shape[1]
    bans = Bans(end_id, min_new_tokens, no_repeat_ngram)
    images = [
        [
            Beam(size, start, end_id, FinishedCaptions(size, max_new_tokens, length_penalty, early_stopping))
            for _ in range(num_groups)
        ]
        for start in token_ids[::num_beams].tolist()
    ]
    state = decoder.begin(memory, memory_mask, num_beams=num_beams, max_length=num_start + max_new_tokens - 1)
    held = images  # those that the state knows of

    for num_new in range(max_new_tokens):
        rows = [row for beams in held for beam in beams for row in beam.rows]
        logits = decoder.step(token_ids, state).float()  # (images * num_beams, vocabulary)
        normalizer = log_normalizer(logits)
        bans.apply(logits, [row.caption for row in rows], num_new)
        # A beam goes on with `size` of its 2 * size likeliest words, as only `size` of them can be ends. No more than
        # that many can be of one row, beside those that may fall back for their costs.
        count = 2 * size + (num_beams - size if diversity else 0)
        values, words = best_words(logits, min(count, logits.shape[1]))  # (images * num_beams, count)
        before = torch.tensor([row.score for row in rows], device=memory.device)
        advance(held, before[:, None] + (values - normalizer[:, None]), words, diversity, num_new + 1)

        going_on = [i for i, beams in enumerate(held) if not all(beam.done for beam in beams)]
        if not going_on:
            break
        following = [beam.rows for beams in held for beam in beams]
        origins = [beam * size + row.origin for beam, rows in enumerate(following) for row in rows]
        if origins != list(range(len(origins))):
            state.reorder(torch.tensor(origins, device=memory.device))
        if worth_dropping(len(going_on), len(held)):
            state.keep(torch.tensor(going_on, device=memory.device))
            held = [held[i] for i in going_on]
        last = [row.caption[-1] for beams in held for beam in beams for row in beam.rows]
        token_ids = torch.tensor(last, device=memory.device)[:, None]  # (images * num_beams, 1)
    return [best_captions(beams, num_return) for beams in images]


class Row(NamedTuple):
    """The beginning of a caption: its score with costs, the costs, its former row in the beam, start and words."""

    score: float
    cost: float
    origin: int
    caption: list[int]


class Beam:
    """The likeliest beginnings of one image's caption.

    Args:
        size: how many.
        start: ids that every caption begins with.
        end_id: the end.
        finished: takes those that end.

    Attributes:
        rows: `size` beginnings, likeliest first; where there are fewer, others with the score -inf fill up.
        done: nothing better can come.
    """

    def __init__(self, size: int, start: list[int], end_id: int, finished: FinishedCaptions) -> None:
        self.size, self.num_start, self.end_id, self.finished = size, len(start), end_id, finished
        # Equal beginnings must not compete: at the start there is one.
        self.rows = [Row(-math.inf if i else 0.0, 0.0, i, start) for i in range(size)]
        self.done = False

    def advance(self, continuations: Iterable[tuple[float, int, int]], costs: dict[int, float], length: int) -> None:
        """Takes one more word, the `length`-th.

        Args:
            continuations: score, word and row of the 2 * size best continuations, best first.
            costs: what each word costs within these scores; 0 if not named.
        """
        rows: list[Row] = []
        for rank, (score, word, origin) in enumerate(continuations):
            if score == -math.inf:
                break
            _, cost, _, caption = self.rows[origin]
            cost += costs.get(word, 0.0)
            if word != self.end_id and length < self.finished.max_new_tokens:
                if len(rows) < self.size:
                    rows.append(Row(score, cost, origin, [*caption, word]))
            elif rank < self.size:
                words = caption[self.num_start :] + [word] * (word != self.end_id)
                self.finished.add(words, length, score, cost)
        self.done = not rows or self.finished.is_settled(rows[0].score, length)
        rows = [] if self.done else rows
        self.rows = rows + [Row(-math.inf, 0.0, i, self.rows[0].caption) for i in range(len(rows), self.size)]


def advance(held: list[list[Beam]], scores: Tensor, words: Tensor, diversity: float, length: int) -> None:
    """Takes one more word, the `length`-th, in all beams of all images.

    Args:
        held: for each image its beams.
        scores: (images * beams * size, n), of captions that go on with `words`, of which each row has the likeliest.
        words: the same shape.
        diversity: what a word costs for each caption of an earlier beam that goes on with it.
    """
    size, count = held[0][0].size, words.shape[1]
    by_beam = (len(held), len(held[0]), size * count)
    scores, words = scores.view(by_beam), words.view(by_beam)
    taken: list[list[int]] = [[] for _ in held]  # words with which earlier beams go on
    for group in range(by_beam[1]):
        totals, choices = scores[:, group], words[:, group]  # (images, size * count)
        if diversity and group:
            earlier = torch.tensor(taken, device=words.device)  # (images, group * size)
            totals = totals - diversity * (choices[:, :, None] == earlier[:, None]).sum(dim=2)
        best, places = totals.topk(min(2 * size, size * count))  # (images, 2 * size)
        columns = (best.tolist(), choices.gather(1, places).tolist(), (places // count).tolist())
        for i, (beams, *columns_of_image) in enumerate(zip(held, *columns, strict=True)):
            beam = beams[group]
            if not beam.done:
                costs = {word: diversity * number for word, number in Counter(taken[i]).items()} if diversity else {}
                beam.advance(zip(*columns_of_image, strict=True), costs, length)
            if diversity:
                taken[i] += [-1 if row.score == -math.inf else row.caption[-1] for row in beam.rows]


def best_captions(beams: list[Beam], count: int) -> list[Generated]:
    """The best finished captions of an image's beams by their own scores; one that several found counts once.

    Raises:
        ValueError: there is none.
    """
    finished = [caption for beam in beams for caption in beam.finished.captions]
    if not finished:
        raise ValueError("every next word is banned: choose a larger no_repeat_ngram or lower min_new_tokens")
    if len(beams) > 1:
        finished = list({tuple(caption.generated.token_ids): caption for caption in finished}.values())
        finished.sort(key=lambda caption: -caption.score)
    return [caption.generated for caption in finished[:count]]
