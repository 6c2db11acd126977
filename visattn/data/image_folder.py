"""A person's own images, one folder per class."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from lightning.pytorch.utilities import rank_zero_warn
from PIL import Image
from rich.progress import track
from torch import Tensor

from visattn.data.classification import ImageClassificationData, hold_out
from visattn.data.images import ImageFileError, image_suffixes, open_image
from visattn.data.preprocess import Preprocess, imagenet_mean, imagenet_std

_split_names = {"train": ("train",), "validation": ("val", "validation", "valid"), "test": ("test",)}


class ImageFolderDataModule(ImageClassificationData):
    """Class folders of pictures: `root/CLASS/*.jpg`, or `root/{train,val,test}/CLASS/*.jpg`.

    Without a `val` or `test` folder, images of each class are held out of those for training.

    Args:
        root: the folder.
        image_size: side in pixels that pictures are resized and cropped to.
        resize: of the shorter side before the crop; None is `image_size`.
        batch_size: images per process and step.
        num_workers: processes that decode pictures which don't fit into memory.
        seed: of order, augmentation and held-out images.
        validation_fraction, test_fraction: of each class, held out where there is no such folder.
        memory: gigabytes; decoded pictures are kept while they take no more.
        on_error: "raise" at a file that cannot be read, or "skip" it and report how many were skipped.
        mean, std: of the colours, as the model expects them.
        augmentation: keywords of `visattn.data.Augmentation`.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: the folder holds no class folders, a class is empty, or the splits differ in their classes.
        ImageFileError: a picture cannot be read; the message has its path.
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        image_size: int = 224,
        *,
        resize: int | None = None,
        batch_size: int = 64,
        num_workers: int = 0,
        seed: int = 0,
        validation_fraction: float = 0.1,
        test_fraction: float = 0.1,
        memory: float = 4.0,
        on_error: str = "raise",
        mean: Sequence[float] = imagenet_mean,
        std: Sequence[float] = imagenet_std,
        augmentation: dict | None = None,
    ) -> None:
        super().__init__(image_size, batch_size, num_workers, seed, augmentation)
        if on_error not in ("raise", "skip"):
            raise ValueError(f"on_error {on_error!r} is unknown; choose raise or skip")
        self.root, self.on_error, self.memory = Path(root), on_error, memory
        self.fractions = {"test": test_fraction, "validation": validation_fraction}
        self.preprocess = Preprocess(image_size, resize=resize, mean=mean, std=std)

    def setup(self, stage: str | None = None) -> None:
        if self.splits:
            return
        folders = split_folders(self.root)
        self.classes = class_names(folders["train"])
        found = {split: find_images(folder, self.classes) for split, folder in folders.items()}
        for split, fraction in self.fractions.items():
            if split not in found:
                paths, labels = found["train"]
                kept, held = hold_out(labels, fraction, self.seed)
                found["train"] = [paths[index] for index in kept], labels[kept]
                found[split] = [paths[index] for index in held], labels[held]
        count = sum(len(labels) for _, labels in found.values())
        in_memory = count * 3 * self.image_size**2 <= self.memory * 2**30
        skipped: list[str] = []
        for split, (paths, labels) in found.items():
            if in_memory:
                self.splits[split] = load_images(paths, labels, self.preprocess, self.on_error == "skip", skipped)
            else:
                self.splits[split] = check_images(paths, labels, self.on_error == "skip", skipped)
        if skipped:
            shown = "; ".join(skipped[:3])
            rank_zero_warn(f"{len(skipped)} of {count} pictures in {self.root} could not be read: {shown}")


def split_folders(root: Path) -> dict[str, Path]:
    """The folders of the splits that exist; without any, `root` is the one for training."""
    if not root.is_dir():
        raise FileNotFoundError(f"{root}: there is no such folder; set dataset.root to the folder of your images")
    folders = {}
    for split, names in _split_names.items():
        existing = [root / name for name in names if (root / name).is_dir()]
        if existing:
            folders[split] = existing[0]
    if folders and "train" not in folders:
        raise FileNotFoundError(f"{root / 'train'}: there is no such folder, though there is {folders.popitem()[1]}")
    return folders or {"train": root}


def class_names(folder: Path) -> tuple[str, ...]:
    names = tuple(sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and entry.name[0] != "."))
    if len(names) < 2:
        raise ValueError(f"{folder}: holds {len(names)} class folders; at least two are needed, one per class")
    return names


def find_images(folder: Path, classes: Sequence[str]) -> tuple[list[Path], Tensor]:
    """The pictures of each class, in order of their names, and their labels (N,)."""
    unknown = {entry.name for entry in folder.iterdir() if entry.is_dir() and entry.name[0] != "."} - set(classes)
    if unknown:
        raise ValueError(f"{folder}: has classes that the training images don't: {', '.join(sorted(unknown))}")
    paths: list[Path] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        found = sorted(path for path in (folder / name).rglob("*") if path.suffix.lower() in image_suffixes)
        if not found:
            raise ValueError(f"{folder / name}: the class has no pictures ({', '.join(image_suffixes)})")
        paths += found
        labels += [label] * len(found)
    return paths, torch.tensor(labels)


def load_images(
    paths: Sequence[Path], labels: Tensor, preprocess: Preprocess, skip: bool, skipped: list[str]
) -> tuple[Tensor, Tensor]:
    """All pictures as (N, 3, H, W) uint8; those that cannot be read are raised or skipped and noted."""

    def read(path: Path) -> Tensor | None:
        try:
            return preprocess.pixels(open_image(path))
        except ImageFileError as error:
            if not skip:
                raise
            skipped.append(str(error))
            return None

    with ThreadPoolExecutor() as pool:
        pixels = list(track(pool.map(read, paths), f"Reading {paths[0].parents[1].name}", len(paths), transient=True))
    kept = [index for index, image in enumerate(pixels) if image is not None]
    if not kept:
        raise ImageFileError(f"{paths[0].parents[1]}: none of {len(paths)} pictures could be read")
    return torch.stack([image for image in pixels if image is not None]), labels[kept]


def check_images(
    paths: Sequence[Path], labels: Tensor, skip: bool, skipped: list[str]
) -> tuple[Sequence[Path], Tensor]:
    """The paths of all pictures that can be opened; the decoding is left for later."""
    kept = []
    for index, path in enumerate(paths):
        try:
            with Image.open(path) as image:
                image.verify()
            kept.append(index)
        except Exception as error:  # whatever a damaged file makes a decoder raise
            if not skip:
                raise ImageFileError(f"{path}: is no whole picture: {error}") from error
            skipped.append(f"{path}: {error}")
    return [paths[index] for index in kept], labels[kept]
