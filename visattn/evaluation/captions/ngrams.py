"""Counts of all n-grams of many sentences at once: what BLEU and CIDEr both start from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Integers = NDArray[np.int64]


class Counts(NamedTuple):
    """How often each n-gram of one length occurs in each sentence, ordered by sentence, then n-gram."""

    sentence: Integers
    """(entries,): the index of the sentence."""
    gram: Integers
    """(entries,): the number of the n-gram among those of its length."""
    number: Integers
    """(entries,): how often it occurs there, 1 or more."""


class Ngrams:
    """Numbers the n-grams of a first set of sentences, and counts n-grams in those and in any others.

    Args:
        sentences: tokenized sentences, tokens separated by white space.
        longest: counts n-grams of 1 to this many words.
    """

    def __init__(self, sentences: Sequence[str], longest: int = 4) -> None:
        self.longest = longest
        self._words: dict[str, int] = {}
        self._known: list[Integers] = []
        self.counts = self._count(sentences, grow=True)
        self.totals = [len(known) for known in self._known]

    def count(self, sentences: Sequence[str]) -> list[Counts]:
        """Per length the counts of other sentences; an n-gram that is not known gets a number from `totals` on."""
        return self._count(sentences, grow=False)

    def _count(self, sentences: Sequence[str], grow: bool) -> list[Counts]:
        split = [sentence.split() for sentence in sentences]
        lengths = np.fromiter(map(len, split), np.int64, len(split))
        numbers = self._words if grow else dict(self._words)
        words = np.fromiter(
            (numbers.setdefault(word, len(numbers)) for line in split for word in line), np.int64, int(lengths.sum())
        )
        sentence = np.repeat(np.arange(len(split)), lengths)  # (words,)
        left = np.repeat(np.cumsum(lengths), lengths) - np.arange(len(words))  # (words,): words to the sentence's end
        gram, base = np.zeros_like(words), 1 << 24  # of the n-gram that ends at the word before: one number so far
        starts = np.arange(len(words))
        counts: list[Counts] = []
        for order in range(self.longest):
            whole = left > order
            sentence, left, gram = sentence[whole], left[whole], gram[whole]
            starts = starts[whole]
            key = gram * base + words[starts + order]
            if grow:
                known, gram = np.unique(key, return_inverse=True)
                self._known.append(known)
            else:
                gram = _number(key, self._known[order])
            span = int(gram.max(initial=0)) + 1
            entries, count = np.unique(sentence * span + gram, return_counts=True)
            counts.append(Counts(entries // span, entries % span, count))
        return counts


def _number(keys: Integers, known: Integers) -> Integers:
    """The place of each key in `known`, or a number beyond its end for a key that is not there."""
    if not len(known):
        return np.unique(keys, return_inverse=True)[1]
    place = np.minimum(np.searchsorted(known, keys), len(known) - 1)
    new = known[place] != keys
    place[new] = len(known) + np.unique(keys[new], return_inverse=True)[1]
    return place


def find(keys: Integers, among: Integers) -> tuple[Integers, NDArray[np.bool_]]:
    """For each key its place in the ascending array `among`, and whether it is there at all."""
    if not len(among):
        return np.zeros(len(keys), np.int64), np.zeros(len(keys), bool)
    place = np.minimum(np.searchsorted(among, keys), len(among) - 1)
    return place, among[place] == keys
