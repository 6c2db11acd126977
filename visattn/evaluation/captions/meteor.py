"""METEOR 1.5 for English without Java, as the official caption evaluation runs it (`-l en -norm`).

Source: Denkowski & Lavie, "Meteor Universal: language specific translation evaluation for any target language", WMT
2014, section 2.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from visattn.evaluation.captions.meteor_alignment import Candidate, Match, align
from visattn.evaluation.captions.meteor_index import open_index
from visattn.evaluation.captions.meteor_normalizer import normalize
from visattn.evaluation.captions.meteor_words import Caption, Lexicon

_ALPHA, _BETA, _GAMMA, _DELTA = 0.85, 0.20, 0.60, 0.75
_STAGE_WEIGHTS = (1.0, 0.6, 0.8, 0.6)  # exact, stem, synonym, paraphrase

# The statistics of a segment are a row of 23 numbers, in the order in which the original prints them: the lengths of
# candidate and reference; their function words; four numbers a stage (from place 4: matched content words of candidate
# and reference, matched function words of candidate and reference); chunks; matched words of candidate and reference.
_LENGTHS, _FUNCTIONS, _CHUNKS, _WORDS = slice(0, 2), slice(2, 4), 20, slice(21, 23)


class Meteor:
    """Scores tokenized captions.

    Making one opens METEOR's tables, and builds them into the user's cache folder the first time. It can be shared
    among threads.

    Raises:
        ModuleNotFoundError: the extra `visattn[meteor]` is not installed.
    """

    def __init__(self) -> None:
        self._index = open_index()

    def score(
        self, references: Sequence[Sequence[str]], candidates: Sequence[str]
    ) -> tuple[float, NDArray[np.float64]]:
        """METEOR of the corpus and of each candidate.

        Args:
            references: for each image its reference captions, tokens separated by spaces.
            candidates: for each image its candidate caption.
        Returns:
            The score of the corpus, from statistics summed over images rather than from the mean of scores, and the
            score of each image against its best reference, `(images,)`; all in [0, 1].
        """
        rows = self.statistics(references, candidates)
        per_image = np.array([_score(row) for row in rows])
        if not rows:
            return 0.0, per_image
        return _score(_total(rows)), per_image

    def statistics(self, references: Sequence[Sequence[str]], candidates: Sequence[str]) -> list[list[int]]:
        """The statistics of each candidate with its best reference, in the order in which the original prints them."""
        # The wrapper of the original separates captions by "|||", so a reference that holds it is two.
        split = [[part for caption in group for part in caption.split("|||")] for group in references]
        texts = [[normalize(caption, self._index) for caption in group] for group in split]
        judged = [normalize(caption.replace("|||", ""), self._index) for caption in candidates]
        words = {word for group in texts for caption in group for word in caption}.union(*judged)
        lexicon = Lexicon(words, self._index)
        return [
            _best_statistics(Caption(candidate, lexicon), [Caption(caption, lexicon) for caption in group], lexicon)
            for candidate, group in zip(judged, texts, strict=True)
        ]


def _best_statistics(candidate: Caption, references: list[Caption], lexicon: Lexicon) -> list[int]:
    among: frozenset[str] = frozenset().union(*(reference.distinct for reference in references))
    prepared = Candidate(candidate, among, lexicon)
    best, highest = [0] * 23, -1.0
    for reference in references:
        statistics = _statistics(candidate, reference, *align(prepared, reference))
        score = _score(statistics)
        if score > highest:
            best, highest = statistics, score
    return best


def _statistics(candidate: Caption, reference: Caption, matches: list[Match], chunks: int) -> list[int]:
    row = [0] * 23
    row[_LENGTHS] = len(candidate.words), len(reference.words)
    row[_FUNCTIONS] = candidate.number_of_functions, reference.number_of_functions
    for stage, place, size, other, other_size in matches:
        for is_function in candidate.functions[other : other + other_size]:
            row[4 + 4 * stage + 2 * is_function] += 1
        for is_function in reference.functions[place : place + size]:
            row[5 + 4 * stage + 2 * is_function] += 1
    row[_CHUNKS] = chunks
    row[_WORDS] = sum(row[4:20:2]), sum(row[5:20:2])
    return row


def _total(rows: list[list[int]]) -> list[int]:
    """The statistics of the corpus; a candidate equal to its reference adds no chunk."""
    total = np.array(rows, np.int64)
    total[[_is_perfect(row) for row in rows], _CHUNKS] = 0
    return total.sum(0).tolist()


def _is_perfect(row: Sequence[int]) -> bool:
    return row[_WORDS] == row[_LENGTHS] and row[_CHUNKS] == 1


def _score(row: list[int]) -> float:
    """METEOR of one segment's statistics or of their sum over a corpus."""
    if not any(row[_WORDS]):
        return 0.0
    precision, recall = (_weighted_share(row, side) for side in (0, 1))
    mean = 1 / ((1 - _ALPHA) / precision + _ALPHA / recall)
    fragmentation = 0.0 if _is_perfect(row) else row[_CHUNKS] / (sum(row[_WORDS]) / 2)
    return max(mean * (1 - _GAMMA * fragmentation**_BETA), 0.0)


def _weighted_share(row: Sequence[int], side: int) -> float:
    """The share of the candidate's (side 0) or the reference's (side 1) words that match, weighted."""
    length, functions = row[_LENGTHS][side], row[_FUNCTIONS][side]
    matched = 0.0
    for content, weight in zip(row[4 + side : 20 : 4], _STAGE_WEIGHTS, strict=True):
        matched += content * weight * _DELTA
    for function, weight in zip(row[6 + side : 20 : 4], _STAGE_WEIGHTS, strict=True):
        matched += function * weight * (1 - _DELTA)
    return matched / (_DELTA * (length - functions) + (1 - _DELTA) * functions)
