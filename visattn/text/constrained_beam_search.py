"""Beam search for captions that must contain given words."""

from __future__ import annotations

import math
from collections.abc import Sequence
from operator import itemgetter
from typing import NamedTuple

import torch
from torch import Tensor

from visattn.text.finished_captions import EarlyStopping, FinishedCaptions
from visattn.text.word_scores import Bans, Decoder, Generated, best_words, log_normalizer, start_rows, worth_dropping

Found = frozenset[tuple[int, ...]]  # forced words
Continuation = tuple[float, int, int, Found]  # score, word, row, and the forced words in the caption with this word


def constrained_beam_search(
    decoder: Decoder,
    memory: Tensor,
    *,
    forced_words: Sequence[Sequence[int]],
    start_ids: Sequence[int] | Tensor,
    end_id: int,
    num_beams: int = 5,
    num_return: int = 1,
    max_new_tokens: int = 20,
    length_penalty: float = 1.0,
    early_stopping: EarlyStopping = False,
    no_repeat_ngram: int = 0,
    min_new_tokens: int = 0,
    memory_mask: Tensor | None = None,
) -> list[list[Generated]]:
    """Beam search among captions that contain all forced words. Args and Returns as `generate`.

    Beginnings compete only with those that have got equally far: with n forced ids there are n + 1 beams of num_beams
    captions, for those that contain 0 to n of them, and a caption ends in the last beam only. A beginning's place
    follows from its words alone, whether the model or the search chose them: a forced word counts when it is complete,
    or the part of it that the caption ends with; of several such parts the longest.

    Cost: n + 1 times that of beam search with num_beams.

    Raises:
        ValueError: a forced word is empty, has the end in it, or all of them exceed max_new_tokens; or, with
            no_repeat_ngram, no caption has been found that contains them.

    Source: grid beam search: Hokamp and Liu 2017, https://arxiv.org/abs/1704.07138, section 3; the words of a caption
        read by a machine of finite states: Anderson et al. 2017, https://arxiv.org/abs/1612.00576, section 3.2.
    """
    forced = ForcedWords(forced_words, end_id)
    if forced.length > max_new_tokens:
        raise ValueError(
            f"the forced words are {forced.length} ids; max_new_tokens {max_new_tokens} has no room for them"
        )
    copies = (forced.length + 1) * num_beams
    token_ids = start_rows(start_ids, memory, copies)  # (images * copies, n)
    num_start = token_ids.shape[1]
    bans = Bans(end_id, min_new_tokens, no_repeat_ngram)
    grids = [
        Grid(forced, start, num_beams, FinishedCaptions(num_beams, max_new_tokens, length_penalty, early_stopping))
        for start in token_ids[::copies].tolist()
    ]
    state = decoder.begin(memory, memory_mask, num_beams=copies, max_length=num_start + max_new_tokens - 1)
    held = grids  # those that the state knows of
    forced_ids = torch.tensor(sorted(forced.ids), device=memory.device)

    for num_new in range(max_new_tokens):
        rows = [row for grid in held for row in grid.rows]
        logits = decoder.step(token_ids, state).float()  # (images * copies, vocabulary)
        normalizer = log_normalizer(logits)
        bans.apply(logits, [row.caption for row in rows], num_new)
        # 2 * num_beams other words of a row are enough for a beam, as num_beams of them at most are ends.
        values, words = best_words(logits, min(2 * num_beams + len(forced_ids), logits.shape[1]))
        values = torch.cat([values, logits[:, forced_ids]], dim=1)  # (images * copies, count + forced ids)
        words = torch.cat([words, forced_ids.expand(len(words), -1)], dim=1)
        before = torch.tensor([row.score for row in rows], device=memory.device)
        scores = (before[:, None] + (values - normalizer[:, None])).view(len(held), copies, -1)
        for grid, its_scores, its_words in zip(held, scores.tolist(), words.view_as(scores).tolist(), strict=True):
            if not grid.done:
                grid.advance(its_scores, its_words, num_new + 1)

        going_on = [i for i, grid in enumerate(held) if not grid.done]
        if not going_on:
            break
        origins = [i * copies + row.origin for i, grid in enumerate(held) for row in grid.rows]
        state.reorder(torch.tensor(origins, device=memory.device))
        if worth_dropping(len(going_on), len(held)):
            state.keep(torch.tensor(going_on, device=memory.device))
            held = [held[i] for i in going_on]
        last = [row.caption[-1] for grid in held for row in grid.rows]
        token_ids = torch.tensor(last, device=memory.device)[:, None]  # (images * copies, 1)
    return [grid.best_captions(num_return) for grid in grids]


