"""Files of captions, checked once, when they are read: COCO's, Karpathy's splits, and the texts of Flickr8k."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from visattn.data.images import ImageFileError, exists
from visattn.data.json_fields import JsonFields, kind

ImageId = int | str
Problem = Callable[[ValueError], None]  # raises what is wrong with one entry, or counts it

_line_separator = re.compile("[\r\x0b\x0c\u2028\u2029]")  # which the evaluation of captions refuses
_karpathy_splits = {"train": "train", "restval": "train", "val": "validation", "test": "test"}


class CaptionFileError(ValueError):
    """A file of captions cannot be used; the message names the file, the entry and the field."""


_fields = JsonFields(CaptionFileError, "captions")


class CaptionedFile(NamedTuple):
    """The file of a picture, and what is said about it."""

    path: Path
    image_id: ImageId
    captions: list[str]


def read_coco(file: Path, folder: Path, problem: Problem) -> list[CaptionedFile]:
    """The pictures of a `captions_*.json` in the order of its "images", with their captions in the order of the file.

    Args:
        file: `{"images": [{"id", "file_name"}], "annotations": [{"image_id", "caption"}]}`.
        folder: that file names are relative to.
        problem: is told of entries that are left out: pictures that are missing, have no caption or an id that another
            has; captions of unknown pictures, empty ones, and those that are no valid Unicode.

    Raises:
        FileNotFoundError: there is no such file.
        CaptionFileError: the file is cut off, or is not of that form.

    Source: https://cocodataset.org/#format-data, "Image Captioning".
    """
    content = _fields.read_json(file)
    names: dict[ImageId, str] = {}
    for position, entry in enumerate(_fields.list_of(file, content, "images")):
        try:
            where = f"{file}: image {position}"
            image, name = image_id(where, entry, "id"), _fields.text(where, entry, "file_name")
            if image in names:
                raise CaptionFileError(f'{where}: "id" {image!r} is that of an image before')
        except CaptionFileError as error:
            problem(error)
        else:
            names[image] = name
    captions: dict[ImageId, list[str]] = {image: [] for image in names}
    for position, entry in enumerate(_fields.list_of(file, content, "annotations")):
        try:
            where = f"{file}: annotation {position}"
            image, sentence = image_id(where, entry, "image_id"), caption(where, entry, "caption")
            if image not in captions:
                raise CaptionFileError(f'{where}: "image_id" {image!r} is not the "id" of one of "images"')
        except CaptionFileError as error:
            problem(error)
        else:
            captions[image].append(sentence)
    files = (CaptionedFile(folder / name, image, captions[image]) for image, name in names.items())
    return list(usable(file, files, problem))


def read_karpathy(file: Path, locate: Callable[[dict], Path], problem: Problem) -> dict[str, list[CaptionedFile]]:
    """The pictures of train (with restval), validation and test of a `dataset_*.json`.

    Args:
        file: `{"images": [{"filename", "split", "sentences": [{"raw"}], "imgid" or "cocoid"}]}`.
        locate: from an entry of "images" to its file.
        problem: see `read_coco`.

    Raises:
        FileNotFoundError: there is no such file.
        CaptionFileError: the file is cut off, or is not of that form.

    Source: Karpathy & Fei-Fei 2015, https://cs.stanford.edu/people/karpathy/deepimagesent/.
    """
    splits: dict[str, dict[ImageId, CaptionedFile]] = {split: {} for split in _karpathy_splits.values()}
    for position, entry in enumerate(_fields.list_of(file, _fields.read_json(file), "images")):
        try:
            where = f"{file}: image {position}"
            name = _fields.text(where, entry, "split")
            if name not in _karpathy_splits:
                raise CaptionFileError(f'{where}: "split" {name!r} is none of {", ".join(_karpathy_splits)}')
            image = image_id(where, entry, "cocoid" if "cocoid" in entry else "imgid")
            images = splits[_karpathy_splits[name]]
            if image in images:
                raise CaptionFileError(f"{where}: its id {image!r} is that of an image before")
            _fields.text(where, entry, "filename")
            sentences = _fields.list_of(where, entry, "sentences")
        except CaptionFileError as error:
            problem(error)
            continue
        found = []
        for number, sentence in enumerate(sentences):
            try:
                found.append(caption(f"{where}, sentence {number}", sentence, "raw"))
            except CaptionFileError as error:
                problem(error)
        images[image] = CaptionedFile(locate(entry), image, found)
    return {split: list(usable(file, images.values(), problem)) for split, images in splits.items()}


def read_flickr8k_text(folder: Path, images: Path, problem: Problem) -> dict[str, list[CaptionedFile]]:
    """The pictures of train, validation and test as Flickr8k was published; the name of a file is its image's id.

    Args:
        folder: holds `Flickr8k.token.txt` (lines of `NAME.jpg#NUMBER`, a tab and a caption) and the lists
            `Flickr_8k.{train,dev,test}Images.txt`.
        images: the folder of the pictures.
        problem: see `read_coco`.

    Raises:
        FileNotFoundError: one of the files is missing.
        CaptionFileError: a file is no UTF-8.

    Source: Hodosh, Young & Hockenmaier 2013.
    """
    tokens = folder / "Flickr8k.token.txt"
    captions: dict[str, list[str]] = {}
    for number, line in enumerate(_fields.read_text(tokens).split("\n"), 1):
        where = f"{tokens}: line {number}"
        name, tab, sentence = line.partition("\t")
        try:
            if tab:
                captions.setdefault(name.rpartition("#")[0], []).append(
                    caption(where, {"caption": sentence}, "caption")
                )
            elif line.strip():
                raise CaptionFileError(f"{where}: has no tab between the name of a file and a caption: {line[:80]!r}")
        except CaptionFileError as error:
            problem(error)
    splits = {}
    for split, name in (("train", "train"), ("validation", "dev"), ("test", "test")):
        names = dict.fromkeys(_fields.read_text(folder / f"Flickr_8k.{name}Images.txt").split())
        files = (CaptionedFile(images / name, name, captions.get(name, [])) for name in names)
        splits[split] = list(usable(tokens, files, problem))
    return splits


def usable(origin: Path, files: Iterable[CaptionedFile], problem: Problem) -> Iterator[CaptionedFile]:
    """Those of a file's pictures that exist and have a caption."""
    for file in files:
        if not file.captions:
            problem(
                CaptionFileError(
                    f"{origin}: image {file.image_id!r} ({file.path.name}) has no caption; on_error=skip leaves it out"
                )
            )
        elif not exists(file.path):
            problem(
                ImageFileError(
                    f"{file.path}: there is no such file, yet {origin} has captions of it (image {file.image_id!r}); "
                    "on_error=skip leaves it out"
                )
            )
        else:
            yield file


def image_id(where: str, entry: Any, name: str) -> ImageId:
    value = _fields.field(where, entry, name)
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise CaptionFileError(f'{where}: "{name}" must be a whole number or a string, found {kind(value)}')
    return value


def caption(where: str, entry: Any, name: str) -> str:
    """A caption as it stands, but on one line: separators of lines other than the newline become spaces."""
    return _line_separator.sub(" ", _fields.unicode(where, name, _fields.text(where, entry, name)))
