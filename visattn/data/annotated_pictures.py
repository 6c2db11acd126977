"""Pictures with the objects in them, shown whole or in part: pixels, boxes and masks go together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode, functional
from torchvision.tv_tensors import BoundingBoxes

from visattn.data.detection_files import Instances
from visattn.data.detection_preprocess import DetectionPreprocess
from visattn.data.images import open_image
from visattn.data.segmentations import decoded


class Window(NamedTuple):
    """A part of a picture, in whole pixels."""

    top: int
    left: int
    height: int
    width: int


class AnnotatedPicture(NamedTuple):
    """A picture and n objects in it.

    Attributes:
        pixels: (3, height, width) uint8.
        boxes: (n, 4) float32, left, top, right and bottom in these pixels, none of them empty.
        objects: (n,) long, which of the `Instances` they are.
        areas: (n,) float32, in these pixels, of what is visible.
        masks: (n, height, width) uint8, or None.
    """

    pixels: Tensor
    boxes: BoundingBoxes
    objects: Tensor
    areas: Tensor
    masks: Tensor | None

    def keep(self, kept: Tensor) -> AnnotatedPicture:
        """Only some of the objects, kept being (n,) bool or their places."""
        masks = None if self.masks is None else self.masks[kept]
        return AnnotatedPicture(
            self.pixels, rewrap(self, self.boxes[kept]), self.objects[kept], self.areas[kept], masks
        )


class AnnotatedPictures:
    """N pictures, decoded in memory or when they are asked for, and their objects.

    Args:
        pictures: N of (3, h, w) uint8, of their own size or another in the same aspect; None: the files of `instances`.
        instances: the objects, in pixels of the pictures' own size.
        preprocess: the size that a whole picture is shown in.
        crowds: show regions of many objects too.
    """

    def __init__(
        self,
        pictures: Sequence[Tensor] | None,
        instances: Instances,
        preprocess: DetectionPreprocess,
        *,
        crowds: bool = False,
    ) -> None:
        self.pictures, self.instances, self.preprocess = pictures, instances, preprocess
        corners = instances.corners()
        filled = (corners[:, 2] > corners[:, 0]) & (corners[:, 3] > corners[:, 1])
        self.shown = filled if crowds else filled & ~instances.crowd  # (A,) bool
        self.corners = torch.from_numpy(corners).float()

    def __len__(self) -> int:
        return len(self.instances.image_ids)

    def pixels(self, index: int) -> Tensor:
        """A picture as it is stored, (3, h, w) uint8, not to be changed."""
        if self.pictures is not None:
            return self.pictures[index]
        return torch.from_numpy(np.array(open_image(self.instances.paths[index]))).permute(2, 0, 1)

    def boxes(self, index: int) -> tuple[Tensor, BoundingBoxes]:
        """The objects of a picture that are shown (n,), and their boxes (n, 4) in pixels of its own size."""
        first, last = self.instances.first[index : index + 2]
        objects = torch.from_numpy(first + np.flatnonzero(self.shown[first:last]))
        height, width = self.instances.sizes[index].tolist()
        return objects, BoundingBoxes(self.corners[objects], format="XYXY", canvas_size=(height, width))

    def whole(self, index: int) -> AnnotatedPicture:
        """A whole picture, of the size that `preprocess` gives it, as it is evaluated."""
        height, width = self.instances.sizes[index].tolist()
        return self.view(index, self.pixels(index), None, self.preprocess.resized(height, width))

    def view(
        self, index: int, pixels: Tensor, window: Window | None, size: Sequence[int], min_visible: float = 0.0
    ) -> AnnotatedPicture:
        """A part of a picture, resized.

        Args:
            pixels: the picture as it is stored.
            window: in these pixels; None is the whole picture.
            size: (height, width) of what is shown.
            min_visible: objects are left out of whose box a smaller share is within the window.
        """
        objects, boxes = self.boxes(index)
        stored = [*pixels.shape[1:]]
        scale = size[0] * size[1] / (stored[0] * stored[1] if window is None else window.height * window.width)
        scale *= stored[0] * stored[1] / (boxes.canvas_size[0] * boxes.canvas_size[1])  # of areas
        boxes = functional.resize(boxes, stored)
        shares = torch.ones(len(boxes))
        if window is not None:
            pixels, cropped = functional.crop(pixels, *window), functional.crop(boxes, *window)
            shares = box_areas(cropped) / box_areas(boxes)
            kept = (shares > 0) & (shares >= min_visible)
            objects, shares = objects[kept], shares[kept]
            boxes = BoundingBoxes(cropped[kept], format="XYXY", canvas_size=cropped.canvas_size)
        areas = torch.from_numpy(self.instances.areas[objects.numpy()]).float() * shares * scale
        masks = self.masks(index, objects, stored, window, size)
        boxes = functional.clamp_bounding_boxes(functional.resize(boxes, [*size]))  # of what rounding adds
        shown = AnnotatedPicture(self.preprocess.resize(pixels, size), boxes, objects, areas, masks)
        return shown if masks is None else shown.keep(masks.flatten(1).any(1).bool())

    def masks(
        self, index: int, objects: Tensor, stored: Sequence[int], window: Window | None, size: Sequence[int]
    ) -> Tensor | None:
        """The masks of some objects in the same view, (n, height, width)."""
        if self.instances.masks is None:
            return None
        encoded = [self.instances.masks[place] for place in objects.tolist()]
        masks = resize_masks(decoded(encoded, *self.instances.sizes[index].tolist()), stored)
        return resize_masks(masks if window is None else functional.crop(masks, *window), size)


def resize_masks(masks: Tensor, size: Sequence[int]) -> Tensor:
    """Masks (n, h, w) at another (height, width), by the nearest pixel."""
    return functional.resize(masks, [*size], interpolation=InterpolationMode.NEAREST_EXACT)


def box_areas(boxes: Tensor) -> Tensor:
    """Boxes (..., 4), left, top, right, bottom, to their areas (...)."""
    return (boxes[..., 2] - boxes[..., 0]).clamp(min=0) * (boxes[..., 3] - boxes[..., 1]).clamp(min=0)


def rewrap(picture: AnnotatedPicture, boxes: Tensor) -> BoundingBoxes:
    """Boxes (n, 4) of a picture, as torchvision's functions need them."""
    height, width = picture.pixels.shape[1:]
    return BoundingBoxes(boxes, format="XYXY", canvas_size=(height, width))
