"""ROUGE-L as the official caption evaluation computes it.

Source: Lin, "ROUGE: a package for automatic evaluation of summaries", 2004, section 3; the maxima of precision and
recall over the references are taken independently, as in the official code.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

_BETA = 1.2


def rouge_l(references: Sequence[Sequence[str]], candidates: Sequence[str]) -> NDArray[np.float64]:
    """ROUGE-L of each tokenized candidate, in [0, 1]; `(images,)`.

    Args:
        references: for each image its reference captions, tokens separated by single spaces.
        candidates: for each image its candidate caption.
    """
    return np.array([_score(captions, candidate) for captions, candidate in zip(references, candidates, strict=True)])


def _score(references: Sequence[str], candidate: str) -> float:
    words = candidate.split(" ")
    places: dict[str, int] = {}  # word -> a bit for each place in the candidate
    for place, word in enumerate(words):
        places[word] = places.get(word, 0) | 1 << place
    precision = recall = 0.0
    for reference in references:
        others = reference.split(" ")
        common = _longest_common_subsequence(places, others, len(words))
        precision = max(precision, common / len(words))
        recall = max(recall, common / len(others))
    if precision == 0 or recall == 0:
        return 0.0
    return (1 + _BETA**2) * precision * recall / (recall + _BETA**2 * precision)


def _longest_common_subsequence(places: dict[str, int], others: Sequence[str], length: int) -> int:
    """Its length, by one row of the table at a time as the bits of an integer (Hyyrö, 2004)."""
    everything = (1 << length) - 1
    row = everything
    for word in others:
        if word in places:
            matches = row & places[word]
            row = (row + matches) | (row - matches)
    return length - (row & everything).bit_count()
