"""Data sets of captions in files: Flickr8k, COCO, and a person's own."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_warn

from visattn.data.caption_files import (
    CaptionedFile,
    Problem,
    read_coco,
    read_flickr8k_text,
    read_karpathy,
)
from visattn.data.captions import CaptionData, CaptionSplit
from visattn.data.classification import hold_out
from visattn.data.image_folder import ImageReader
from visattn.data.images import exists
from visattn.data.preprocess import Preprocess, imagenet_mean, imagenet_std

_karpathy = "dataset_coco.json"

Found = dict[str, list[CaptionedFile]]  # of train, validation and test


class CaptionFolderData(CaptionData):
    """Captions in files, and the pictures they are about; `find` of each data set says which.

    Args:
        root: the folder.
        image_size: side in pixels.
        fit: "stretch" shows the whole picture, since a caption speaks of all of it; for "cover" and "contain" see
            `Preprocess`.
        memory: gigabytes; decoded pictures are kept while they take no more, and else decoded when they are needed.
        on_error: "raise" at a picture or a caption that cannot be used, or "skip" it and report how many there were.
        mean, std: of the colours, as the model expects them.
        options: keywords of `CaptionData`.

    Raises:
        FileNotFoundError: there is no such folder, or a file of captions is missing.
        CaptionFileError: a file of captions is cut off or not of its form, or one of its entries cannot be used.
        ImageFileError: a picture is missing or cannot be read.
        ValueError: nothing is left of a split.
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        image_size: int = 224,
        *,
        fit: str = "stretch",
        memory: float = 4.0,
        on_error: str = "raise",
        mean: Sequence[float] = imagenet_mean,
        std: Sequence[float] = imagenet_std,
        **options: Any,
    ) -> None:
        super().__init__(image_size, **options)
        if on_error not in ("raise", "skip"):
            raise ValueError(f"on_error {on_error!r} is unknown; choose raise or skip")
        self.root, self.memory, self.on_error = Path(root), memory, on_error
        self.preprocess = Preprocess(image_size, fit=fit, mean=mean, std=std)

    def find(self, problem: Problem) -> Found:
        """The files of pictures that exist, with captions; what cannot be used is told to `problem`."""
        raise NotImplementedError

    def read_splits(self) -> dict[str, CaptionSplit]:
        if not self.root.is_dir():
            raise FileNotFoundError(f"{self.root}: there is no such folder; set dataset.root to that of your data")
        reader = ImageReader(self.preprocess, self.on_error == "skip")
        found = self.find(reader.problem)
        count = sum(map(len, found.values()))
        read = reader.load if count * 3 * self.image_size**2 <= self.memory * 2**30 else reader.check
        splits = {}
        for split, files in found.items():
            images, kept = read([file.path for file in files], torch.arange(len(files)))
            if not len(kept):
                raise ValueError(f"{self.root}: no picture with captions is left for {split}")
            good = [files[index] for index in kept.tolist()]
            splits[split] = CaptionSplit(images, [file.image_id for file in good], [file.captions for file in good])
        if reader.problems:
            shown = "; ".join(sorted(reader.problems)[:3])
            rank_zero_warn(f"{self.root}: {len(reader.problems)} pictures or captions are left out: {shown}")
        return splits

    def split_off(
        self, files: Sequence[CaptionedFile], fraction: float
    ) -> tuple[list[CaptionedFile], list[CaptionedFile]]:
        """Files to keep and a fraction of them to hold out, drawn from the seed."""
        if len(files) < 2:
            raise ValueError(f"{self.root}: {len(files)} pictures with captions are left; none can be held out of them")
        kept, held = hold_out(torch.zeros(len(files)), fraction, self.seed)
        return [files[index] for index in kept], [files[index] for index in held]


class Flickr8kDataModule(CaptionFolderData):
    """Flickr8k: 8,000 pictures with five captions each, in its official split of 6,000, 1,000 and 1,000.

    Args:
        root: holds the pictures in `images/` or, as published, `Flicker8k_Dataset/`; and one of
            `captions_{train,val,test}.json` in COCO's format, the published `Flickr8k.token.txt` with its lists (there
            or in `Flickr8k_text/`), and Karpathy's `dataset_flickr8k.json`.
        keywords: of `CaptionFolderData`.

    Source: Hodosh, Young & Hockenmaier 2013, "Framing image description as a ranking task".
    """

    def find(self, problem: Problem) -> Found:
        names = ("images", "Flicker8k_Dataset", "Flickr8k_Dataset", "Images")
        folders = [self.root / name for name in names if (self.root / name).is_dir()]
        if not folders:
            raise FileNotFoundError(f"{self.root}: has none of the folders of pictures {', '.join(names)}")
        if (self.root / "captions_train.json").is_file():
            files = (("train", "train"), ("validation", "val"), ("test", "test"))
            return {split: read_coco(self.root / f"captions_{name}.json", folders[0], problem) for split, name in files}
        for folder in (self.root, self.root / "Flickr8k_text"):
            if (folder / "Flickr8k.token.txt").is_file():
                return read_flickr8k_text(folder, folders[0], problem)
        if (self.root / "dataset_flickr8k.json").is_file():
            return read_karpathy(
                self.root / "dataset_flickr8k.json", lambda entry: folders[0] / entry["filename"], problem
            )
        raise FileNotFoundError(
            f"{self.root}: has no captions: captions_train.json, Flickr8k.token.txt or dataset_flickr8k.json"
        )


