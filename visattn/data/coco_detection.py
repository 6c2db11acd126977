"""Data sets of objects in files: COCO, and a person's own in its format."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from visattn.data.classification import hold_out
from visattn.data.detection import DetectionData, DetectionSplit
from visattn.data.detection_files import Category, Instances, Problem, read_instances
from visattn.data.detection_preprocess import DetectionPreprocess
from visattn.data.image_folder import FileReader
from visattn.data.images import ImageFileError, check_image, open_image

_closer = 2  # times the size that a picture is shown in, which it is kept in where parts of it are shown


class CocoFolderData(DetectionData):
    """Objects in COCO's format, and the pictures they are in; `files` of each data set says which.

    Args:
        root: the folder.
        shortest, longest: pixels of the images' sides, see `DetectionPreprocess`.
        memory: gigabytes; decoded pictures are kept while they take no more, large ones in the size they are shown in,
            and else decoded when they are needed.
        on_error: "raise" at a picture or an object that cannot be used, or "skip" it and report how many there were.
        options: keywords of `DetectionData`.

    Raises:
        FileNotFoundError: there is no such folder, or a file of objects is missing.
        DetectionFileError: a file of objects is cut off or not of its form, or one of its entries cannot be used.
        ImageFileError: a picture is missing, cannot be read, or isn't of the size that the file says.
        ValueError: nothing is left of a split.

    Warns:
        UserWarning: of boxes that teach nothing, being empty or outside of their image, and of what was skipped, each
            with their number.
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        shortest: int = 480,
        longest: int = 640,
        *,
        memory: float = 4.0,
        on_error: str = "raise",
        **options: Any,
    ) -> None:
        super().__init__(shortest, longest, **options)
        if on_error not in ("raise", "skip"):
            raise ValueError(f"on_error {on_error!r} is unknown; choose raise or skip")
        self.root, self.memory, self.on_error = Path(root), memory, on_error

    def files(self) -> dict[str, tuple[Path, Path]]:
        """The file of objects of each split that has one, and the folder of its pictures."""
        raise NotImplementedError

    def fractions(self) -> dict[str, float]:
        """Of the pictures for training, the fraction that is held out for each split that has no file."""
        raise NotImplementedError

    def read_splits(self) -> dict[str, DetectionSplit]:
        if not self.root.is_dir():
            raise FileNotFoundError(f"{self.root}: there is no such folder; set dataset.root to that of your data")
        reader = FileReader(self.on_error == "skip")
        found, categories = self.read_files(reader.problem)
        self.classes = tuple(category.name for category in categories)
        self.category_ids = tuple(category.number for category in categories)
        closer = {split: _closer if split == "train" and self.augmentation.shows_parts else 1 for split in found}
        size = sum(kept_bytes(instances, self.preprocess, closer[split]) for split, instances in found.items())
        in_memory = size <= self.memory * 2**30
        splits = {}
        for split, instances in found.items():
            pictures, good = read_pictures(instances, reader, self.preprocess, closer[split], in_memory)
            if not good:
                raise ValueError(f"{self.root}: no picture is left for {split}")
            splits[split] = DetectionSplit(pictures, instances.select(good))
        if reader.problems:
            shown = "; ".join(sorted(reader.problems)[:3])
            rank_zero_warn(f"{self.root}: {len(reader.problems)} pictures or objects are left out: {shown}")
        return splits

    def read_files(self, problem: Problem) -> tuple[dict[str, Instances], list[Category]]:
        """The objects of the three splits, and the categories of those for training."""
        found: dict[str, Instances] = {}
        categories: list[Category] | None = None
        for split, (file, folder) in self.files().items():
            found[split], categories = read_instances(
                file, folder, problem, masks=self.has_masks, categories=categories
            )
            report_boxes(file, found[split])
        assert categories is not None
        for split, fraction in self.fractions().items():
            number = len(found["train"].image_ids)
            if number < 2:
                raise ValueError(f"{self.root}: of {number} pictures for training, none can be held out for {split}")
            kept, held = hold_out(torch.zeros(number), fraction, self.seed)
            found["train"], found[split] = found["train"].select(kept.tolist()), found["train"].select(held.tolist())
        return found, categories


