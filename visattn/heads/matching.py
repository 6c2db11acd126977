"""Set prediction: which query answers for which object, found by the Hungarian algorithm."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn import functional
from torchvision.ops import box_convert

_smallest_area = 1e-12  # divided by in place of 0; a pixel of an image of 65,536 pixels a side has 2e-10


class SetTargets(NamedTuple):
    """The objects of a batch of images, each image filled up to N objects.

    Attributes:
        labels: (B, N), long, 0 behind the last object of an image.
        boxes: (B, N, 4), center x, center y, width and height as parts of the image's width and height.
        present: (B, N), bool, True for objects, which come first.
    """

    labels: Tensor
    boxes: Tensor
    present: Tensor


def set_targets(targets: Sequence[Mapping[str, Any]], sizes: Tensor) -> SetTargets:
    """Torchvision's targets, padded and as parts of the images.

    Args:
        targets: of each image "boxes" (n, 4), left, top, right and bottom in pixels, and "labels" (n,).
        sizes: (B, 2), height and width of each image in pixels.
    """
    device = sizes.device
    counts = torch.tensor([len(target["labels"]) for target in targets], dtype=torch.long)
    most = int(counts.max()) if len(counts) else 0
    labels = torch.zeros(len(targets), most, dtype=torch.long, device=device)
    corners = torch.zeros(len(targets), most, 4, device=device)
    for index, (target, count) in enumerate(zip(targets, counts.tolist(), strict=True)):
        labels[index, :count] = target["labels"].to(device)
        corners[index, :count] = target["boxes"].reshape(count, 4).to(corners)
    scale = sizes.flip(1).repeat(1, 2).to(corners)[:, None]  # (B, 1, 4), width, height, width, height
    boxes = box_convert(corners / scale, "xyxy", "cxcywh")
    return SetTargets(labels, boxes, torch.arange(most, device=device) < counts.to(device)[:, None])


@torch.no_grad()
def match(
    logits: Tensor,
    boxes: Tensor,
    targets: SetTargets,
    *,
    softmax: bool = False,
    class_cost: float = 2.0,
    l1_cost: float = 5.0,
    giou_cost: float = 2.0,
    alpha: float = 0.25,
    gamma: float = 2.0,
) -> Tensor:
    """One query for each object, so that the sum of costs is least.

    Args:
        logits: (layers, B, Q, classes).
        boxes: (layers, B, Q, 4), center x, center y, width and height as parts of the image's width and height.
        targets: the objects of the B images. Where an image has more than Q, those that fit worst get no query.
        softmax: the cost of a class is minus its probability among all classes; otherwise each class is judged by
            itself, and its cost is what the focal loss would gain by calling it present.
        class_cost, l1_cost, giou_cost: weights of the class, of the sum of absolute differences between the two boxes,
            and of minus their generalised IoU.
        alpha, gamma: of the focal loss.

    Returns:
        (layers, B, Q), long: the object of each query, -1 for none.

    Source: Carion et al. 2020, https://arxiv.org/abs/2005.12872, section 3.1 and A.2; with the focal loss Zhu et al.
        2021, https://arxiv.org/abs/2010.04159, A.4.
    """
    layers, batch, queries, _ = logits.shape
    assignment = torch.full((layers, batch, queries), -1, dtype=torch.long)
    if not targets.present.any():
        return assignment.to(logits.device)
    logits, boxes = logits.float(), boxes.float()
    labels = targets.labels[None, :, None].expand(layers, -1, queries, -1)  # (layers, B, Q, N)
    if softmax:
        cost = -class_cost * logits.softmax(dim=-1).gather(3, labels)
    else:
        cost = class_cost * focal_cost(logits.gather(3, labels), alpha, gamma)
    truths = targets.boxes[:, None]  # (B, 1, N, 4)
    cost += l1_cost * (boxes[:, :, :, None] - truths).abs().sum(dim=-1)  # (layers, B, Q, N)
    cost -= giou_cost * generalized_iou(boxes[:, :, :, None], truths)
    # A diverged run has numbers that no assignment can be found for; its loss shall say so.
    table = cost.nan_to_num(nan=1e6, posinf=1e6, neginf=-1e6).cpu().numpy()
    for image, count in enumerate(targets.present.sum(dim=1).tolist()):
        for layer in range(layers):
            rows, columns = linear_sum_assignment(table[layer, image, :, :count])
            assignment[layer, image, rows] = torch.from_numpy(columns)
    return assignment.to(logits.device)


def focal_cost(logits: Tensor, alpha: float, gamma: float) -> Tensor:
    """The focal loss of a class if present minus that if absent."""
    probability = logits.sigmoid()
    present = -alpha * (1 - probability) ** gamma * functional.logsigmoid(logits)
    absent = -(1 - alpha) * probability**gamma * functional.logsigmoid(-logits)
    return present - absent


def generalized_iou(boxes: Tensor, others: Tensor) -> Tensor:
    """The generalised IoU of boxes (..., 4) and others (..., 4), which broadcast: (...), in [-1, 1].

    Args:
        boxes, others: center x, center y, width and height. Boxes without area have an IoU of 0 with all.

    Source: Rezatofighi et al. 2019, https://arxiv.org/abs/1902.09630, algorithm 1.
    """
    iou, union, hull = overlap(boxes, others)
    return iou - (hull - union) / hull.clamp(min=_smallest_area)


def overlap(boxes: Tensor, others: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """IoU, area of the union, and area of the smallest box around both; see `generalized_iou`."""
    start, end = boxes[..., :2] - boxes[..., 2:] / 2, boxes[..., :2] + boxes[..., 2:] / 2
    other_start, other_end = others[..., :2] - others[..., 2:] / 2, others[..., :2] + others[..., 2:] / 2
    shared_sides = (torch.minimum(end, other_end) - torch.maximum(start, other_start)).clamp(min=0)
    hull_sides = torch.maximum(end, other_end) - torch.minimum(start, other_start)
    shared, hull = shared_sides[..., 0] * shared_sides[..., 1], hull_sides[..., 0] * hull_sides[..., 1]
    union = boxes[..., 2] * boxes[..., 3] + others[..., 2] * others[..., 3] - shared
    return shared / union.clamp(min=_smallest_area), union, hull
