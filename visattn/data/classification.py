"""What the data modules of image classification share: batches out of memory or files, and their loaders."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import lightning
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from visattn.data.augmentation import Augmentation
from visattn.data.images import open_image
from visattn.data.loader import ResumableLoader
from visattn.data.preprocess import Preprocess
from visattn.data.sampler import EpochSampler, processes_and_rank


class ImageBatches(Dataset):
    """Batches of images (B, 3, H, W), float and normalised, and labels (B,), or (B, classes) where they are mixed.

    Args:
        images: (N, 3, H, W) uint8 in memory, or N paths of files, decoded when they are asked for. Those in memory
            that have another size than `preprocess` gives are resized when they are asked for.
        labels: (N,) long.
        preprocess: its geometry for files, its mean and deviation for all.
        augmentation: None for evaluation.
    """

    def __init__(
        self,
        images: Tensor | Sequence[Path],
        labels: Tensor,
        preprocess: Preprocess,
        augmentation: Augmentation | None = None,
    ) -> None:
        self.images, self.labels = images, labels
        self.preprocess, self.augmentation = preprocess, augmentation

    def __len__(self) -> int:
        return len(self.labels)

    def __getitems__(self, pairs: Sequence[tuple[int, int]]) -> tuple[Tensor, Tensor]:
        """A batch; the label of index -1 is -1, to be ignored."""
        epoch, indices = pairs[0][0], [index for _, index in pairs]
        chosen = torch.tensor([max(index, 0) for index in indices])
        if isinstance(self.images, Tensor):
            pixels = self.images[chosen]  # a copy
            if pixels.shape[2:] != self.preprocess.image_size:
                size = list(self.preprocess.image_size)
                pixels = nn.functional.interpolate(pixels, size, mode="bicubic", antialias=True)
        else:
            pixels = torch.stack([self.preprocess.pixels(open_image(self.images[index])) for index in chosen.tolist()])
        labels = torch.where(torch.tensor(indices) < 0, -1, self.labels[chosen])
        if self.augmentation is not None:
            pixels = self.augmentation.pixels(pixels, epoch, chosen.tolist())
        images = self.normalize(pixels)
        if self.augmentation is not None:
            images, labels = self.augmentation.mix(images, labels, epoch, int(chosen[0]))
        return images, labels

    def normalize(self, pixels: Tensor) -> Tensor:
        """(B, 3, H, W) uint8 to float, as the network reads them."""
        mean = torch.tensor(self.preprocess.mean).view(3, 1, 1)
        std = torch.tensor(self.preprocess.std).view(3, 1, 1)
        return pixels.float().mul_(1 / 255).sub_(mean).div_(std)


class ImageClassificationData(lightning.LightningDataModule):
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
        super().__init__()
        self.image_size, self.batch_size = image_size, batch_size
        self.num_workers, self.seed = num_workers, seed
        self.augmentation = dict(augmentation or {})
        self.splits: dict[str, tuple[Tensor | Sequence[Path], Tensor]] = {}
        self._train_loader: ResumableLoader | None = None
        self._place: dict[str, int] | None = None  # within an epoch, where a resumed run goes on

    @property
    def num_classes(self) -> int:
        return len(self.classes)

    def train_dataloader(self) -> ResumableLoader:
        augmentation = Augmentation(self.num_classes, self.seed, **self.augmentation)
        batches = ImageBatches(*self.splits["train"], self.preprocess, augmentation)
        # A last batch of few images disturbs batch norm and the average.
        whole = len(batches) >= self.batch_size * processes_and_rank()[0]
        sampler = EpochSampler(len(batches), self.seed, shuffle=True, drop_rest=whole)
        self._train_loader = ResumableLoader(batches, sampler=sampler, drop_last=whole, **self.loader_options())
        if self._place is not None:
            self._train_loader.load_state_dict(self._place)
        return self._train_loader

    # Lightning gives a loader's state back only to loaders made after the checkpoint was read, and some are made
    # before (to count the steps of a schedule), so the place within the epoch is kept here.
    def state_dict(self) -> dict[str, dict[str, int]]:
        return {} if self._train_loader is None else {"train_loader": self._train_loader.state_dict()}

    def load_state_dict(self, state: dict[str, dict[str, int]]) -> None:
        self._place = state.get("train_loader")

    def val_dataloader(self) -> DataLoader:
        return self.evaluation_loader("validation")

    def test_dataloader(self) -> DataLoader:
        return self.evaluation_loader("test")

    def evaluation_loader(self, split: str) -> DataLoader:
        batches = ImageBatches(*self.splits[split], self.preprocess)
        return DataLoader(batches, sampler=EpochSampler(len(batches), shuffle=False), **self.loader_options())

    def examples(self, count: int, split: str = "test") -> tuple[Tensor, Tensor]:
        """Images (count, 3, H, W) and labels spread evenly over a split, to look at."""
        batches = ImageBatches(*self.splits[split], self.preprocess)
        indices = torch.linspace(0, len(batches) - 1, min(count, len(batches))).long().tolist()
        return batches.__getitems__([(0, index) for index in indices])

    def loader_options(self) -> dict:
        return {
            "batch_size": self.batch_size,
            "num_workers": self.num_workers,
            "collate_fn": as_it_is,
            "persistent_workers": False,
        }


def as_it_is(batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Batches come whole out of `ImageBatches`."""
    return batch


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
