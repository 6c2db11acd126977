"""CIFAR-10 and CIFAR-100: 50,000 training and 10,000 test images of 32x32 pixels."""

from __future__ import annotations

import os
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor
from torchvision import datasets

from visattn.data.classification import ImageClassificationData, hold_out
from visattn.data.image_folder import ImageReader, class_names, find_images, holds_folders
from visattn.data.preprocess import Preprocess


class CIFAR10DataModule(ImageClassificationData):
    """CIFAR-10 in memory, downloaded if it isn't in `root`.

    Args:
        root: where the published archive is or shall be; or a folder with `train/` and `test/` class folders.
        image_size: side in pixels; other than 32, the images of a batch are resized.
        batch_size: images per process and step.
        num_workers: processes that augment; 0 augments in the training process.
        seed: of order, augmentation and validation images.
        validation_fraction: of the training images of each class, held out to choose the best epoch.
        augmentation: keywords of `visattn.data.Augmentation`.

    Raises:
        FileNotFoundError: `root` holds neither of them, or a damaged archive, and it cannot be downloaded.

    Source: Krizhevsky 2009, https://www.cs.toronto.edu/~kriz/cifar.html.
    """

    archive: ClassVar[type[datasets.CIFAR10]] = datasets.CIFAR10
    mean: ClassVar[tuple[float, ...]] = (0.4914, 0.4822, 0.4465)
    std: ClassVar[tuple[float, ...]] = (0.2470, 0.2435, 0.2616)

    def __init__(
        self,
        root: str | os.PathLike[str] = "data",
        *,
        image_size: int = 32,
        batch_size: int = 128,
        num_workers: int = 0,
        seed: int = 0,
        validation_fraction: float = 0.02,
        augmentation: dict | None = None,
    ) -> None:
        super().__init__(image_size, batch_size, num_workers, seed, augmentation)
        self.root = Path(root)
        if self.root.name == self.archive.base_folder:  # the unpacked archive itself
            self.root = self.root.parent
        self.validation_fraction = validation_fraction
        self.preprocess = Preprocess(image_size, mean=self.mean, std=self.std)

    def in_class_folders(self) -> bool:
        return holds_folders(self.root / "train") and holds_folders(self.root / "test")

    def prepare_data(self) -> None:
        if self.in_class_folders():
            return
        folder = self.root / self.archive.base_folder
        try:
            self.archive(str(self.root), train=True, download=True)
        except (OSError, RuntimeError) as error:  # no network, or no place to write to
            state = "is damaged or not whole" if folder.is_dir() else "is missing, and there are no train/ and test/"
            raise FileNotFoundError(
                f"{folder}: {state}, and {self.archive.url} could not be downloaded ({error}); set dataset.root to the "
                f"folder that holds {self.archive.base_folder}, or to one with train/ and test/ class folders"
            ) from error

    def setup(self, stage: str | None = None) -> None:
        if self.splits:
            return
        train, test = self.split("train"), self.split("test")
        kept, held = hold_out(train[1], self.validation_fraction, self.seed)
        self.splits = {
            "train": (train[0][kept], train[1][kept]),
            "validation": (train[0][held], train[1][held]),
            "test": test,
        }

    def split(self, name: str) -> tuple[Tensor, Tensor]:
        """Images (N, 3, 32, 32) uint8 and labels (N,) of train or test."""
        if self.in_class_folders():
            self.classes, reader = class_names(self.root / "train"), ImageReader(Preprocess(32))
            return reader.load(*find_images(self.root / name, self.classes, reader))
        archive = self.archive(str(self.root), train=name == "train")
        self.classes = tuple(archive.classes)
        images = torch.from_numpy(archive.data).permute(0, 3, 1, 2).contiguous()
        return images, torch.tensor(archive.targets)


class CIFAR100DataModule(CIFAR10DataModule):
    """CIFAR-100: as CIFAR-10, with 100 classes of 500 training images. Source: Krizhevsky 2009."""

    archive = datasets.CIFAR100
    mean = (0.5071, 0.4865, 0.4409)
    std = (0.2673, 0.2564, 0.2762)
