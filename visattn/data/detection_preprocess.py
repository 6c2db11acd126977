"""From a picture to what a detector reads: resized as a whole, in its own aspect ratio or in one for all."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode, functional

from visattn.data.images import to_rgb
from visattn.data.preprocess import Preprocess, imagenet_mean, imagenet_std


class DetectionPreprocess:
    """A PIL image to a float tensor (3, height, width), none of it cut off; sizes differ unless `fit` is "stretch".

    Args:
        shortest, longest: pixels. With `fit` "within", the shorter side becomes `shortest`, or less if the longer one
            would be above `longest`; with "stretch" they are height and width of every image.
        fit: "within" keeps the aspect ratio (DETR), "stretch" gives it up (RT-DETR).
        mean, std: of the three colours in [0, 1], subtracted and divided by.
        interpolation: nearest, bilinear or bicubic; as smooth as it must be where images shrink.
        resampler: "torch" is the faster one, "pillow" what the networks of 2020 and before were published with; their
            colours differ by 1 of 255 at most, but for nearest.
        divisor: a batch is padded to the least multiples of it that hold all its images; DETR takes 1.

    Attributes:
        arguments: all constructor arguments as plain data: `DetectionPreprocess(**preprocess.arguments)` does the same.

    Raises:
        ValueError: fit, interpolation or resampler is unknown, a side is below 1, `longest` below `shortest` with
            "within", mean or std don't have three numbers.

    Source: Carion et al. 2020 (https://arxiv.org/abs/2005.12872), section 4, and transformers' image processors
        for the rounding of sizes.
    """

    def __init__(
        self,
        shortest: int = 480,
        longest: int = 640,
        *,
        fit: str = "within",
        mean: Sequence[float] = imagenet_mean,
        std: Sequence[float] = imagenet_std,
        interpolation: str = "bilinear",
        resampler: str = "torch",
        divisor: int = 32,
    ) -> None:
        self.shortest, self.longest = int(shortest), int(longest)
        self.fit, self.interpolation, self.resampler = fit, interpolation, resampler
        self.mean, self.std = tuple(map(float, mean)), tuple(map(float, std))
        self.divisor = int(divisor)
        if fit not in ("within", "stretch"):
            raise ValueError(f"fit {fit!r} is unknown; choose within or stretch")
        if min(self.shortest, self.longest, self.divisor) < 1:
            raise ValueError(f"shortest {shortest}, longest {longest} and divisor {divisor} must be at least 1 pixel")
        if fit == "within" and self.longest < self.shortest:
            raise ValueError(f"longest {longest} must not be below shortest {shortest}")
        if interpolation not in ("nearest", "bilinear", "bicubic"):
            raise ValueError(f"interpolation {interpolation!r} is unknown; choose nearest, bilinear or bicubic")
        if resampler not in ("torch", "pillow"):
            raise ValueError(f"resampler {resampler!r} is unknown; choose torch or pillow")
        if len(self.mean) != 3 or len(self.std) != 3 or min(self.std) <= 0:
            raise ValueError(f"mean {mean} and std {std} need three numbers each, those of std above 0")

    @property
    def arguments(self) -> dict[str, Any]:
        return {
            "shortest": self.shortest,
            "longest": self.longest,
            "fit": self.fit,
            "mean": self.mean,
            "std": self.std,
            "interpolation": self.interpolation,
            "resampler": self.resampler,
            "divisor": self.divisor,
        }

    def __call__(self, image: Image.Image) -> Tensor:
        """A picture of any size and mode to a float tensor (3, height, width)."""
        return self.normalize(self.pixels(image))

    def pixels(self, image: Image.Image) -> Tensor:
        """A picture to (3, height, width), uint8: resized, not yet normalised."""
        pixels = torch.from_numpy(np.array(to_rgb(image))).permute(2, 0, 1)  # (3, height, width) of the picture
        return self.resize(pixels, self.resized(*pixels.shape[1:]))

    def resized(self, height: int, width: int) -> tuple[int, int]:
        """The (height, width) that a picture of this height and width is resized to."""
        if self.fit == "stretch":
            return self.shortest, self.longest
        short, long = min(height, width), max(height, width)
        wanted: float = self.shortest
        if long / short * self.shortest > self.longest:
            wanted = self.longest * short / long
        if round(wanted) == short:
            return height, width
        # The shorter side is rounded, the longer one cut off: transformers.
        shorter, longer = max(round(wanted), 1), max(int(wanted * long / short), 1)
        return (shorter, longer) if height <= width else (longer, shorter)

    def resize(self, pixels: Tensor, size: Sequence[int]) -> Tensor:
        """Pixels (3, height, width) uint8 at another (height, width); themselves if it is theirs."""
        size = list(size)
        if list(pixels.shape[1:]) == size:
            return pixels
        if self.resampler == "torch":
            mode = InterpolationMode[self.interpolation.upper()]
            return functional.resize(pixels, size, interpolation=mode, antialias=True)
        image = Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())
        image = image.resize((size[1], size[0]), Image.Resampling[self.interpolation.upper()])
        return torch.from_numpy(np.array(image)).permute(2, 0, 1)

    def normalize(self, pixels: Tensor) -> Tensor:
        """(..., 3, height, width) uint8 to float, as the network reads them."""
        mean, std = torch.tensor(self.mean).view(3, 1, 1), torch.tensor(self.std).view(3, 1, 1)
        return torch.addcmul(-mean / std, pixels.float(), 1 / (255 * std))

    def invert(self, images: Tensor) -> Tensor:
        """Preprocessed images (..., 3, H, W) back to colours in [0, 1], for looking at them."""
        mean, std = images.new_tensor(self.mean).view(3, 1, 1), images.new_tensor(self.std).view(3, 1, 1)
        return (images * std + mean).clamp(0, 1)

    def with_colors_of(self, other: Preprocess | DetectionPreprocess | None) -> DetectionPreprocess:
        """The same geometry with the mean and deviation of another; itself if there is none."""
        return self if other is None else DetectionPreprocess(**self.arguments | {"mean": other.mean, "std": other.std})

    def __repr__(self) -> str:
        return f"DetectionPreprocess({', '.join(f'{name}={value!r}' for name, value in self.arguments.items())})"
