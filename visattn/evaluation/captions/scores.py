"""The official COCO caption evaluation: tokenize, then score every metric for the corpus and for each image."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from visattn.evaluation.captions.ptb_tokenizer import tokenize

METRICS = ("Bleu_1", "Bleu_2", "Bleu_3", "Bleu_4", "METEOR", "ROUGE_L", "CIDEr")
"""The metrics of the official evaluation that need no Java, in its order."""
ON_REQUEST = ("CIDEr-D", "SPICE")

Progress = Callable[[str], object]


class Scores(NamedTuple):
    """What captions are worth, by the official names of the metrics."""

    corpus: dict[str, float]
    """Metric -> the score of the corpus."""
    per_image: dict[Hashable, dict[str, float]]
    """Image id -> metric -> the score of that image's caption."""


def evaluate(
    references: Mapping[Any, Sequence[str]],
    candidates: Mapping[Any, str],
    metrics: Iterable[str] | None = None,
    progress: Progress | None = None,
) -> Scores:
    """Scores captions as pycocoevalcap 1.2 does, with the same numbers.

    Args:
        references: image id -> its reference captions, as a person wrote them.
        candidates: image id -> the caption to judge; the same ids.
        metrics: names out of `METRICS` and `ON_REQUEST`; None is `METRICS`. The official "CIDEr" is CIDEr-D, and both
            names give that score.
        progress: called with the name of each step before it starts.
    Raises:
        ValueError: ids that differ, an image without references, a caption that is no string, an unknown metric.
        ModuleNotFoundError: METEOR without the extra `visattn[meteor]`.
        visattn.evaluation.captions.SpiceUnavailable: SPICE without Java or its models.
    """
    names = tuple(METRICS if metrics is None else metrics)
    _check(references, candidates, names)
    step = progress or (lambda name: None)
    images = list(references)
    step("tokenizer")
    flat = tokenize([caption for image in images for caption in references[image]])
    judged = tokenize([candidates[image] for image in images])
    texts, start = [], 0
    for image in images:
        texts.append(flat[start : start + len(references[image])])
        start += len(references[image])
    corpus: dict[str, float] = {}
    per_image: dict[Hashable, dict[str, float]] = {image: {} for image in images}
    for family in dict.fromkeys(map(_family, names)):
        step(family)
        for name, total, values in _SCORERS[family](texts, judged):
            if name in names:
                corpus[name] = total
                for image, value in zip(images, values, strict=True):
                    per_image[image][name] = value
    order = [name for name in names if name in corpus]
    return Scores({name: corpus[name] for name in order}, per_image)


def _check(references: Mapping, candidates: Mapping, names: Sequence[str]) -> None:
    for name in names:
        if name not in (*METRICS, *ON_REQUEST):
            raise ValueError(f"unknown metric {name!r}; there are {', '.join((*METRICS, *ON_REQUEST))}")
    if not references:
        raise ValueError("there are no images to evaluate")
    if missing := [image for image in references if image not in candidates]:
        raise ValueError(f"{len(missing)} images have references but no candidate, the first is {missing[0]!r}")
    if unknown := [image for image in candidates if image not in references]:
        raise ValueError(f"{len(unknown)} images have a candidate but no references, the first is {unknown[0]!r}")
    for image, captions in references.items():
        if isinstance(captions, str) or not captions:
            raise ValueError(f"the references of image {image!r} must be a list of one or more strings: {captions!r}")
        for caption in (*captions, candidates[image]):
            if not isinstance(caption, str):
                raise ValueError(f"a caption of image {image!r} is no string: {caption!r}")


Result = Iterable[tuple[str, float, Sequence[float]]]


def _bleu(references: list[list[str]], candidates: list[str]) -> Result:
    from visattn.evaluation.captions.bleu import bleu

    corpus, per_image = bleu(references, candidates)
    return [(f"Bleu_{n + 1}", float(corpus[n]), per_image[n].tolist()) for n in range(4)]


def _meteor(references: list[list[str]], candidates: list[str]) -> Result:
    from visattn.evaluation.captions.meteor import Meteor

    corpus, per_image = Meteor().score(references, candidates)
    return [("METEOR", float(corpus), [float(value) for value in per_image])]


def _rouge(references: list[list[str]], candidates: list[str]) -> Result:
    from visattn.evaluation.captions.rouge import rouge_l

    values = rouge_l(references, candidates)
    return [("ROUGE_L", float(np.mean(values)), values.tolist())]


def _cider(references: list[list[str]], candidates: list[str]) -> Result:
    from visattn.evaluation.captions.cider import Cider

    if len(references) == 1:
        warnings.warn(
            "CIDEr of a single image is 0: it weighs n-grams by the images they are missing from", stacklevel=4
        )
    values = Cider(references).score(candidates)
    return [(name, float(np.mean(values)), values.tolist()) for name in ("CIDEr", "CIDEr-D")]


def _spice(references: list[list[str]], candidates: list[str]) -> Result:
    from visattn.evaluation.captions.spice import spice

    values = spice(references, candidates)
    return [("SPICE", math.fsum(values) / len(values), values)]


_SCORERS: dict[str, Callable[[list[list[str]], list[str]], Result]] = {
    "BLEU": _bleu,
    "METEOR": _meteor,
    "ROUGE_L": _rouge,
    "CIDEr": _cider,
    "SPICE": _spice,
}


def _family(name: str) -> str:
    return "BLEU" if name.startswith("Bleu") else "CIDEr" if name.startswith("CIDEr") else name
