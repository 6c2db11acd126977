"""Caption files: COCO annotations, COCO results and Karpathy's splits, checked once, when they are read."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Iterable
from os import PathLike
from pathlib import Path
from typing import Any

from visattn.evaluation.captions.ptb_tokenizer import LINE_SEPARATORS
from visattn.evaluation.captions.scores import Progress, Scores, evaluate

_LONE_SURROGATE = re.compile("[\ud800-\udfff]")


class CaptionFileError(ValueError):
    """A caption file that cannot be used; the message names the file, the entry and the field."""


def read_references(path: str | PathLike[str], split: str | None = None) -> dict[int, list[str]]:
    """The reference captions of each image, in the order of the file.

    Args:
        path: COCO annotations (`{"images": ..., "annotations": [{"image_id", "caption"}]}`), or a split of Karpathy's
            (`{"images": [{"sentences": [{"raw"}], "split"}]}`).
        split: "train", "restval", "val" or "test" of Karpathy's file; None takes all.
    Raises:
        CaptionFileError: the file is not of that form, an image appears twice, or a caption is missing, no string, no
            valid Unicode or holds a line separator.
    Warns:
        UserWarning: captions are empty; they score as in the official evaluation.
    """
    data = _load(path)
    if not isinstance(data, dict):
        raise CaptionFileError(f'{path}: expected an object with "annotations" or "images", found {_kind(data)}')
    if "annotations" in data:
        if split is not None:
            raise CaptionFileError(f"{path}: COCO annotations hold no splits, so --split {split} cannot be taken")
        return _from_annotations(path, data)
    if "images" in data:
        return _from_karpathy(path, data["images"], split)
    raise CaptionFileError(f'{path}: neither "annotations" (COCO) nor "images" (Karpathy) is there')


def read_candidates(path: str | PathLike[str], known: Iterable[int]) -> dict[int, str]:
    """The caption of each image of a COCO results file, `[{"image_id", "caption"}, ...]`.

    Raises:
        CaptionFileError: the file is not of that form, an image is not among `known`, or has two captions; or one of
            the captions is as `read_references` refuses it.
    Warns:
        UserWarning: captions are empty; they score as in the official evaluation.
    """
    data = _load(path)
    if not isinstance(data, list):
        raise CaptionFileError(f'{path}: expected a list of {{"image_id", "caption"}}, found {_kind(data)}')
    ids = set(known)
    candidates: dict[int, str] = {}
    empty: list[str] = []
    for index, entry in enumerate(data):
        where = f"{path}: entry {index}"
        image = _image(where, entry, "image_id")
        if image not in ids:
            raise CaptionFileError(f'{where}: "image_id" {image!r} has no references')
        if image in candidates:
            raise CaptionFileError(f'{where}: "image_id" {image!r} has a caption already; one an image is allowed')
        candidates[image] = _caption(where, entry, "caption", empty)
    _warn_of(empty)
    if not candidates:
        raise CaptionFileError(f"{path}: the list of results is empty")
    return candidates


def evaluate_coco(
    annotation_file: str | PathLike[str],
    results_file: str | PathLike[str],
    metrics: Iterable[str] | None = None,
    split: str | None = None,
    progress: Progress | None = None,
) -> Scores:
    """Scores a results file as COCOEvalCap does: the images that it holds, which are also CIDEr's corpus.

    Args:
        annotation_file: the references, see `read_references`.
        results_file: the candidates, see `read_candidates`.
        metrics, progress: see `evaluate`.
        split: the part of Karpathy's file to take.
    Raises:
        CaptionFileError: one of the files cannot be used.
    """
    references = read_references(annotation_file, split)
    candidates = read_candidates(results_file, references)
    judged = {image: captions for image, captions in references.items() if image in candidates}
    return evaluate(judged, candidates, metrics, progress)


def _load(path: str | PathLike[str]) -> Any:
    try:
        return json.loads(Path(path).read_text(encoding="utf-8-sig"))
    except UnicodeDecodeError as error:
        raise CaptionFileError(f"{path}: not UTF-8 (byte {error.start}); save the file as UTF-8") from None
    except json.JSONDecodeError as error:
        raise CaptionFileError(f"{path}: no JSON: {error}") from None


def _from_annotations(path: str | PathLike[str], data: dict) -> dict[int, list[str]]:
    references: dict[int, list[str]] = {}
    empty: list[str] = []
    if not isinstance(data["annotations"], list):
        raise CaptionFileError(f'{path}: "annotations" must be a list, found {_kind(data["annotations"])}')
    for index, entry in enumerate(data["annotations"]):
        where = f"{path}: annotation {index}"
        image = _image(where, entry, "image_id")
        references.setdefault(image, []).append(_caption(where, entry, "caption", empty))
    _warn_of(empty)
    if not references:
        raise CaptionFileError(f'{path}: "annotations" is empty')
    # pycocotools goes by the list of images, and the order of captions matters to the tokenizer.
    images = data.get("images", [])
    if not isinstance(images, list):
        raise CaptionFileError(f'{path}: "images" must be a list, found {_kind(images)}')
    order = {_image(f"{path}: image {index}", entry, "id"): None for index, entry in enumerate(images)}
    return {image: references[image] for image in (*order, *references) if image in references}


def _from_karpathy(path: str | PathLike[str], images: Any, split: str | None) -> dict[int, list[str]]:
    if not isinstance(images, list):
        raise CaptionFileError(f'{path}: "images" must be a list, found {_kind(images)}')
    references: dict[int, list[str]] = {}
    empty: list[str] = []
    for index, entry in enumerate(images):
        where = f"{path}: image {index}"
        sentences = _field(where, entry, "sentences")
        if split is not None and _field(where, entry, "split") != split:
            continue
        name = "cocoid" if "cocoid" in entry else "imgid"
        image = _image(where, entry, name)
        if image in references:
            raise CaptionFileError(f'{where}: "{name}" {image!r} is that of an image before')
        if not isinstance(sentences, list) or not sentences:
            raise CaptionFileError(f'{where}: "sentences" must be a list of one or more sentences')
        references[image] = [_caption(f"{where}, sentence {i}", line, "raw", empty) for i, line in enumerate(sentences)]
    _warn_of(empty)
    if not references:
        raise CaptionFileError(f"{path}: no image" if split is None else f"{path}: no image of split {split!r}")
    return references


def _field(where: str, entry: Any, name: str) -> Any:
    if not isinstance(entry, dict):
        raise CaptionFileError(f"{where}: expected an object, found {_kind(entry)}")
    if name not in entry:
        raise CaptionFileError(f'{where}: "{name}" is missing')
    return entry[name]


def _image(where: str, entry: Any, name: str) -> Any:
    image = _field(where, entry, name)
    if isinstance(image, bool) or not isinstance(image, int | str):
        raise CaptionFileError(f'{where}: "{name}" must be a number or a string, found {_kind(image)}')
    return image


def _caption(where: str, entry: Any, name: str, empty: list[str]) -> str:
    """The caption of an entry; notes in `empty` where one is."""
    caption = _field(where, entry, name)
    if not isinstance(caption, str):
        raise CaptionFileError(f'{where}: "{name}" must be a string, found {_kind(caption)}')
    if separator := LINE_SEPARATORS.search(caption):
        raise CaptionFileError(f'{where}: "{name}" holds the line separator U+{ord(separator[0]):04X}: {caption!r}')
    if surrogate := _LONE_SURROGATE.search(caption):
        raise CaptionFileError(
            f'{where}: "{name}" is no valid Unicode (a lone surrogate at {surrogate.start()}): {caption!r}'
        )
    if not caption.strip():
        empty.append(f'{where}: "{name}" is empty')
    return caption


def _warn_of(empty: list[str]) -> None:
    if empty:
        more = f" (as are {len(empty) - 1} more)" if len(empty) > 1 else ""
        warnings.warn(f"{empty[0]}{more}; it scores as in the official evaluation", stacklevel=4)


def _kind(value: Any) -> str:
    kinds = {dict: "an object", list: "a list", str: "a string", type(None): "null", bool: "a truth value"}
    return kinds.get(type(value), "a number")
