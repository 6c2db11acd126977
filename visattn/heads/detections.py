"""What detection heads give: raw predictions of a set, and the objects found in an image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional


class Detections(NamedTuple):
    """The objects found in one image, the surest first.

    Attributes:
        boxes: (n, 4), left, top, right and bottom in pixels.
        scores: (n,), how sure each is, in [0, 1], falling.
        labels: (n,), long: the class of each, from 0.
        masks: (n, height, width), bool, True where the object is; None if the head gives none.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    masks: Tensor | None = None

    def above(self, threshold: float) -> Detections:
        """Those whose score is greater than the threshold."""
        kept = self.scores > threshold
        masks = None if self.masks is None else self.masks[kept]
        return Detections(self.boxes[kept], self.scores[kept], self.labels[kept], masks)

    def resized(self, size: Sequence[int], new_size: Sequence[int]) -> Detections:
        """The same objects in an image of another (height, width) in pixels, with boxes cut off at its borders."""
        (height, width), (new_height, new_width) = size, new_size
        boxes = self.boxes * self.boxes.new_tensor([new_width / width, new_height / height] * 2)
        boxes = torch.minimum(boxes.clamp(min=0), boxes.new_tensor([new_width, new_height] * 2))
        masks = self.masks
        if masks is not None and tuple(masks.shape[1:]) != (new_height, new_width):
            soft = masks[:, None].float()  # (n, 1, height, width)
            soft = functional.interpolate(soft, (new_height, new_width), mode="bilinear", align_corners=False)
            masks = soft[:, 0] > 0.5
        return Detections(boxes, self.scores, self.labels, masks)


class DetectionOutput(NamedTuple):
    """What a head that predicts a set says of each image: for every query a class and a box.

    Attributes:
        logits: (B, queries, classes); heads with a softmax have one class more at the end, "no object".
        boxes: (B, queries, 4), center x, center y, width and height as parts of the image's width and height, without
            the padding of the batch.
        auxiliary: the same two of the earlier layers, in their order, in training; () in evaluation.
    """

    logits: Tensor
    boxes: Tensor
    auxiliary: tuple[tuple[Tensor, Tensor], ...] = ()
