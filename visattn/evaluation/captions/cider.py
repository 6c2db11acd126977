"""CIDEr-D and CIDEr: how well the n-grams of a caption, weighted by their rarity, agree with the references'.

The official evaluation's "CIDEr" is CIDEr-D: it clips repeated n-grams and punishes a difference in length.

Source: Vedantam et al., "CIDEr: Consensus-based image description evaluation", CVPR 2015, sections 3 and 6.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from visattn.evaluation.captions.ngrams import Counts, Ngrams, find

Floats = NDArray[np.float64]


class Cider:
    """Scores captions against the references of a corpus, whose document frequencies are computed once.

    For self-critical training make one from all training references and call `score` on each batch.

    Args:
        references: for each image its tokenized reference captions; all together are the corpus.
        variant: "CIDEr-D" (what the official evaluation calls CIDEr) or "CIDEr", without clipping or length penalty.
        longest: the largest n.
        sigma: the width of the length penalty, in words.
    """

    def __init__(
        self, references: Sequence[Sequence[str]], variant: str = "CIDEr-D", longest: int = 4, sigma: float = 6.0
    ) -> None:
        if variant not in ("CIDEr-D", "CIDEr"):
            raise ValueError(f'variant is {variant!r}; "CIDEr-D" and "CIDEr" exist')
        self.variant, self.sigma, self.longest = variant, sigma, longest
        self.images = len(references)
        sentences = [caption for captions in references for caption in captions]
        self._per_image = np.fromiter(map(len, references), np.int64, self.images)
        self._first = np.concatenate([[0], np.cumsum(self._per_image)])  # (images + 1,): first reference of each
        owner = np.repeat(np.arange(self.images), self._per_image)  # (references,)
        self._length = _lengths(sentences)
        self._ngrams = Ngrams(sentences, longest)
        self._rarity, self._weights, self._norms, self._starts = [], [], [], []
        for (sentence, gram, number), total in zip(self._ngrams.counts, self._ngrams.totals, strict=True):
            span = max(total, 1)
            documents = np.bincount(np.unique(owner[sentence] * span + gram) % span, minlength=total)
            rarity = math.log(max(self.images, 1)) - np.log(np.maximum(documents, 1))  # (totals,)
            weight = number * rarity[gram]
            self._rarity.append(rarity)
            self._weights.append(weight)
            self._norms.append(np.sqrt(np.bincount(sentence, weight**2, len(sentences))))
            self._starts.append(np.searchsorted(sentence, np.arange(len(sentences) + 1)))

    def score(self, candidates: Sequence[str], images: Sequence[int] | None = None) -> Floats:
        """The score of each tokenized candidate, in [0, 10].

        Args:
            candidates: captions, tokens separated by spaces.
            images: for each candidate the index of its image in the corpus; by default one candidate an image in order.
        Returns:
            The scores, `(candidates,)`.
        """
        image = np.arange(self.images) if images is None else np.asarray(images, np.int64)
        if len(image) != len(candidates):
            raise ValueError(f"{len(candidates)} candidates for {len(image)} images")
        # Every pair of a candidate and a reference of its image.
        number = self._per_image[image]
        candidate = np.repeat(np.arange(len(image)), number)  # (pairs,)
        reference = np.arange(len(candidate)) - np.repeat(np.cumsum(number) - number - self._first[image], number)
        difference = _lengths(candidates)[candidate] - self._length[reference]
        agreement = np.zeros(len(candidate))
        for order, counts in enumerate(self._ngrams.count(candidates)):
            agreement += self._similarity(order, counts, candidate, reference, len(candidates))
        if self.variant == "CIDEr-D":
            agreement *= np.exp(-(difference**2) / (2 * self.sigma**2))
        total = np.bincount(candidate, agreement, len(candidates))
        return 10 * total / self.longest / number

    def _similarity(
        self, order: int, counts: Counts, candidate: NDArray, reference: NDArray, candidates: int
    ) -> Floats:
        """The cosine of the n-gram weights of each pair, clipped for CIDEr-D; (pairs,)."""
        rarity = self._rarity[order]
        unseen = math.log(max(self.images, 1))
        known = counts.gram < len(rarity)
        rare = np.full(len(counts.gram), unseen)
        rare[known] = rarity[counts.gram[known]]
        weight = counts.number * rare  # (entries,): of the candidates
        norm = np.sqrt(np.bincount(counts.sentence, weight**2, candidates))
        # All n-grams of the references of the pairs, each looked up in its candidate.
        starts = self._starts[order]
        size = starts[reference + 1] - starts[reference]
        pair = np.repeat(np.arange(len(reference)), size)
        entry = np.arange(len(pair)) - np.repeat(np.cumsum(size) - size - starts[reference], size)
        span = max(len(rarity), int(counts.gram.max(initial=0)) + 1)
        keys = candidate[pair] * span + self._ngrams.counts[order].gram[entry]
        place, there = find(keys, counts.sentence * span + counts.gram)
        mine, theirs = weight[place[there]], self._weights[order][entry[there]]
        shared = np.minimum(mine, theirs) if self.variant == "CIDEr-D" else mine
        value = np.bincount(pair[there], shared * theirs, len(reference)).astype(float)  # integers if there are none
        scale = norm[candidate] * self._norms[order][reference]
        return np.divide(value, scale, out=value, where=scale != 0)


def _lengths(captions: Sequence[str]) -> NDArray[np.int64]:
    """Lengths as the official code counts them, in pairs of neighbouring words."""
    return np.fromiter((max(len(caption.split()) - 1, 0) for caption in captions), np.int64, len(captions))
