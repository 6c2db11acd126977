"""From a picture to what a network reads: resize, crop, scale to [0, 1], subtract the mean, divide by the deviation."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional

from visattn.data.images import open_image, to_rgb

Picture = str | os.PathLike[str] | Image.Image
imagenet_mean = (0.485, 0.456, 0.406)
imagenet_std = (0.229, 0.224, 0.225)


class Preprocess:
    """A PIL image to a float tensor (3, height, width), the way a checkpoint was evaluated by its publishers.

    Args:
        image_size: (height, width) in pixels of the result, or one number for both.
        resize: (height, width) in pixels, or one number for both, to resize to before the crop; None is `image_size`.
        fit: "cover" keeps the aspect ratio and fills `resize`, so that the longer side is cropped; "contain" keeps it
            and stays within `resize`, so that the shorter side is padded with the mean; "stretch" gives it up; "none"
            doesn't resize.
        interpolation: nearest, box, bilinear, hamming, bicubic or lanczos.
        mean, std: of the three colours in [0, 1], subtracted and divided by.
        crop_start: where the crop begins if it leaves an odd number of pixels: "nearest" rounds half of it (timm and
            torchvision), "down" cuts it off (transformers).

    Attributes:
        arguments: all constructor arguments as plain data: `Preprocess(**preprocess.arguments)` does the same.

    Raises:
        ValueError: fit or interpolation is unknown, a size is below 1, mean or std don't have three numbers.
    """

    def __init__(
        self,
        image_size: int | Sequence[int],
        *,
        resize: int | Sequence[int] | None = None,
        fit: str = "cover",
        interpolation: str = "bicubic",
        mean: Sequence[float] = imagenet_mean,
        std: Sequence[float] = imagenet_std,
        crop_start: str = "nearest",
    ) -> None:
        self.image_size = size_pair(image_size)
        self.resize = self.image_size if resize is None else size_pair(resize)
        self.fit, self.interpolation, self.crop_start = fit, interpolation, crop_start
        self.mean, self.std = tuple(map(float, mean)), tuple(map(float, std))
        if min(self.image_size + self.resize) < 1:
            raise ValueError(f"image_size {image_size} and resize {resize} must be at least 1 pixel")
        if fit not in ("cover", "contain", "stretch", "none"):
            raise ValueError(f"fit {fit!r} is unknown; choose cover, contain, stretch or none")
        if interpolation.upper() not in Image.Resampling.__members__:
            choices = ", ".join(name.lower() for name in Image.Resampling.__members__)
            raise ValueError(f"interpolation {interpolation!r} is unknown; choose one of {choices}")
        if crop_start not in ("nearest", "down"):
            raise ValueError(f"crop_start {crop_start!r} is unknown; choose nearest or down")
        if len(self.mean) != 3 or len(self.std) != 3 or min(self.std) <= 0:
            raise ValueError(f"mean {mean} and std {std} need three numbers each, those of std above 0")

    @property
    def arguments(self) -> dict[str, Any]:
        return {
            "image_size": self.image_size,
            "resize": self.resize,
            "fit": self.fit,
            "interpolation": self.interpolation,
            "mean": self.mean,
            "std": self.std,
            "crop_start": self.crop_start,
        }

    def __call__(self, image: Image.Image) -> Tensor:
        """A picture of any size and mode to a float tensor (3, height, width)."""
        pixels = functional.to_dtype(self.pixels(image), torch.float32, scale=True)
        return functional.normalize(pixels, self.mean, self.std)

    def pixels(self, image: Image.Image) -> Tensor:
        """A picture to (3, height, width), uint8: resized and cropped, not yet normalised."""
        image = to_rgb(image)
        if self.fit != "none":
            height, width = self.resized(image.height, image.width)
            if image.size != (width, height):
                image = image.resize((width, height), Image.Resampling[self.interpolation.upper()])
        if self.fit == "contain":
            image = self.pad(image)
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)  # (3, resized height, resized width)
        if pixels.shape[1:] == self.image_size:
            return pixels
        beyond = [side - wanted for side, wanted in zip(pixels.shape[1:], self.image_size, strict=True)]
        if self.crop_start == "down" and min(beyond) >= 0:
            return functional.crop(pixels, beyond[0] // 2, beyond[1] // 2, *self.image_size)
        return functional.center_crop(pixels, list(self.image_size))

    def resized(self, height: int, width: int) -> tuple[int, int]:
        """The (height, width) that a picture of this height and width is resized to."""
        if self.fit == "stretch":
            return self.resize
        if self.fit == "cover" and self.resize[0] == self.resize[1]:
            # By the shorter side, and the longer one cut off rather than rounded: timm, torchvision and transformers.
            side = self.resize[0]
            return (side, side * width // height) if height <= width else (side * height // width, side)
        ratios = (self.resize[0] / height, self.resize[1] / width)
        ratio = max(ratios) if self.fit == "cover" else min(ratios)
        return max(round(height * ratio), 1), max(round(width * ratio), 1)

    def pad(self, image: Image.Image) -> Image.Image:
        """Borders of the mean colour around a picture that is smaller than `image_size`."""
        height, width = max(image.height, self.image_size[0]), max(image.width, self.image_size[1])
        canvas = Image.new("RGB", (width, height), tuple(round(255 * value) for value in self.mean))
        canvas.paste(image, ((width - image.width) // 2, (height - image.height) // 2))
        return canvas

    def invert(self, images: Tensor) -> Tensor:
        """Preprocessed images (..., 3, H, W) back to colours in [0, 1], for looking at them."""
        mean, std = images.new_tensor(self.mean).view(3, 1, 1), images.new_tensor(self.std).view(3, 1, 1)
        return (images * std + mean).clamp(0, 1)

    def at(self, image_size: int | Sequence[int]) -> Preprocess:
        """The same for another image size; `resize` grows in proportion."""
        image_size = size_pair(image_size)
        resize = tuple(
            round(before * new / old) for before, new, old in zip(self.resize, image_size, self.image_size, strict=True)
        )
        return Preprocess(**self.arguments | {"image_size": image_size, "resize": resize})

    def with_colors_of(self, other: Preprocess | None) -> Preprocess:
        """The same geometry with the mean and deviation of another; itself if there is none."""
        return self if other is None else Preprocess(**self.arguments | {"mean": other.mean, "std": other.std})

    def __repr__(self) -> str:
        return f"Preprocess({', '.join(f'{name}={value!r}' for name, value in self.arguments.items())})"


def picture_batch(
    images: Tensor | Picture | Sequence[Picture], preprocess: Preprocess | None, parameter: Tensor
) -> Tensor:
    """What a model that takes pictures of any form is given, as a tensor (B, channels, H, W).

    Args:
        images: paths, PIL images, or one of them; or a preprocessed tensor (B, channels, H, W).
        preprocess: the model's.
        parameter: of the model; the result has its device and dtype.

    Raises:
        FileNotFoundError, ImageFileError: a file is missing, or no picture that can be read.
        ValueError: there are no pictures, a tensor is no batch, or pictures are given and there is no `preprocess`.
    """
    if isinstance(images, Tensor):
        if images.ndim != 4:
            raise ValueError(f"images {tuple(images.shape)} are no batch (B, channels, H, W); add an axis in front")
        return images.to(parameter)
    if preprocess is None:
        raise ValueError("this model doesn't know how pictures are prepared: set model.preprocess, or give a tensor")
    pictures = [images] if isinstance(images, str | os.PathLike | Image.Image) else images
    tensors = [preprocess(picture if isinstance(picture, Image.Image) else open_image(picture)) for picture in pictures]
    if not tensors:
        raise ValueError("there are no images")
    return torch.stack(tensors).to(parameter)


def size_pair(size: int | Sequence[int]) -> tuple[int, int]:
    """A size in pixels as (height, width)."""
    if isinstance(size, int):
        return size, size
    height, width = size
    return int(height), int(width)
