"""Augmentation of batches in memory, each image's from (seed, epoch, index) alone, so that runs can be resumed exactly."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms import v2


class Augmentation:
    """Crop, flip, RandAugment and erasing per image; mixup or cutmix per batch. Zero leaves a part out.

    Args:
        num_classes: of mixed labels.
        seed: of all draws.
        crop_padding: pixels by which an image may shift in each direction; the border is reflected.
        flip: probability of a horizontal flip.
        randaugment: operations of RandAugment per image (Cubuk et al. 2020, https://arxiv.org/abs/1909.13719).
        magnitude: of RandAugment, 0 to 30.
        erasing: probability that a rectangle is greyed (Zhong et al. 2020,
            https://arxiv.org/abs/1708.04896).
        mixup: alpha of mixup (Zhang et al. 2018, https://arxiv.org/abs/1710.09412).
        cutmix: alpha of CutMix (Yun et al. 2019, https://arxiv.org/abs/1905.04899); with mixup, each takes half of the
            batches.
        mix_probability: of a batch to be mixed at all.
    """

    def __init__(
        self,
        num_classes: int,
        seed: int = 0,
        *,
        crop_padding: int = 0,
        flip: float = 0.0,
        randaugment: int = 0,
        magnitude: int = 9,
        erasing: float = 0.0,
        mixup: float = 0.0,
        cutmix: float = 0.0,
        mix_probability: float = 1.0,
    ) -> None:
        self.seed = seed
        self.crop_padding, self.flip, self.erasing = crop_padding, flip, erasing
        self.randaugment = v2.RandAugment(randaugment, magnitude) if randaugment else None
        self.mixers: list[v2.Transform] = []
        if mixup:
            self.mixers.append(v2.MixUp(alpha=mixup, num_classes=num_classes))
        if cutmix:
            self.mixers.append(v2.CutMix(alpha=cutmix, num_classes=num_classes))
        self.mix_probability = mix_probability

    def pixels(self, images: Tensor, epoch: int, indices: Sequence[int]) -> Tensor:
        """Augments images (B, 3, H, W), uint8."""
        draws = torch.from_numpy(np.stack([self.draws(epoch, index) for index in indices]))  # (B, 9) in [0, 1)
        images = self.crop_and_flip(images, draws[:, 0], draws[:, 1], draws[:, 2])
        if self.randaugment is not None:
            with torch.random.fork_rng(devices=[]):
                for position, seed in enumerate((draws[:, 3] * 2**53).long().tolist()):
                    torch.manual_seed(seed)
                    images[position] = self.randaugment(images[position])
        if self.erasing:
            images = self.erase(images, draws)
        return images

    def mix(self, images: Tensor, labels: Tensor, epoch: int, first_index: int) -> tuple[Tensor, Tensor]:
        """Mixes float images (B, 3, H, W) and labels (B,) of a batch; mixed labels are (B, classes)."""
        if not self.mixers:
            return images, labels
        generator = np.random.Generator(np.random.Philox(key=self.seed, counter=[first_index, epoch, 1, 0]))
        mixed, which, seed = generator.random(3)
        if mixed >= self.mix_probability:
            return images, labels
        mixer = self.mixers[int(which * len(self.mixers))]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(seed * 2**53))
            return mixer(images, labels)

    def draws(self, epoch: int, index: int) -> np.ndarray:
        """Nine numbers in [0, 1) that belong to an image in an epoch."""
        bits = np.random.Philox(key=self.seed, counter=[index, epoch, 0, 0])
        return np.random.Generator(bits).random(9)

    def crop_and_flip(self, images: Tensor, vertical: Tensor, horizontal: Tensor, flip: Tensor) -> Tensor:
        batch, _, height, width = images.shape
        padding = self.crop_padding
        rows = torch.arange(height) + ((2 * padding + 1) * vertical[:, None]).long() - padding  # (B, H)
        columns = torch.arange(width) + ((2 * padding + 1) * horizontal[:, None]).long() - padding  # (B, W)
        columns = torch.where(flip[:, None] < self.flip, columns.flip(1), columns)
        rows, columns = reflect(rows, height), reflect(columns, width)
        samples = torch.arange(batch)[:, None, None]
        cells = images.permute(0, 2, 3, 1)[samples, rows[:, :, None], columns[:, None, :]]  # (B, H, W, 3)
        return cells.permute(0, 3, 1, 2)

    def erase(self, images: Tensor, draws: Tensor) -> Tensor:
        """Greys a rectangle of 2 to 33 % of the area, whose sides are as 1 to 3.3 at most."""
        height, width = images.shape[-2:]
        area = (0.02 + 0.31 * draws[:, 4]) * height * width
        ratio = torch.exp((2 * draws[:, 5] - 1) * np.log(3.3))
        tall = (area * ratio).sqrt().clamp(max=height).round()  # (B,)
        wide = (area / ratio).sqrt().clamp(max=width).round()
        top = (draws[:, 6] * (height - tall + 1)).floor()
        left = (draws[:, 7] * (width - wide + 1)).floor()
        row, column = torch.arange(height), torch.arange(width)
        inside_rows = (row >= top[:, None]) & (row < (top + tall)[:, None])  # (B, H)
        inside_columns = (column >= left[:, None]) & (column < (left + wide)[:, None])  # (B, W)
        inside = inside_rows[:, :, None] & inside_columns[:, None, :] & (draws[:, 8] < self.erasing)[:, None, None]
        return images.masked_fill(inside[:, None], 127)


def reflect(positions: Tensor, size: int) -> Tensor:
    """Positions outside of 0 ... size - 1 come back from the border."""
    positions = positions.abs()
    return torch.where(positions >= size, 2 * (size - 1) - positions, positions)
