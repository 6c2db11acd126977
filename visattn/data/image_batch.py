"""Images of different sizes as one batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class ImageBatch(NamedTuple):
    """B images, each in the upper left corner of its place.

    Attributes:
        images: (B, 3, H, W) float, normalised; zeros, which is the mean colour, where there is no image.
        padding: (B, H, W) bool, True where there is no image.
        sizes: (B, 2) long, (height, width) of each image within the batch.
    """

    images: Tensor
    padding: Tensor
    sizes: Tensor


def pad_images(images: Sequence[Tensor], divisor: int = 32, full: Sequence[int] | None = None) -> ImageBatch:
    """Puts images into one batch, padded at the bottom and at the right.

    Args:
        images: one or more of (3, height, width), of any sizes.
        divisor: height and width of the batch are multiples of it.
        full: (height, width) of the batch at least, where batches of one size are wanted; None: that of the images.

    Raises:
        ValueError: there are no images, or the divisor is below 1.
    """
    if not images:
        raise ValueError("there are no images to batch")
    if divisor < 1:
        raise ValueError(f"divisor {divisor} must be at least 1")
    sizes = torch.tensor([image.shape[1:] for image in images])  # (B, 2)
    least = sizes.amax(0).tolist()
    if full is not None:
        least = [max(given, side) for given, side in zip(full, least, strict=True)]
    height, width = (-(-side // divisor) * divisor for side in least)
    batch = images[0].new_zeros(len(images), images[0].shape[0], height, width)
    padding = torch.ones(len(images), height, width, dtype=torch.bool, device=batch.device)
    for place, image in enumerate(images):
        batch[place, :, : image.shape[1], : image.shape[2]] = image
        padding[place, : image.shape[1], : image.shape[2]] = False
    return ImageBatch(batch, padding, sizes.to(batch.device))
