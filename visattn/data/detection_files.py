"""COCO files of objects, checked once, when they are read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from visattn.data.images import ImageFileError, exists
from visattn.data.json_fields import JsonFields, kind
from visattn.data.segmentations import compressed

Problem = Callable[[ValueError], None]  # raises what is wrong with one entry, or counts it


class DetectionFileError(ValueError):
    """A file of objects cannot be used; the message names the file, the annotation and the field."""


class Category(NamedTuple):
    """A class of objects: its number in the file, and its name."""

    number: int
    name: str


class Instances(NamedTuple):
    """The objects of N images, A in all, as numbers in flat arrays, those of an image behind each other.

    Attributes:
        paths: of the N pictures; empty if they are no files.
        image_ids: (N,) int64, all different.
        sizes: (N, 2) int64, (height, width) in pixels as the file says.
        first: (N + 1,) int64; those of image i are `first[i]` to `first[i + 1]`.
        ids: (A,) int64, all different.
        boxes: (A, 4) float64, left, top, width and height in pixels, as in the file: they may be empty, or reach beyond
            the image.
        labels: (A,) int64, from 0 on in the order of ascending category ids.
        areas: (A,) float64, in pixels.
        crowd: (A,) bool, regions of many objects that are not told apart.
        masks: compressed run lengths of A masks, each of its image's size; None if they were not asked for.
    """

    paths: Sequence[Path]
    image_ids: np.ndarray
    sizes: np.ndarray
    first: np.ndarray
    ids: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray
    areas: np.ndarray
    crowd: np.ndarray
    masks: Sequence[bytes] | None

    def select(self, images: Sequence[int]) -> Instances:
        """Some of the images, in this order, with their objects."""
        chosen = np.asarray(images, dtype=np.int64)
        number = np.diff(self.first)[chosen]
        first = np.concatenate([[0], np.cumsum(number)])
        objects = np.repeat(self.first[chosen] - first[:-1], number) + np.arange(first[-1])  # (A',)
        return Instances(
            [self.paths[index] for index in chosen] if self.paths else [],
            self.image_ids[chosen],
            self.sizes[chosen],
            first,
            self.ids[objects],
            self.boxes[objects],
            self.labels[objects],
            self.areas[objects],
            self.crowd[objects],
            None if self.masks is None else [self.masks[index] for index in objects],
        )

    def corners(self) -> np.ndarray:
        """The boxes as (left, top, right, bottom), clipped to their images: (A, 4) float64."""
        heights, widths = np.repeat(self.sizes, np.diff(self.first), axis=0).T  # (A,) each
        right, bottom = self.boxes[:, 0] + self.boxes[:, 2], self.boxes[:, 1] + self.boxes[:, 3]
        return np.stack(
            [
                self.boxes[:, 0].clip(0, widths),
                self.boxes[:, 1].clip(0, heights),
                right.clip(0, widths),
                bottom.clip(0, heights),
            ],
            axis=1,
        )


def read_categories(file: Path, problem: Problem) -> list[Category]:
    """The "categories" of an `instances_*.json`, by ascending id, each id once.

    Raises:
        FileNotFoundError: there is no such file.
        DetectionFileError: the file is cut off, or declares no categories.
    """
    return _categories(file, _fields.read_json(file), problem)


def read_instances(
    file: Path, folder: Path, problem: Problem, *, masks: bool = False, categories: Sequence[Category] | None = None
) -> tuple[Instances, list[Category]]:
    """The pictures of an `instances_*.json` in the order of its "images", with their objects in the order of the file.

    Args:
        file: `{"images": [{"id", "file_name", "height", "width"}], "annotations": [{"id", "image_id", "category_id",
            "bbox", "area", "iscrowd", "segmentation"}], "categories": [{"id", "name"}]}`. Without "iscrowd" an object
            is none; without "area" it has that of its box.
        folder: that file names are relative to.
        problem: is told of entries that are left out: those that are not of that form, whose id another has, pictures
            that are missing, objects of unknown pictures and of categories that are not declared.
        masks: read them too: polygons, and run lengths of both kinds.
        categories: those of training, where the file is for evaluation: others are a problem; None: the file's own.

    Returns:
        The instances, and the categories by ascending id.

    Raises:
        FileNotFoundError: there is no such file.
        DetectionFileError: the file is cut off, is not of that form, or declares no categories.

    Source: https://cocodataset.org/#format-data, "Object Detection".
    """
    content = _fields.read_json(file)
    declared = _categories(file, content, problem)
    if categories is not None:
        declared = _known(file, declared, categories, problem)
    pictures = _pictures(file, content, folder, problem)
    objects = _objects(file, content, pictures, {category.number for category in declared}, masks, problem)
    categories = declared if categories is None else list(categories)
    return _instances(pictures, objects, list(categories), masks), list(categories)


class _Picture(NamedTuple):
    path: Path
    height: int
    width: int


class _Object(NamedTuple):
    number: int
    image: int
    category: int
    box: Sequence[float]
    area: float
    crowd: bool
    mask: bytes


_fields = JsonFields(DetectionFileError, "objects")


def _categories(file: Path, content: Any, problem: Problem) -> list[Category]:
    names: dict[int, str] = {}
    for position, entry in enumerate(_fields.list_of(file, content, "categories")):
        try:
            where = _name(file, "category", position, entry)
            number, name = _fields.whole(where, entry, "id"), _fields.text(where, entry, "name")
            if number in names:
                raise DetectionFileError(f'{where}: "id" is that of a category before ({names[number]})')
        except DetectionFileError as error:
            problem(error)
        else:
            names[number] = name
    if not names:
        raise DetectionFileError(f'{file}: "categories" declares none that can be used')
    return [Category(number, names[number]) for number in sorted(names)]


def _known(file: Path, declared: Sequence[Category], known: Sequence[Category], problem: Problem) -> list[Category]:
    """Those of the declared categories that are among the known ones; what is called otherwise is another."""
    found = []
    for category in declared:
        if category in known:
            found.append(category)
        else:
            names = [other.name for other in known if other.number == category.number]
            instead = f"it is {names[0]!r} there" if names else "there is no such id there"
            problem(
                DetectionFileError(
                    f'{file}: category {category.number}: "name" {category.name!r} is not that of the training file; '
                    f"{instead}"
                )
            )
    return found


def _pictures(file: Path, content: Any, folder: Path, problem: Problem) -> dict[int, _Picture | None]:
    """The picture of each image id; None if there is no file, so that its objects are left out in silence."""
    pictures: dict[int, _Picture | None] = {}
    for position, entry in enumerate(_fields.list_of(file, content, "images")):
        try:
            where = _name(file, "image", position, entry)
            number, name = _fields.whole(where, entry, "id"), _fields.text(where, entry, "file_name")
            picture = _Picture(
                folder / name, _fields.whole(where, entry, "height", 1), _fields.whole(where, entry, "width", 1)
            )
            if number in pictures:
                raise DetectionFileError(f'{where}: "id" is that of an image before')
        except DetectionFileError as error:
            problem(error)
            continue
        pictures[number] = picture
        if not exists(picture.path):
            problem(
                ImageFileError(
                    f"{picture.path}: there is no such file, yet {file} lists it (image {number}); on_error=skip "
                    "leaves it out"
                )
            )
            pictures[number] = None
    return pictures


def _objects(
    file: Path,
    content: Any,
    pictures: dict[int, _Picture | None],
    categories: set[int],
    masks: bool,
    problem: Problem,
) -> list[_Object]:
    objects: list[_Object] = []
    numbers: set[int] = set()
    for position, entry in enumerate(_fields.list_of(file, content, "annotations")):
        try:
            where = _name(file, "annotation", position, entry)
            found = _object(where, entry, pictures, categories, masks)
            if found is not None and found.number in numbers:
                raise DetectionFileError(f'{where}: "id" is that of an annotation before')
        except DetectionFileError as error:
            problem(error)
        else:
            if found is not None:
                numbers.add(found.number)
                objects.append(found)
    return objects


def _object(
    where: str, entry: Any, pictures: dict[int, _Picture | None], categories: set[int], masks: bool
) -> _Object | None:
    number, image = _fields.whole(where, entry, "id"), _fields.whole(where, entry, "image_id")
    if image not in pictures:
        raise DetectionFileError(f'{where}: "image_id" {image} is not the "id" of one of "images"')
    category = _fields.whole(where, entry, "category_id")
    if category not in categories:
        raise DetectionFileError(f'{where}: "category_id" {category} is not the "id" of one of "categories"')
    box = _fields.numbers(where, "bbox", _fields.field(where, entry, "bbox"), 4)
    area = _fields.numbers(where, "area", [entry["area"]])[0] if "area" in entry else max(box[2], 0) * max(box[3], 0)
    crowd = entry.get("iscrowd", 0)
    if crowd not in (0, 1):
        raise DetectionFileError(f'{where}: "iscrowd" must be 0 or 1, found {kind(crowd)}')
    picture = pictures[image]
    if picture is None:
        return None
    mask = compressed(_fields, where, entry, picture.height, picture.width) if masks else b""
    return _Object(number, image, category, box, area, bool(crowd), mask)


def _instances(
    pictures: dict[int, _Picture | None], objects: Sequence[_Object], categories: Sequence[Category], masks: bool
) -> Instances:
    kept = {number: picture for number, picture in pictures.items() if picture is not None}
    places = {number: place for place, number in enumerate(kept)}
    owners = np.array([places[thing.image] for thing in objects], dtype=np.int64)  # (A,)
    order = np.argsort(owners, kind="stable")
    ordered = [objects[place] for place in order]
    category_ids = np.array([category.number for category in categories], dtype=np.int64)
    return Instances(
        [picture.path for picture in kept.values()],
        np.array(list(kept), dtype=np.int64),
        np.array([(picture.height, picture.width) for picture in kept.values()], dtype=np.int64).reshape(-1, 2),
        np.concatenate([[0], np.cumsum(np.bincount(owners, minlength=len(kept)))]),
        np.array([thing.number for thing in ordered], dtype=np.int64),
        np.array([thing.box for thing in ordered], dtype=np.float64).reshape(-1, 4),
        np.searchsorted(category_ids, np.array([thing.category for thing in ordered], dtype=np.int64)),
        np.array([thing.area for thing in ordered], dtype=np.float64),
        np.array([thing.crowd for thing in ordered], dtype=bool),
        [thing.mask for thing in ordered] if masks else None,
    )


def _name(file: Path, what: str, position: int, entry: Any) -> str:
    """What to call an entry in errors: by its id, or by its place in the list if it has none."""
    if isinstance(entry, dict) and isinstance(entry.get("id"), int | str):
        return f"{file}: {what} {entry['id']!r}"[:500]
    return f"{file}: {what} at place {position}"
