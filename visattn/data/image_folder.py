"""A person's own images, one folder per class."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from lightning.pytorch.utilities import rank_zero_warn
from rich.progress import track
from torch import Tensor

from visattn.data.classification import ImageClassificationData, hold_out
from visattn.data.images import ImageFileError, check_image, image_suffixes, open_image
from visattn.data.preprocess import Preprocess, imagenet_mean, imagenet_std

Split = tuple[Tensor | Sequence[Path], Tensor]  # images (N, 3, H, W) or N paths, and labels (N,)
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
        on_error: "raise" at a file that cannot be read or an empty class, or "skip" it and report how many there were.
        mean, std: of the colours, as the model expects them.
        augmentation: keywords of `visattn.data.Augmentation`.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: the folder holds fewer than two class folders, or the splits differ in their classes.
        ImageFileError: a picture cannot be read, or a class is empty; the message has the path.
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
        folders, reader = split_folders(self.root), ImageReader(self.preprocess, self.on_error == "skip")
        classes = class_names(folders["train"])
        found = {split: find_images(folder, classes, reader) for split, folder in folders.items()}
        for split, fraction in self.fractions.items():
            if split not in found:
                paths, labels = found["train"]
                kept, held = hold_out(labels, fraction, self.seed)
                found["train"] = [paths[index] for index in kept], labels[kept]
                found[split] = [paths[index] for index in held], labels[held]
        count = sum(len(labels) for _, labels in found.values())
        read = reader.load if count * 3 * self.image_size**2 <= self.memory * 2**30 else reader.check
        splits: dict[str, Split] = {split: read(*pictures) for split, pictures in found.items()}
        self.classes, self.splits = keep_filled_classes(classes, splits, folders["train"])
        if reader.problems:
            shown = "; ".join(sorted(reader.problems)[:3])
            rank_zero_warn(f"{self.root}: {len(reader.problems)} pictures or classes are left out: {shown}")


def split_folders(root: Path) -> dict[str, Path]:
    """The folders of the splits that exist; without any, `root` is the one for training."""
    if not root.is_dir():
        raise FileNotFoundError(f"{root}: there is no such folder; set dataset.root to the folder of your images")
    folders = {}
    for split, names in _split_names.items():
        existing = [root / name for name in names if holds_folders(root / name)]
        if existing:
            folders[split] = existing[0]
    if folders and "train" not in folders:
        raise FileNotFoundError(f"{root / 'train'}: there are no class folders, though there is {folders.popitem()[1]}")
    return folders or {"train": root}


def holds_folders(folder: Path) -> bool:
    """Whether this is the folder of a split, rather than that of a class which is called like one."""
    return folder.is_dir() and any(entry.is_dir() for entry in folder.iterdir())


def class_names(folder: Path) -> tuple[str, ...]:
    names = tuple(sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and entry.name[0] != "."))
    if len(names) < 2:
        raise ValueError(f"{folder}: holds {len(names)} class folders; at least two are needed, one per class")
    return names


class FileReader:
    """Reads many files; what cannot be read is raised, or skipped and noted.

    Attributes:
        problems: what was skipped, each beginning with its path.
    """

    def __init__(self, skip: bool = False) -> None:
        self.skip = skip
        self.problems: list[str] = []

    def problem(self, error: ValueError) -> None:
        if not self.skip:
            raise error
        self.problems.append(str(error))

    def for_all(self, read: Callable[[int], object], paths: Sequence[Path]) -> Tensor:
        """Reads by index; returns which could be read, (N,) bool."""
        good = torch.ones(len(paths), dtype=torch.bool)

        def attempt(indices: range) -> None:
            for index in indices:
                try:
                    read(index)
                except ImageFileError as error:
                    self.problem(error)
                    good[index] = False

        step = 64  # pictures of a task
        tasks = [range(start, min(start + step, len(paths))) for start in range(0, len(paths), step)]
        pool = ThreadPoolExecutor(os.cpu_count())  # more would only wait for each other
        try:
            for _ in track(pool.map(attempt, tasks), "Reading pictures", len(tasks), transient=True):
                pass
        finally:
            pool.shutdown(cancel_futures=True)  # at an error, the rest isn't read
        return good


class ImageReader(FileReader):
    """Reads pictures into one size."""

    def __init__(self, preprocess: Preprocess, skip: bool = False) -> None:
        super().__init__(skip)
        self.preprocess = preprocess

    def load(self, paths: Sequence[Path], labels: Tensor) -> tuple[Tensor, Tensor]:
        """All pictures as (N, 3, H, W) uint8, and their labels."""
        pixels = torch.empty(len(paths), 3, *self.preprocess.image_size, dtype=torch.uint8)

        def read(index: int) -> None:
            pixels[index] = self.preprocess.pixels(open_image(paths[index]))

        good = self.for_all(read, paths)
        return (pixels, labels) if good.all() else (pixels[good], labels[good])

    def check(self, paths: Sequence[Path], labels: Tensor) -> tuple[Sequence[Path], Tensor]:
        """The paths of all pictures that can be read, for decoding them when they are asked for; and their labels."""
        good = self.for_all(lambda index: check_image(paths[index]), paths)
        return [path for path, kept in zip(paths, good.tolist(), strict=True) if kept], labels[good]


def find_images(folder: Path, classes: Sequence[str], reader: ImageReader) -> tuple[list[Path], Tensor]:
    """The pictures of each class, in order of their names, and their labels (N,)."""
    unknown = {entry.name for entry in folder.iterdir() if entry.is_dir() and entry.name[0] != "."} - set(classes)
    if unknown:
        raise ValueError(f"{folder}: has classes that the training images don't: {', '.join(sorted(unknown))}")
    paths: list[Path] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        found = sorted(path for path in (folder / name).rglob("*") if is_picture(path))
        if not found:
            suffixes = ", ".join(image_suffixes)
            reader.problem(ImageFileError(f"{folder / name}: the class has no pictures ({suffixes})"))
        paths += found
        labels += [label] * len(found)
    return paths, torch.tensor(labels, dtype=torch.long)


def is_picture(path: Path) -> bool:
    """By its name; what begins with a dot are notes that systems leave beside pictures."""
    return path.suffix.lower() in image_suffixes and path.name[0] != "." and path.is_file()


def keep_filled_classes(
    classes: Sequence[str], splits: dict[str, Split], folder: Path
) -> tuple[tuple[str, ...], dict[str, Split]]:
    """Leaves out the classes of which no training picture is left, in all splits.

    Raises:
        ValueError: fewer than two classes are left, or no picture is left in a split.
    """
    filled = torch.bincount(splits["train"][1], minlength=len(classes)) > 0
    names = tuple(name for name, has_pictures in zip(classes, filled.tolist(), strict=True) if has_pictures)
    if len(names) < 2:
        raise ValueError(f"{folder}: {len(names)} classes have pictures that can be read; at least two are needed")
    new_labels = filled.cumsum(0) - 1
    kept: dict[str, Split] = {}
    for split, (images, labels) in splits.items():
        good = filled[labels]
        if not good.any():
            raise ValueError(f"{folder.parent}: no picture of the {split} images can be read")
        if not good.all():
            images = images[good] if isinstance(images, Tensor) else [images[index] for index in good.nonzero()]
        kept[split] = images, new_labels[labels[good]]
    return names, kept