class CocoCaptionsDataModule(CaptionFolderData):
    """COCO captions: five or more for each of 123,287 pictures.

    Args:
        root: holds the folders as published: `annotations/`, `train2017/` and `val2017/`, or those of 2014.
        split: "official" tests on the validation pictures, and validates on a part of those for training;
            "karpathy" takes `dataset_coco.json` in `root` or `annotations/`, with restval in training. Its pictures of
            2014 are found in the folders of 2017 as well.
        year: of the official files, 2017 or 2014.
        validation_fraction: of the pictures for training, held out if the split is official.
        options: keywords of `CaptionFolderData`.

    Source: Chen et al. 2015 (https://arxiv.org/abs/1504.00325); the split of Karpathy & Fei-Fei 2015.
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        image_size: int = 224,
        *,
        split: str = "official",
        year: int = 2017,
        validation_fraction: float = 0.04,
        **options: Any,
    ) -> None:
        super().__init__(root, image_size, **options)
        if split not in ("official", "karpathy"):
            raise ValueError(f"split {split!r} is unknown; choose official or karpathy")
        self.split, self.year, self.validation_fraction = split, year, validation_fraction

    def find(self, problem: Problem) -> Found:
        if self.split == "karpathy":
            folders = [folder for folder in (self.root, self.root / "annotations") if exists(folder / _karpathy)]
            return read_karpathy((folders or [self.root])[0] / _karpathy, self.locate, problem)
        annotations = self.root / "annotations"
        train, test = (
            read_coco(annotations / f"captions_{part}{self.year}.json", self.root / f"{part}{self.year}", problem)
            for part in ("train", "val")
        )
        train, validation = self.split_off(train, self.validation_fraction)
        return {"train": train, "validation": validation, "test": test}

    def locate(self, entry: dict) -> Path:
        """The file of an entry of Karpathy's: as it names it, or as the same picture is called in 2017."""
        named = self.root / str(entry.get("filepath", "")) / entry["filename"]
        number = f"{entry.get('cocoid', 0):012}.jpg" if isinstance(entry.get("cocoid"), int) else entry["filename"]
        places = (named, self.root / "train2017" / number, self.root / "val2017" / number)
        return next((path for path in places if exists(path)), named)


class CaptionJsonDataModule(CaptionFolderData):
    """A person's own pictures and captions, in COCO's format.

    Args:
        root: the folder that the other paths are relative to.
        images: the folder of the pictures, that the file names of the annotations are relative to.
        annotations: the captions, `{"images": [{"id", "file_name"}], "annotations": [{"image_id", "caption"}]}`; for
            training alone if the other two are given.
        validation_annotations, test_annotations: the captions of these splits; None holds a part of the pictures of
            `annotations` out.
        validation_fraction, test_fraction: of these pictures.
        options: keywords of `CaptionFolderData`.
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        image_size: int = 224,
        *,
        images: str = "images",
        annotations: str = "captions.json",
        validation_annotations: str | None = None,
        test_annotations: str | None = None,
        validation_fraction: float = 0.1,
        test_fraction: float = 0.1,
        **options: Any,
    ) -> None:
        super().__init__(root, image_size, **options)
        self.images = images
        self.annotations = {"train": annotations, "validation": validation_annotations, "test": test_annotations}
        self.fractions = {"test": test_fraction, "validation": validation_fraction}

    def find(self, problem: Problem) -> Found:
        folder = self.root / self.images
        if not folder.is_dir():
            raise FileNotFoundError(f"{folder}: there is no such folder; set dataset.images to that of your pictures")
        found = {
            split: read_coco(self.root / name, folder, problem) for split, name in self.annotations.items() if name
        }
        for split, fraction in self.fractions.items():
            if split not in found:
                found["train"], found[split] = self.split_off(found["train"], fraction)
        return found
