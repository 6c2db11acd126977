"""RandAugment for whole batches: images that drew the same operation go through torchvision together."""

from __future__ import annotations

import math
from collections.abc import Callable

from torch import Tensor
from torchvision.transforms.v2 import functional

Operation = Callable[[Tensor, int], Tensor]  # of images (n, 3, H, W) and a direction, 1 or -1


def randaugment(images: Tensor, draws: Tensor, magnitude: int) -> Tensor:
    """Applies to each image a few operations that its draws choose, all of one magnitude.

    Args:
        images: (B, 3, H, W) uint8; not changed.
        draws: (B, operations) in [0, 1), one for each operation that is applied, in this order.
        magnitude: 0 (weak) to 30 (strong).

    Returns:
        (B, 3, H, W) uint8. What comes from beyond the border is black.

    Source: Cubuk et al. 2020, https://arxiv.org/abs/1909.13719; the operations and their strengths are those of
        `torchvision.transforms.v2.RandAugment`.
    """
    operations = randaugment_operations(magnitude, images.shape[-2], images.shape[-1])
    images = images.clone()
    for choice in (draws * 2 * len(operations)).long().unbind(1):  # (B,), each operation in two directions
        for number in choice.unique().tolist():
            members = (choice == number).nonzero().flatten()
            images[members] = operations[number // 2](images[members], 1 - 2 * (number % 2))
    return images


def randaugment_operations(magnitude: int, height: int, width: int) -> tuple[Operation, ...]:
    """The fourteen operations at this magnitude; some of them are the same in both directions."""
    strength = magnitude / 30
    shear = math.degrees(math.atan(0.3 * strength))
    right, down = int(150 / 331 * width * strength), int(150 / 331 * height * strength)
    change, bits, threshold = 0.9 * strength, round(8 - 4 * strength), 255 * (1 - strength)
    return (
        lambda images, direction: images,
        lambda images, direction: affine(images, shear=[direction * shear, 0.0], center=[0.0, 0.0]),
        lambda images, direction: affine(images, shear=[0.0, direction * shear], center=[0.0, 0.0]),
        lambda images, direction: affine(images, translate=[direction * right, 0]),
        lambda images, direction: affine(images, translate=[0, direction * down]),
        lambda images, direction: functional.rotate(images, direction * 30 * strength),
        lambda images, direction: functional.adjust_brightness(images, 1 + direction * change),
        lambda images, direction: functional.adjust_saturation(images, 1 + direction * change),
        lambda images, direction: functional.adjust_contrast(images, 1 + direction * change),
        lambda images, direction: functional.adjust_sharpness(images, 1 + direction * change),
        lambda images, direction: functional.posterize(images, bits),
        lambda images, direction: functional.solarize(images, threshold),
        lambda images, direction: functional.autocontrast(images),
        lambda images, direction: functional.equalize(images),
    )


def affine(images: Tensor, **change) -> Tensor:
    """An affine map, given by what differs from the identity."""
    return functional.affine(images, **{"angle": 0.0, "translate": [0, 0], "scale": 1.0, "shear": [0.0, 0.0]} | change)
