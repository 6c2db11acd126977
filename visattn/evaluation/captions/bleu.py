"""BLEU-1 to BLEU-4 as the official caption evaluation computes them.

Source: Papineni et al., "BLEU: a method for automatic evaluation of machine translation", ACL 2002, 2.2 to 2.3.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from visattn.evaluation.captions.ngrams import Ngrams, find

Floats = NDArray[np.float64]

_TINY, _SMALL = 1e-15, 1e-9  # keep empty candidates and missing n-grams finite, as in the official code


def bleu(references: Sequence[Sequence[str]], candidates: Sequence[str], longest: int = 4) -> tuple[Floats, Floats]:
    """BLEU of tokenized captions, with the reference length closest to the candidate's (the shorter on a tie).

    Args:
        references: for each image its reference captions, tokens separated by spaces.
        candidates: for each image its candidate caption.
        longest: the largest n.
    Returns:
        The corpus scores `(longest,)` and the scores of each image `(longest, images)`, in [0, 1].
    """
    images = len(candidates)
    sentences = [caption for captions in references for caption in captions]
    owner = np.repeat(np.arange(images), [len(captions) for captions in references])  # (references,): its image
    ngrams = Ngrams([*candidates, *sentences], longest)
    length = np.fromiter((len(caption.split()) for caption in candidates), np.int64, images)
    reference_length = _closest_lengths(length, references)
    correct, guessed = np.zeros((longest, images)), np.zeros((longest, images))
    for order, (sentence, gram, number) in enumerate(ngrams.counts):
        total = ngrams.totals[order]
        mine = sentence < images
        key = owner[sentence[~mine] - images] * total + gram[~mine]
        keys, group = np.unique(key, return_inverse=True)
        most = np.zeros(len(keys), np.int64)  # the largest count of the n-gram in one reference of the image
        np.maximum.at(most, group, number[~mine])
        place, there = find(sentence[mine] * total + gram[mine], keys)
        allowed = np.where(there, most[place] if len(most) else 0, 0)
        correct[order] = np.bincount(sentence[mine], np.minimum(number[mine], allowed), images)
        guessed[order] = np.maximum(length - order, 0)
    per_image = _scores(correct, guessed, length, reference_length)
    corpus = _scores(
        correct.sum(1, keepdims=True), guessed.sum(1, keepdims=True), length.sum()[None], reference_length.sum()[None]
    )
    return corpus[:, 0], per_image


def _closest_lengths(lengths: NDArray[np.int64], references: Sequence[Sequence[str]]) -> NDArray[np.int64]:
    closest = [
        min((abs(n - length), n) for n in [len(caption.split()) for caption in captions])[1]
        for length, captions in zip(lengths.tolist(), references, strict=True)
    ]
    return np.array(closest, np.int64)


def _scores(correct: Floats, guessed: Floats, length: NDArray, reference_length: NDArray) -> Floats:
    """Geometric means of the precisions with the brevity penalty; (longest, items)."""
    precision = np.cumprod((correct + _TINY) / (guessed + _SMALL), axis=0)
    mean = precision ** (1.0 / np.arange(1, len(correct) + 1))[:, None]
    ratio = (length + _TINY) / (reference_length + _SMALL)
    with np.errstate(over="ignore"):
        return mean * np.where(ratio < 1, np.exp(1 - 1 / ratio), 1.0)
