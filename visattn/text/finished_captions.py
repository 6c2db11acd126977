"""The captions of a beam that have ended, and when to stop looking for better ones."""

from __future__ import annotations

from bisect import insort
from typing import Literal, NamedTuple

from visattn.text.word_scores import Generated

EarlyStopping = bool | Literal["never"]


class Finished(NamedTuple):
    """A caption that has ended: the score by which its beam judges it, costs included, and its own."""

    beam_score: float
    score: float
    generated: Generated


class FinishedCaptions:
    """The best captions of one beam that have ended, at most `size`, best first in `captions`.

    The score of a caption is its log-probability / (words and end) ** length_penalty, as in Hugging Face's
    transformers 5, and the search stops when theirs does.

    Args:
        size: captions to keep.
        max_new_tokens: words and end that a caption may have.
        length_penalty: 0 compares log-probabilities, 1 their mean over the words; more favours long captions.
        early_stopping: see `visattn.text.generate`.
    """

    def __init__(self, size: int, max_new_tokens: int, length_penalty: float, early_stopping: EarlyStopping) -> None:
        self.size, self.max_new_tokens = size, max_new_tokens
        self.length_penalty, self.early_stopping = length_penalty, early_stopping
        self.captions: list[Finished] = []

    def add(self, words: list[int], length: int, score: float, cost: float = 0.0) -> None:
        """Keeps a caption if it is among the best.

        Args:
            words: without start and end.
            length: number of words, the end counted if there is one.
            score: log-probability of words and end, less the cost.
            cost: what this caption cost in its beam.
        """
        scale, log_probability = length**self.length_penalty, score + cost
        finished = Finished(score / scale, log_probability / scale, Generated(words, log_probability))
        insort(self.captions, finished, key=lambda caption: -caption.beam_score)
        del self.captions[self.size :]

    def is_settled(self, best: float, length: int) -> bool:
        """Whether no better caption is expected from beginnings of `length` words, the best of which has score `best`.

        As in transformers a beginning is judged as if it ended here, which with a length penalty above 0 may be too
        early; with early_stopping "never" it gets the most that it can reach.
        """
        if len(self.captions) < self.size:
            return False
        if self.early_stopping is True:
            return True
        if self.early_stopping == "never" and self.length_penalty > 0:
            length = self.max_new_tokens
        return best / length**self.length_penalty <= self.captions[-1].beam_score