class Row(NamedTuple):
    """The beginning of a caption: its score, its former row in the grid, the forced words in it, start and words."""

    score: float
    origin: int
    found: Found
    caption: list[int]


class Grid:
    """The likeliest beginnings of one image's caption, `size` for each number of forced ids that they contain.

    Args:
        forced: the forced words.
        start: ids that every caption begins with.
        size: how many beginnings of each kind.
        finished: takes those that end.

    Attributes:
        rows: (forced ids + 1) * size beginnings; where there are fewer, others with the score -inf fill up.
        done: nothing better can come.
    """

    def __init__(self, forced: ForcedWords, start: list[int], size: int, finished: FinishedCaptions) -> None:
        self.forced, self.num_start, self.size, self.finished = forced, len(start), size, finished
        first = Row(0.0, 0, frozenset(), start)
        self.filler = first._replace(score=-math.inf)
        self.rows = [first] + [self.filler] * ((forced.length + 1) * size - 1)
        self.done = False

    def advance(self, scores: list[list[float]], words: list[list[int]], length: int) -> None:
        """Takes one more word, the `length`-th.

        Args:
            scores: of each row's continuations: the best ones, and behind them all forced ids in rising order.
            words: of these continuations.
        """
        rows: list[Row] = []
        for place, beam in enumerate(self.continuations(scores, words)):
            beam.sort(key=itemgetter(0), reverse=True)
            kept: list[Row] = []
            for rank, (score, word, origin, found) in enumerate(beam[: 2 * self.size]):
                caption = self.rows[origin].caption
                if word != self.forced.end_id and length < self.finished.max_new_tokens:
                    if len(kept) < self.size:
                        kept.append(Row(score, origin, found, [*caption, word]))
                elif place == self.forced.length and rank < self.size:
                    end = [] if word == self.forced.end_id else [word]
                    self.finished.add(caption[self.num_start :] + end, length, score)
            rows += kept + [self.filler] * (self.size - len(kept))
        self.rows = rows
        best = max(row.score for row in rows)
        self.done = best == -math.inf or self.finished.is_settled(best, length)

    def continuations(self, scores: list[list[float]], words: list[list[int]]) -> list[list[Continuation]]:
        """Those of all rows, by the number of forced ids that they contain; the end where it contains all."""
        forced = self.forced
        beams: list[list[Continuation]] = [[] for _ in range(forced.length + 1)]
        for origin, row in enumerate(self.rows):
            if row.score == -math.inf:
                continue
            complete = sum(map(len, row.found))
            num_best = len(words[origin]) - len(forced.ids)
            for column, (score, word) in enumerate(zip(scores[origin], words[origin], strict=True)):
                if score == -math.inf:
                    continue
                if column >= num_best:
                    found, place = forced.read(row.found, [*row.caption[self.num_start :], word])
                    beams[place].append((score, word, origin, found))
                elif word not in forced.ids and (word != forced.end_id or complete == forced.length):
                    beams[complete].append((score, word, origin, row.found))
        return beams

    def best_captions(self, count: int) -> list[Generated]:
        """The best finished ones.

        Raises:
            ValueError: there is none.
        """
        if not self.finished.captions:
            raise ValueError("no caption with all forced words has been found: allow more words, or repeated n-grams")
        return [caption.generated for caption in self.finished.captions[:count]]


class ForcedWords:
    """A machine that reads captions and tells which of the forced words they contain.

    Args:
        forced_words: ids of each; equal ones count once.
        end_id: the end, which can't be among them.

    Attributes:
        length: the number of their ids.
        ids: the different ones of these.

    Raises:
        ValueError: a forced word is empty or has the end in it.
    """

    def __init__(self, forced_words: Sequence[Sequence[int]], end_id: int) -> None:
        self.words, self.end_id = list(dict.fromkeys(map(tuple, forced_words))), end_id
        self.ids = {word_id for word in self.words for word_id in word}
        self.length = sum(map(len, self.words))
        if () in self.words or end_id in self.ids:
            raise ValueError(f"forced_words {list(forced_words)}: each needs an id, and none may be the end, {end_id}")

    def read(self, found: Found, caption: list[int]) -> tuple[Found, int]:
        """Reads the last word of a caption (without start) before which the forced words `found` were in it.

        Returns:
            Those found now, and how many forced ids that is, with those of the longest one that has just begun.
        """
        missing = [word for word in self.words if word not in found]
        found = found.union(word for word in missing if caption[-len(word) :] == list(word))
        begun = (
            size
            for word in missing
            if word not in found
            for size in range(1, len(word))
            if caption[-size:] == list(word[:size])
        )
        return found, sum(map(len, found)) + max(begun, default=0)
