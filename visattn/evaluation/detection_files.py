"""COCO annotations and results of detection, checked before they are judged."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from pycocotools import mask as run_lengths


class DetectionFileError(ValueError):
    """Annotations or results that cannot be judged; the message names the file, the entry and the field."""


class Truth(NamedTuple):
    """Ground truth as pycocotools takes it, with nothing missing.

    Attributes:
        images: {"id", "height", "width"} each, the sizes None where they aren't known.
        categories: {"id", "name"} each, by ascending id.
        annotations: {"id", "image_id", "category_id", "iscrowd", "area"} each, with "bbox", or "segmentation" as
            compressed run lengths.
    """

    images: list[dict[str, Any]]
    categories: list[dict[str, Any]]
    annotations: list[dict[str, Any]]


def read_json(path: str | PathLike[str]) -> Any:
    """What is in a JSON file.

    Raises:
        FileNotFoundError: there is no such file.
        DetectionFileError: it is no JSON, or cut off.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: there is no such file")
    try:
        return json.loads(Path(path).read_text(encoding="utf-8-sig"))
    except UnicodeDecodeError as error:
        raise DetectionFileError(f"{path}: not UTF-8 (byte {error.start}); save the file as UTF-8") from None
    except (json.JSONDecodeError, RecursionError) as error:
        raise DetectionFileError(f"{path}: no JSON, or cut off: {error}") from None


def check_instances(ground_truth: Any, masks: bool, origin: str) -> Truth:
    """Ground truth that nothing is wrong with.

    Args:
        ground_truth: the contents of an `instances_*.json`.
        masks: whether masks are judged, else boxes.
        origin: what messages call it.

    Raises:
        DetectionFileError: it isn't of that form, has no images or categories, ids are repeated or point nowhere, a box
            or an area is none, or a mask is missing or doesn't fit its image.
    """
    images: dict[int, dict[str, Any]] = {}
    categories: dict[int, dict[str, Any]] = {}
    annotations: dict[int, dict[str, Any]] = {}

    def image(entry: dict[str, Any]) -> None:
        number = new_id(entry, images)
        images[number] = {"id": number, "height": entry.get("height"), "width": entry.get("width")}

    def category(entry: dict[str, Any]) -> None:
        number = new_id(entry, categories)
        categories[number] = {"id": number, "name": str(entry.get("name", number))}

    def annotation(entry: dict[str, Any]) -> None:
        number = new_id(entry, annotations)
        try:
            shape = outline(entry, images, categories, masks)
            crowd = entry.get("iscrowd", 0)
            if crowd not in (0, 1):
                raise DetectionFileError(f'"iscrowd" is {shown(crowd)}, neither 0 nor 1')
            area = entry["area"] if entry.get("area") is not None else area_of(entry, shape, images)
            if not are_finite(area) or area < 0:
                raise DetectionFileError(f'"area" is {shown(area)}, no finite number from 0')
        except DetectionFileError as error:
            raise DetectionFileError(f"id {number}: {error}") from None
        annotations[number] = {"id": len(annotations) + 1, "iscrowd": int(crowd), "area": area} | shape

    for name, take in (("images", image), ("categories", category), ("annotations", annotation)):
        each(list_of(ground_truth, name, origin), take, f"{origin}: {name}")
        if name != "annotations" and not ground_truth[name]:
            raise DetectionFileError(f'{origin}: "{name}" is empty, so there is nothing to judge')
    return Truth(
        list(images.values()), [categories[number] for number in sorted(categories)], list(annotations.values())
    )


def check_results(results: Any, truth: Truth, masks: bool, origin: str) -> list[dict[str, Any]]:
    """Results that nothing is wrong with, as pycocotools takes them.

    Args:
        results: a list of `{"image_id", "category_id", "score", "bbox", "segmentation"}`.
        truth: that they are judged by.
        masks: whether masks are judged, else boxes.
        origin: what messages call them.

    Raises:
        DetectionFileError: they aren't of that form, an image or a category isn't that of an annotation file, a score
            or a box is none, or a mask is missing or doesn't fit its image.
    """
    if not isinstance(results, list | tuple):
        raise DetectionFileError(f"{origin}: expected a list of results, found {kind(results)}")
    images = {image["id"]: image for image in truth.images}
    categories = {category["id"]: category for category in truth.categories}
    found: list[dict[str, Any]] = []

    def result(entry: dict[str, Any]) -> None:
        shape = outline(entry, images, categories, masks)
        if "score" not in entry:
            raise DetectionFileError(missing("score"))
        score = entry["score"]
        if not are_finite(score):
            raise DetectionFileError(f'"score" is {shown(score)}, no finite number')
        area = float(run_lengths.area(shape["segmentation"])) if masks else shape["bbox"][2] * shape["bbox"][3]
        shape.update(id=len(found) + 1, iscrowd=0, score=float(score), area=area)
        found.append(shape)

    each(results, result, origin)
    return found


