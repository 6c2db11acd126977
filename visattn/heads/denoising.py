"""Denoising queries: in training the decoder also gets the true objects, disturbed, and shall restore them."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from visattn.heads.matching import SetTargets


class DenoisingQueries(NamedTuple):
    """Disturbed objects in groups; each group holds the N of an image twice: to be restored, and to be refused.

    Attributes:
        labels: (B, groups * 2 * N), long, some of them wrong.
        boxes: (B, groups * 2 * N, 4), center x, center y, width and height as parts of the image's width and height.
        assignment: (B, groups * 2 * N), long, the object that a query shall restore, -1 for none.
        group: (groups * 2 * N,), long, which group a query belongs to.
        groups: their number.
    """

    labels: Tensor
    boxes: Tensor
    assignment: Tensor
    group: Tensor
    groups: int

    def mask(self, queries: int) -> Tensor:
        """Who may see whom, if as many other queries stand behind these: (D + queries, D + queries), bool.

        No query sees a group other than its own, so that none can read the truth off the denoising queries.
        """
        others = self.group.new_full((queries,), -1)
        group = torch.cat([self.group, others])  # (D + queries,)
        return (group[:, None] == group) | (group < 0)


@torch.no_grad()
def denoising_queries(
    targets: SetTargets, num_classes: int, *, queries: int = 100, label_noise: float = 0.5, box_noise: float = 1.0
) -> DenoisingQueries | None:
    """Disturbed copies of the objects of a batch; None if there are none.

    Args:
        targets: the objects of the batch, N for each image.
        num_classes: labels are drawn from 0 to num_classes - 1.
        queries: about how many are wanted for an image, in as many whole groups of 2 * N as fit, at least one.
        label_noise: probability that a label is drawn anew is half of it.
        box_noise: corners of boxes to be restored are moved by up to this part of half the width and height, those of
            boxes to be refused by this part to twice it.

    Source: Li et al. 2022, https://arxiv.org/abs/2203.01305 (DN-DETR), section 4; with the queries to be refused Zhang
        et al. 2022, https://arxiv.org/abs/2203.03605 (DINO), section 3.3.
    """
    most = targets.labels.shape[1]
    if not targets.present.any():
        return None
    groups = max(queries // (2 * most), 1)
    device = targets.labels.device
    labels = targets.labels.repeat(1, 2 * groups)  # (B, D), D = groups * 2 * N
    wrong = torch.rand(labels.shape, device=device) < label_noise / 2
    labels = torch.where(wrong, torch.randint_like(labels, num_classes), labels)
    refused = torch.arange(2 * groups, device=device).repeat_interleave(most) % 2 == 1  # (D,)
    boxes = targets.boxes.repeat(1, 2 * groups, 1)  # (B, D, 4)
    half = boxes[..., 2:] / 2
    corners = torch.cat([boxes[..., :2] - half, boxes[..., :2] + half], dim=2)
    distance = torch.rand_like(corners) + refused[:, None]  # refused ones move farther
    direction = torch.where(torch.rand_like(corners) < 0.5, -1.0, 1.0)
    corners = (corners + direction * distance * box_noise * torch.cat([half, half], dim=2)).clamp(0, 1)
    start, end = torch.minimum(corners[..., :2], corners[..., 2:]), torch.maximum(corners[..., :2], corners[..., 2:])
    boxes = torch.cat([(start + end) / 2, end - start], dim=2)
    kept = targets.present.repeat(1, 2 * groups) & ~refused
    assignment = torch.where(kept, torch.arange(most, device=device).repeat(2 * groups), -1)
    group = torch.arange(groups, device=device).repeat_interleave(2 * most)
    return DenoisingQueries(labels, boxes, assignment, group, groups)
