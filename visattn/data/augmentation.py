"""Augmentation of batches in memory, each image's from (seed, epoch, index) alone, so runs can be resumed exactly."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms import v2

from visattn.data.draws import uniform_draws
from visattn.data.randaugment import randaugment


class Augmentation:
    """Crop, flip, RandAugment and erasing per image; mixup or cutmix per batch. Zero leaves a part out.

    Args:
        num_classes: of mixed labels.
        seed: of all draws.
        crop_padding: pixels by which an image may shift in each direction; the border is reflected.
        flip: probability of a horizontal flip; or "alternating": half of the images in the first epoch, the others in
            the next, and so on, so that two epochs show both sides of each (Jordan 2024,
            https://arxiv.org/abs/2404.00498, section 3.6).
        randaugment: operations per image of RandAugment (Cubuk et al. 2020, https://arxiv.org/abs/1909.13719).
        magnitude: of RandAugment, 0 to 30.
        erasing: probability that a rectangle is greyed (Zhong et al. 2020,
            https://arxiv.org/abs/1708.04896).
        mixup: alpha of mixup (Zhang et al. 2018, https://arxiv.org/abs/1710.09412).
        cutmix: alpha of CutMix (Yun et al. 2019, https://arxiv.org/abs/1905.04899); with mixup, each takes half of the
            batches.
        mix_probability: of a batch to be mixed at all.

    Raises:
        ValueError: a probability, the magnitude or another number is out of its range.
    """

    def __init__(
        self,
        num_classes: int,
        seed: int = 0,
        *,
        crop_padding: int = 0,
        flip: float | Literal["alternating"] = 0.0,
        randaugment: int = 0,
        magnitude: int = 9,
        erasing: float = 0.0,
        mixup: float = 0.0,
        cutmix: float = 0.0,
        mix_probability: float = 1.0,
    ) -> None:
        if isinstance(flip, str) and flip != "alternating":
            raise ValueError(f"flip {flip!r} must be a probability or alternating")
        chance = 0.0 if isinstance(flip, str) else flip
        for name, probability in (("flip", chance), ("erasing", erasing), ("mix_probability", mix_probability)):
            if not 0 <= probability <= 1:
                raise ValueError(f"{name} {probability} is no probability; it must lie between 0 and 1")
        if min(crop_padding, randaugment, mixup, cutmix) < 0:
            raise ValueError("crop_padding, randaugment, mixup and cutmix must be 0 or above")
        if not 0 <= magnitude <= 30:
            raise ValueError(f"magnitude {magnitude} of RandAugment must lie between 0 and 30")
        self.seed = seed
        self.crop_padding, self.flip, self.erasing = crop_padding, flip, erasing
        self.randaugment, self.magnitude = randaugment, magnitude
        self.mixers: list[v2.Transform] = []
        if mixup:
            self.mixers.append(v2.MixUp(alpha=mixup, num_classes=num_classes))
        if cutmix:
            self.mixers.append(v2.CutMix(alpha=cutmix, num_classes=num_classes))
        self.mix_probability = mix_probability

    def pixels(self, images: Tensor, epoch: int, indices: Sequence[int]) -> Tensor:
        """Augments images (B, 3, H, W), uint8, which stay as they are.

        Raises:
            ValueError: crop_padding isn't below the side of the images.
        """
        draws = uniform_draws((self.seed, epoch), indices, 8 + self.randaugment)  # (B, 8 + operations) in [0, 1)
        images = crop(images, self.crop_padding, draws[:, 0], draws[:, 1])
        if isinstance(self.flip, str):
            first = uniform_draws((self.seed,), indices, 1)[:, 0] < 0.5
            flipped = torch.from_numpy(first ^ bool(epoch % 2))
        else:
            flipped = torch.from_numpy(draws[:, 2] < self.flip)
        images[flipped] = images[flipped].flip(3)
        if self.randaugment:
            images = randaugment(images, torch.from_numpy(draws[:, 8:]), self.magnitude)
        for position in np.flatnonzero(draws[:, 3] < self.erasing):
            erase(images[position], *draws[position, 4:8])
        return images

    def mix(self, images: Tensor, labels: Tensor, epoch: int, first_index: int) -> tuple[Tensor, Tensor]:
        """Mixes float images (B, 3, H, W) and labels (B,) of a batch; mixed labels are (B, classes).

        Drawn from (seed, epoch, first_index). A batch with images that are to be ignored (label -1) stays as it is.
        """
        if not self.mixers or bool((labels < 0).any()):
            return images, labels
        mixed, which, seed = uniform_draws((self.seed, epoch, 1), [first_index], 3)[0]
        if mixed >= self.mix_probability:
            return images, labels
        mixer = self.mixers[int(which * len(self.mixers))]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(seed * 2**53))
            return mixer(images, labels)


def crop(images: Tensor, padding: int, vertical: np.ndarray, horizontal: np.ndarray) -> Tensor:
    """Copies of images (B, 3, H, W), each shifted by up to `padding` pixels as its draws (B,) in [0, 1) say.

    The border is reflected, its pixels not repeated.
    """
    height, width = images.shape[-2:]
    if padding >= min(height, width):
        raise ValueError(f"crop_padding {padding} must be below the side of the {height}x{width} images")
    border = ((0, 0), (0, 0), (padding, padding), (padding, padding))
    padded = np.pad(images.numpy(), border, mode="reflect")
    windows = np.lib.stride_tricks.sliding_window_view(padded, (height, width), axis=(2, 3))
    top, left = ((draw * (2 * padding + 1)).astype(np.int64) for draw in (vertical, horizontal))
    return torch.from_numpy(windows[np.arange(len(images)), :, top, left])


def erase(image: Tensor, area: float, ratio: float, vertical: float, horizontal: float) -> None:
    """Greys a rectangle of 2 to 33 % of an image (3, H, W), whose sides are as 1 to 3.3 at most; draws in [0, 1)."""
    height, width = image.shape[-2:]
    pixels = (0.02 + 0.31 * area) * height * width
    stretch = 3.3 ** (ratio - 0.5)  # of each side: their quotient lies between 1 / 3.3 and 3.3
    tall = max(round(min(pixels**0.5 * stretch, height)), 1)
    wide = max(round(min(pixels**0.5 / stretch, width)), 1)
    top, left = int(vertical * (height - tall + 1)), int(horizontal * (width - wide + 1))
    image[:, top : top + tall, left : left + wide] = 127