def each(entries: Sequence, take: Callable[[dict[str, Any]], None], origin: str) -> None:
    """Hands on entry by entry, and says of which one an error speaks."""
    for position, entry in enumerate(entries):
        try:
            if not isinstance(entry, dict):
                raise DetectionFileError(f"expected an object, found {kind(entry)}")
            take(entry)
        except DetectionFileError as error:
            raise DetectionFileError(f"{origin}: entry {position}: {error}") from None


def new_id(entry: dict[str, Any], before: dict[int, dict[str, Any]]) -> int:
    if "id" not in entry:
        raise DetectionFileError(missing("id"))
    number = entry["id"]
    if isinstance(number, bool) or not isinstance(number, int | np.integer):
        raise DetectionFileError(f'"id" is {shown(number)}, no whole number')
    if number in before:
        raise DetectionFileError(f'"id" {number} is that of an entry before')
    return int(number)


def outline(
    entry: dict[str, Any], images: dict[int, dict[str, Any]], categories: dict[int, dict[str, Any]], masks: bool
) -> dict[str, Any]:
    """Image, category, and box or mask of an annotation or a result."""
    for name, many, known in (("image_id", "images", images), ("category_id", "categories", categories)):
        if name not in entry:
            raise DetectionFileError(missing(name))
        number = entry[name]
        if number.__hash__ is None or number not in known:
            raise DetectionFileError(
                f'"{name}" is {shown(number)}, the id of none of the {len(known)} {many} of the annotations'
            )
    image = images[entry["image_id"]]
    shape: dict[str, Any] = {"image_id": image["id"], "category_id": categories[entry["category_id"]]["id"]}
    if masks:
        shape["segmentation"] = compressed(entry, image)
    elif "bbox" not in entry and entry.get("segmentation"):
        shape["bbox"] = run_lengths.toBbox(compressed(entry, image)).tolist()
    else:
        shape["bbox"] = box_of(entry)
    return shape


def box_of(entry: dict[str, Any]) -> list[float]:
    """[x, y, width, height] of an entry."""
    if "bbox" not in entry:
        raise DetectionFileError(missing("bbox"))
    box = entry["bbox"]
    if not isinstance(box, list | tuple) or len(box) != 4 or not are_finite(*box):
        raise DetectionFileError(f'"bbox" is {shown(box)}, not four finite numbers [x, y, width, height]')
    if box[2] < 0 or box[3] < 0:
        raise DetectionFileError(f'"bbox" is {shown(box)}; width and height must be 0 or more')
    return list(map(float, box))


def compressed(entry: dict[str, Any], image: dict[str, Any]) -> dict[str, Any]:
    """The mask of an entry, polygons or run lengths of either form, as compressed run lengths."""
    if "segmentation" not in entry:
        raise DetectionFileError(missing("segmentation"))
    shape, size = entry["segmentation"], [image["height"], image["width"]]
    if not all(isinstance(side, int) and side > 0 for side in size):
        raise DetectionFileError(
            f'"height" and "width" of image {image["id"]} are {size}; masks need the image\'s size'
        )
    if isinstance(shape, dict) and list(shape.get("size", ())) != size:
        raise DetectionFileError(
            f'"segmentation" has the size {shown(shape.get("size"))}, its image {image["id"]} is {size} (height, width)'
        )
    try:
        if isinstance(shape, list):
            return run_lengths.merge(run_lengths.frPyObjects(shape, *size))
        if isinstance(shape["counts"], str | bytes):
            return {"size": size, "counts": shape["counts"]}
        return run_lengths.frPyObjects(shape, *size)
    except Exception as error:  # pycocotools raises whatever its C code meets
        raise DetectionFileError(
            f'"segmentation" is {shown(shape)}, neither polygons nor run lengths: {error or type(error).__name__}'
        ) from None


def area_of(entry: dict[str, Any], shape: dict[str, Any], images: dict[int, dict[str, Any]]) -> float:
    """The area of an annotation that doesn't tell it: that of its mask, or else of its box."""
    if entry.get("segmentation"):
        return float(run_lengths.area(compressed(entry, images[entry["image_id"]])))
    return shape["bbox"][2] * shape["bbox"][3]


def list_of(content: Any, name: str, origin: str) -> list:
    if not isinstance(content, dict):
        raise DetectionFileError(
            f"{origin}: expected an object with images, annotations, categories, found {kind(content)}"
        )
    if not isinstance(content.get(name), list | tuple):
        raise DetectionFileError(f'{origin}: "{name}" must be a list, found {kind(content.get(name))}')
    return content[name]


def are_finite(*values: Any) -> bool:
    try:
        return all(map(math.isfinite, values))
    except (TypeError, OverflowError):  # no numbers, or too large ones
        return False


def missing(name: str) -> str:
    return f'"{name}" is missing'


def shown(value: Any) -> str:
    """A value as it was given, cut where it is long."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:76]} ..."


def kind(value: Any) -> str:
    kinds = {dict: "an object", list: "a list", str: "a string", type(None): "nothing", bool: "a truth value"}
    return kinds.get(type(value), "a number")
