"""What the official evaluation lacks: how sure a score is, whether two systems differ, how varied captions are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from visattn.evaluation.captions.cider import Cider


class Interval(NamedTuple):
    low: float
    high: float


class Difference(NamedTuple):
    """How the mean score per image of a first system differs from a second's."""

    mean: float
    """First minus second."""
    interval: Interval
    """Where the mean lies with the confidence asked for."""
    p_value: float
    """How probable a difference as large would be if the systems were equally good."""


class Lengths(NamedTuple):
    mean: float
    deviation: float
    shortest: int
    longest: int


class Diversity(NamedTuple):
    """How varied captions are; all but the lengths grow with variety."""

    vocabulary: int
    """Different words of all captions."""
    distinct: tuple[float, ...]
    """Per n from 1: different n-grams over all n-grams of an image's captions, mean over images."""
    self_cider: float | None
    """1 for captions without a word in common, 0 for equal ones; None with fewer than two captions an image."""
    lengths: Lengths
    """In words."""


def bootstrap_interval(
    values: Sequence[float], confidence: float = 0.95, samples: int = 1000, seed: int = 0
) -> Interval:
    """The interval that holds the mean of per-image scores with the confidence given, by the percentile bootstrap.

    Source: Efron & Tibshirani, "An introduction to the bootstrap", 1993, chapter 13.
    """
    scores = _finite(values)
    means = np.concatenate([block.mean(1) for block in _resamples(scores, samples, seed)])
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(float(low), float(high))


def paired_test(
    first: Sequence[float], second: Sequence[float], confidence: float = 0.95, samples: int = 10000, seed: int = 0
) -> Difference:
    """Compares two systems by their scores of the same images: bootstrap interval and randomization test.

    Source: Noreen, "Computer-intensive methods for testing hypotheses", 1989, for the random exchange of each pair.
    """
    if len(first) != len(second):
        raise ValueError(
            f"the systems have scores of {len(first)} and {len(second)} images; they must be the same images"
        )
    differences = _finite(np.asarray(first, float) - np.asarray(second, float))
    mean = float(differences.mean())
    generator = np.random.default_rng(seed)
    extreme = 0
    for start in range(0, samples, 256):
        signs = generator.integers(0, 2, (min(256, samples - start), len(differences)), dtype=np.int8) * 2 - 1
        extreme += int((np.abs(signs @ differences) >= abs(differences.sum()) - 1e-12).sum())
    interval = bootstrap_interval(differences.tolist(), confidence, min(samples, 1000), seed)
    return Difference(mean, interval, (extreme + 1) / (samples + 1))


def diversity(captions: Mapping[object, Sequence[str]], longest: int = 2) -> Diversity:
    """How varied the tokenized captions are: within each image, and in words overall.

    Source: Wang & Chan, "Describing like humans: on diversity in image captioning", CVPR 2019, section 3.
    """
    if not captions or not any(captions.values()):
        raise ValueError("there are no captions")
    words = {image: [caption.split() for caption in lines] for image, lines in captions.items()}
    lengths = np.array([len(line) for lines in words.values() for line in lines])
    distinct = tuple(float(np.mean([_distinct(lines, n) for lines in words.values()])) for n in range(1, longest + 1))
    several = [list(lines) for lines in captions.values() if len(lines) > 1]
    return Diversity(
        vocabulary=len({word for lines in words.values() for line in lines for word in line}),
        distinct=distinct,
        self_cider=_self_cider(several) if several else None,
        lengths=Lengths(float(lengths.mean()), float(lengths.std()), int(lengths.min()), int(lengths.max())),
    )


def _distinct(lines: Sequence[Sequence[str]], order: int) -> float:
    grams = Counter(tuple(line[i : i + order]) for line in lines for i in range(len(line) - order + 1))
    return len(grams) / max(sum(grams.values()), 1)


def _self_cider(captions: Sequence[Sequence[str]]) -> float:
    """Mean over images of -log of the share of the largest singular value among the captions' mutual CIDEr scores."""
    scorer = Cider([[caption] for lines in captions for caption in lines], variant="CIDEr")
    values, start = [], 0
    for lines in captions:
        number = len(lines)
        rows = np.repeat(np.arange(number), number)
        columns = np.tile(np.arange(number), number) + start
        kernel = scorer.score([lines[row] for row in rows.tolist()], columns.tolist()).reshape(number, number) / 10
        singular = np.sqrt(np.clip(np.linalg.eigvalsh((kernel + kernel.T) / 2), 0, None))
        ratio = singular.max() / singular.sum() if singular.any() else 1.0
        values.append(-np.log(ratio) / np.log(number))
        start += number
    return float(np.mean(values))


def _finite(values) -> np.ndarray:
    scores = np.asarray(values, float)
    if scores.ndim != 1 or not len(scores) or not np.isfinite(scores).all():
        raise ValueError("scores must be a list of one or more finite numbers, one an image")
    return scores


def _resamples(scores: np.ndarray, samples: int, seed: int):
    generator = np.random.default_rng(seed)
    for start in range(0, samples, 100):
        yield scores[generator.integers(0, len(scores), (min(100, samples - start), len(scores)))]