class CocoDetectionDataModule(CocoFolderData):
    """COCO's 80 classes of objects in 118,287 pictures for training and 5,000 for validation.

    Args:
        root: holds the folders as published: `annotations/`, `train2017/` and `val2017/`, or those of 2014.
        year: of the files, 2017 or 2014.
        validation_fraction: of the pictures for training, held out to choose the best epoch by, so that the published
            validation pictures remain for the test; 0 takes those for both.
        keywords: of `CocoFolderData`.

    Source: Lin et al. 2014 (https://arxiv.org/abs/1405.0312).
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        shortest: int = 480,
        longest: int = 640,
        *,
        year: int = 2017,
        validation_fraction: float = 0.02,
        **options: Any,
    ) -> None:
        super().__init__(root, shortest, longest, **options)
        self.year, self.validation_fraction = year, validation_fraction

    def files(self) -> dict[str, tuple[Path, Path]]:
        train, test = (
            (self.root / "annotations" / f"instances_{part}{self.year}.json", self.root / f"{part}{self.year}")
            for part in ("train", "val")
        )
        return {"train": train, "test": test} | ({} if self.validation_fraction else {"validation": test})

    def fractions(self) -> dict[str, float]:
        return {"validation": self.validation_fraction} if self.validation_fraction else {}


class CocoJsonDataModule(CocoFolderData):
    """A person's own pictures and objects, in COCO's format.

    Args:
        root: the folder that the other paths are relative to.
        images: the folder of the pictures, that the file names of the annotations are relative to.
        annotations: the objects, `{"images": [{"id", "file_name", "height", "width"}], "annotations": [{"id",
            "image_id", "category_id", "bbox"}], "categories": [{"id", "name"}]}`; for training alone if the other two
            are given.
        validation_annotations, test_annotations: the objects of these splits, which may be the same file; None holds a
            part of the pictures of `annotations` out.
        validation_fraction, test_fraction: of these pictures.
        keywords: of `CocoFolderData`.
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        shortest: int = 480,
        longest: int = 640,
        *,
        images: str = "images",
        annotations: str = "instances.json",
        validation_annotations: str | None = None,
        test_annotations: str | None = None,
        validation_fraction: float = 0.1,
        test_fraction: float = 0.1,
        **options: Any,
    ) -> None:
        super().__init__(root, shortest, longest, **options)
        self.images = images
        self.annotations = {"train": annotations, "validation": validation_annotations, "test": test_annotations}
        self.held_out = {"test": test_fraction, "validation": validation_fraction}

    def files(self) -> dict[str, tuple[Path, Path]]:
        folder = self.root / self.images
        if not folder.is_dir():
            raise FileNotFoundError(f"{folder}: there is no such folder; set dataset.images to that of your pictures")
        return {split: (self.root / name, folder) for split, name in self.annotations.items() if name}

    def fractions(self) -> dict[str, float]:
        return {split: fraction for split, fraction in self.held_out.items() if not self.annotations[split]}


def report_boxes(file: Path, instances: Instances) -> None:
    """Warns of boxes that teach nothing, since nothing of them lies within their image."""
    corners = instances.corners()
    empty = ~instances.crowd & ((corners[:, 2] <= corners[:, 0]) | (corners[:, 3] <= corners[:, 1]))
    if empty.any():
        rank_zero_warn(
            f"{file}: {empty.sum()} of {len(empty)} boxes have no pixel in their image and are not trained on; in "
            f"evaluation they count as missed: annotations {', '.join(map(str, instances.ids[empty][:3]))}"
        )


def kept_size(preprocess: DetectionPreprocess, height: int, width: int, closer: float) -> tuple[int, int]:
    """The (height, width) that a picture of this height and width is kept in: its own unless that is much larger."""
    shown = [round(closer * side) for side in preprocess.resized(height, width)]
    return (height, width) if height * width <= shown[0] * shown[1] else (shown[0], shown[1])


def kept_bytes(instances: Instances, preprocess: DetectionPreprocess, closer: float) -> int:
    kept = [kept_size(preprocess, height, width, closer) for height, width in instances.sizes.tolist()]
    return sum(3 * height * width for height, width in kept)


def read_pictures(
    instances: Instances, reader: FileReader, preprocess: DetectionPreprocess, closer: float, in_memory: bool
) -> tuple[list[Tensor] | None, list[int]]:
    """The pictures that can be read and are of the size that the file says, decoded or only checked; and which."""
    pictures: list[Tensor | None] = [None] * len(instances.paths)
    sizes = instances.sizes.tolist()

    def read(index: int) -> None:
        path = instances.paths[index]
        if in_memory:
            image = open_image(path)
            size = [image.height, image.width]
        else:
            size = [*check_image(path)]
        if size != sizes[index]:
            turned = ", upright as its EXIF orientation says" if size == sizes[index][::-1] else ""
            raise ImageFileError(
                f"{path}: has height and width {size} pixels{turned}, but {sizes[index]} in the annotations (image "
                f'{instances.image_ids[index]}); correct "height" and "width", and see whether the boxes fit'
            )
        if in_memory:
            pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)  # (3, height, width)
            pictures[index] = preprocess.resize(pixels, kept_size(preprocess, image.height, image.width, closer))

    good = reader.for_all(read, instances.paths).nonzero().flatten().tolist()
    return ([pictures[index] for index in good] if in_memory else None), good
