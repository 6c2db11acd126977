"""Object detection: a backbone and a head that finds objects in its maps; `detect` takes pictures."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from visattn.backbones import Backbone, Features
from visattn.data.detection_preprocess import DetectionPreprocess
from visattn.data.image_batch import ImageBatch, pad_images
from visattn.data.images import open_image
from visattn.data.preprocess import Picture
from visattn.heads.detections import DetectionOutput, Detections


class ObjectDetector(nn.Module):
    """Images (B, 3, H, W) to what the head predicts of them; `detect` gives the objects in pictures of any size.

    The backbone sees the padding of a batch as pixels of zeros; the head leaves it out.

    Args:
        backbone: gives the maps.
        head: made for the maps' channels and strides, such as `DeformableDetrHead`.
        classes: a name for each label.

    Attributes:
        num_classes: of the head.
        preprocess: turns a picture into what `forward` expects, or None if unknown.
        category_ids: the number of each label in the COCO files that it was trained on, or None if unknown.

    Raises:
        ValueError: there is not one name for each class of the head.
    """

    def __init__(self, backbone: Backbone, head: nn.Module, classes: Sequence[str] | None = None) -> None:
        super().__init__()
        self.num_classes: int = head.num_classes  # type: ignore[assignment]
        if classes is not None and len(classes) != self.num_classes:
            raise ValueError(f"{len(classes)} names of classes don't fit a head of {self.num_classes} classes")
        self.backbone = backbone
        self.head: Any = head
        self.classes = None if classes is None else tuple(classes)
        self.preprocess: DetectionPreprocess | None = None
        self.category_ids: tuple[int, ...] | None = None

    def features(self, images: Tensor) -> Features:
        """Images (B, 3, H, W) to what the backbone sees in them."""
        if not torch.is_grad_enabled():
            # Convolutions of CPUs and of tensor cores read pixel by pixel, and hand that order on from layer to layer.
            images = images.contiguous(memory_format=torch.channels_last)
        return self.backbone(images)

    def forward(self, images: Tensor, padding: Tensor | None = None) -> DetectionOutput | list[Detections]:
        """Images (B, 3, H, W) to the head's raw predictions: those of a set, or the detections of dense heads.

        Args:
            padding: (B, H, W), bool, True where there is no image, at the right and at the bottom; None: nowhere.
        """
        if padding is None:
            padding = images.new_zeros(images.shape[0], *images.shape[2:], dtype=torch.bool)
        return self.head(self.features(images).maps, padding, sizes_within(padding))

    def loss(self, batch: ImageBatch, targets: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """The parts of the loss, scalars whose sum is trained.

        Args:
            targets: of each image "boxes" (n, 4), left, top, right and bottom in pixels of the batch's image, "labels"
                (n,) and what else the head reads, such as "masks" (n, height, width).
        """
        return self.head.loss(self.features(batch.images).maps, batch.padding, batch.sizes, targets)

    def predict(self, batch: ImageBatch, max_detections: int = 100) -> list[Detections]:
        """The surest objects of each image, however unsure, in pixels of the batch's images."""
        maps = self.features(batch.images).maps
        return self.head.predict(maps, batch.padding, batch.sizes, max_detections=max_detections)

    @torch.inference_mode()
    def detect(
        self, images: Tensor | Picture | Sequence[Picture], threshold: float = 0.5, *, max_detections: int = 100
    ) -> list[Detections]:
        """The objects in pictures, without gradients. Dropout is off in eval mode only.

        Args:
            images: paths, PIL images, or one of them; or a preprocessed tensor (B, 3, H, W).
            threshold: detections with greater scores are given.
            max_detections: at most as many for a picture.

        Returns:
            For each picture its detections in its own pixels, with masks of its own size if the head gives masks; for a
            tensor in the tensor's pixels.

        Raises:
            FileNotFoundError, ImageFileError: a file is missing, or no picture that can be read.
            ValueError: pictures are given and the model doesn't know how they are prepared, there are none, or a tensor
                is no batch.
        """
        batch, sizes = self.prepare(images)
        found = self.predict(batch, max_detections)
        return [
            one.above(threshold).resized(before.tolist(), size)
            for one, before, size in zip(found, batch.sizes, sizes, strict=True)
        ]

    def prepare(self, images: Tensor | Picture | Sequence[Picture]) -> tuple[ImageBatch, list[tuple[int, int]]]:
        """Pictures, as `detect` takes them, as a batch on the model's device, and (height, width) of each picture."""
        parameter = next(self.parameters())
        if isinstance(images, Tensor):
            if images.ndim != 4:
                raise ValueError(f"images {tuple(images.shape)} are no batch (B, 3, H, W); add an axis in front")
            padding = torch.zeros(images.shape[0], *images.shape[2:], dtype=torch.bool, device=parameter.device)
            sizes = [(images.shape[2], images.shape[3])] * images.shape[0]
            return ImageBatch(images.to(parameter), padding, sizes_within(padding)), sizes
        if self.preprocess is None:
            raise ValueError(
                "this model doesn't know how pictures are prepared: set model.preprocess, or give a tensor"
            )
        given = [images] if isinstance(images, str | os.PathLike | Image.Image) else images
        pictures = [picture if isinstance(picture, Image.Image) else open_image(picture) for picture in given]
        if not pictures:
            raise ValueError("there are no images")
        batch = pad_images([self.preprocess(picture) for picture in pictures], self.preprocess.divisor)
        batch = ImageBatch(
            batch.images.to(parameter), batch.padding.to(parameter.device), batch.sizes.to(parameter.device)
        )
        return batch, [(picture.height, picture.width) for picture in pictures]


def sizes_within(padding: Tensor) -> Tensor:
    """(height, width) of each image, (B, 2), long, within its padding (B, H, W) at the right and at the bottom."""
    present = ~padding
    return torch.stack([present.any(2).sum(1), present.any(1).sum(1)], dim=1)
