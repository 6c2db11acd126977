"""Images of a data set, in memory or in files, a batch at a time."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from visattn.data.images import open_image
from visattn.data.preprocess import Preprocess


class StoredImages:
    """Batches of pixels out of memory or files.

    Args:
        images: (N, 3, H, W) uint8 in memory, or N paths of files, decoded when they are asked for. Those in memory
            that have another size than `preprocess` gives are resized when they are asked for.
        preprocess: its geometry for files, its mean and deviation for all.
    """

    def __init__(self, images: Tensor | Sequence[Path], preprocess: Preprocess) -> None:
        self.images, self.preprocess = images, preprocess

    def __len__(self) -> int:
        return len(self.images)

    def pixels(self, indices: Sequence[int]) -> Tensor:
        """A copy of some images: (B, 3, height, width), uint8, of the size that `preprocess` gives."""
        if not isinstance(self.images, Tensor):
            return torch.stack([self.preprocess.pixels(open_image(self.images[index])) for index in indices])
        pixels = self.images[torch.tensor(indices)]
        if pixels.shape[2:] != self.preprocess.image_size:
            size = list(self.preprocess.image_size)
            pixels = nn.functional.interpolate(pixels, size, mode="bicubic", antialias=True)
        return pixels

    def normalize(self, pixels: Tensor) -> Tensor:
        """(B, 3, H, W) uint8 to float, as the network reads them."""
        mean = torch.tensor(self.preprocess.mean).view(3, 1, 1)
        std = torch.tensor(self.preprocess.std).view(3, 1, 1)
        return pixels.float().mul_(1 / 255).sub_(mean).div_(std)
