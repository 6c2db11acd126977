"""What detection heads give: raw predictions of a set, and the objects found in an image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional
from torchvision.ops import box_convert


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

    def detections(self, sizes: Tensor, max_detections: int = 100, *, softmax: bool = False) -> list[Detections]:
        """The surest objects of each image, in its pixels.

        Args:
            sizes: (B, 2), height and width of each image.
            max_detections: at most as many for an image.
            softmax: each query gives its likeliest class other than "no object"; otherwise each class of each query is
                judged by itself, so that a query may give several.

        Source: how DETR (softmax) and Deformable DETR publish their results.
        """
        if softmax:
            scores, labels = self.logits.softmax(dim=-1)[..., :-1].max(dim=-1)  # (B, queries)
            scores, queries = scores.topk(min(max_detections, scores.shape[1]), dim=1)  # (B, detections)
            labels = labels.gather(1, queries)
        else:
            flat = self.logits.sigmoid().flatten(1)  # (B, queries * classes)
            scores, places = flat.topk(min(max_detections, flat.shape[1]), dim=1)
            classes = self.logits.shape[-1]
            queries, labels = places.div(classes, rounding_mode="floor"), places % classes
        boxes = box_convert(self.boxes, "cxcywh", "xyxy").gather(1, queries[..., None].expand(-1, -1, 4))
        boxes = boxes * sizes.flip(1).repeat(1, 2).to(boxes)[:, None]  # (B, detections, 4)
        return [Detections(*one) for one in zip(boxes, scores, labels, strict=True)]
