"""What the data modules of image classification share: batches out of memory or files, and their loaders."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from visattn.data.augmentation import Augmentation
from visattn.data.loader import ResumableData, ResumableLoader
from visattn.data.preprocess import Preprocess
from visattn.data.stored_images import StoredImages


class ImageBatches(Dataset):
    """Batches of images (B, 3, H, W), float and normalised, and labels (B,), or (B, classes) where they are mixed.

    Args:
        images, preprocess: as for `StoredImages`.
        labels: (N,) long.
        augmentation: None for evaluation.
    """

    def __init__(
        self,
        images: Tensor | Sequence[Path],
        labels: Tensor,
        preprocess: Preprocess,
        augmentation: Augmentation | None = None,
    ) -> None:
        self.images, self.labels = StoredImages(images, preprocess), labels
        self.augmentation = augmentation

    def __len__(self) -> int:
        return len(self.labels)

    def __getitems__(self, pairs: Sequence[tuple[int, int]]) -> tuple[Tensor, Tensor]:
        """A batch; the label of index -1 is -1, to be ignored."""
        epoch, indices = pairs[0][0], [index for _, index in pairs]
        chosen = [max(index, 0) for index in indices]
        pixels = self.images.pixels(chosen)
        labels = torch.where(torch.tensor(indices) < 0, -1, self.labels[torch.tensor(chosen)])
        if self.augmentation is not None:
            pixels = self.augmentation.pixels(pixels, epoch, chosen)
        images = self.images.normalize(pixels)
        if self.augmentation is not None:
            images, labels = self.augmentation.mix(images, labels, epoch, chosen[0])
        return images, labels


class ImageClassificationData(ResumableData):
    """Loaders over images and labels in three splits, which `setup` of each data set fills.

    Attributes:
        task: "classification".
        classes: their names.
        image_size: side in pixels.
        preprocess: what the model must do to a picture before it sees it; may be replaced before the loaders are asked
            for, to normalise as a pretrained model expects.
        splits: name to (images, labels), the names being train, validation and test.
    """

    task = "classification"
    classes: tuple[str, ...]
    preprocess: Preprocess

    def __init__(
        self, image_size: int, batch_size: int, num_workers: int, seed: int, augmentation: dict | None
    ) -> None:
        super().__init__(batch_size, num_workers, seed)
        self.image_size = image_size
        self.augmentation = dict(augmentation or {})
        self.splits: dict[str, tuple[Tensor | Sequence[Path], Tensor]] = {}

    @property
    def num_classes(self) -> int:
        return len(self.classes)

    def train_dataloader(self) -> ResumableLoader:
        augmentation = Augmentation(self.num_classes, self.seed, **self.augmentation)
        return self.shuffled(ImageBatches(*self.splits["train"], self.preprocess, augmentation))

    def val_dataloader(self) -> DataLoader:
        return self.in_order(ImageBatches(*self.splits["validation"], self.preprocess))

    def test_dataloader(self) -> DataLoader:
        return self.in_order(ImageBatches(*self.splits["test"], self.preprocess))

    def examples(self, count: int, split: str = "test") -> tuple[Tensor, Tensor]:
        """Images (count, 3, H, W) and labels spread evenly over a split, to look at."""
        batches = ImageBatches(*self.splits[split], self.preprocess)
        indices = torch.linspace(0, len(batches) - 1, min(count, len(batches))).long().tolist()
        return batches.__getitems__([(0, index) for index in indices])


def hold_out(labels: Tensor, fraction: float, seed: int) -> tuple[Tensor, Tensor]:
    """Indices to keep and to hold out: the same fraction of every class, at least one image and never the last.

    Raises:
        ValueError: the fraction is not between 0 and 1, or holds out nothing.
    """
    if not 0 < fraction < 1:
        raise ValueError(f"fraction {fraction} of images to hold out must lie between 0 and 1")
    generator = torch.Generator().manual_seed(seed)
    held: list[int] = []
    for label in labels.unique().tolist():
        members = (labels == label).nonzero().flatten()
        order = members[torch.randperm(len(members), generator=generator)]
        held += order[: min(max(round(fraction * len(members)), 1), len(members) - 1)].tolist()
    if not held:
        raise ValueError(f"fraction {fraction} holds out nothing: every class has a single image")
    chosen = torch.zeros(len(labels), dtype=torch.bool)
    chosen[held] = True
    return (~chosen).nonzero().flatten(), chosen.nonzero().flatten()
