"""The loss of heads that predict a set: queries are matched to objects, then judged by class and box."""

from __future__ import annotations

import torch
from torch import Tensor, distributed, nn
from torch.nn import functional
from torchvision.ops import sigmoid_focal_loss

from visattn.heads.detections import DetectionOutput
from visattn.heads.matching import SetTargets, generalized_iou, match, overlap


class SetLoss(nn.Module):
    """Matches queries to objects in every layer by itself, and sums the losses of class and box of all layers.

    Each is divided by the number of objects of a batch, on average over the processes; without any it is finite.

    Args:
        classification: "focal" (each class by itself), "varifocal" (the same, where a matched query shall give its
            box's IoU), or "softmax" (cross-entropy with "no object" as the last class).
        class_weight, l1_weight, giou_weight: of the three parts.
        class_cost, l1_cost, giou_cost: in the matching.
        no_object_weight: with softmax, of the queries without object.
        alpha, gamma: of the focal loss, also as cost; of the varifocal loss for what isn't there.

    Raises:
        ValueError: classification is unknown.

    Source: Carion et al. 2020, https://arxiv.org/abs/2005.12872, section 3.1; focal loss by Lin et al. 2017
        (https://arxiv.org/abs/1708.02002), varifocal by Zhang et al. 2021 (https://arxiv.org/abs/2008.13367, equation
        2) as RT-DETR has it (https://arxiv.org/abs/2304.08069).
    """

    def __init__(
        self,
        *,
        classification: str = "focal",
        class_weight: float = 2.0,
        l1_weight: float = 5.0,
        giou_weight: float = 2.0,
        class_cost: float = 2.0,
        l1_cost: float = 5.0,
        giou_cost: float = 2.0,
        no_object_weight: float = 0.1,
        alpha: float = 0.25,
        gamma: float = 2.0,
    ) -> None:
        super().__init__()
        if classification not in ("focal", "varifocal", "softmax"):
            raise ValueError(f"classification {classification!r} is unknown; choose focal, varifocal or softmax")
        self.classification = classification
        self.weights = (class_weight, l1_weight, giou_weight)
        self.costs = {"class_cost": class_cost, "l1_cost": l1_cost, "giou_cost": giou_cost}
        self.no_object_weight, self.alpha, self.gamma = no_object_weight, alpha, gamma

    def forward(self, output: DetectionOutput, targets: SetTargets) -> dict[str, Tensor]:
        """The parts, weighted: "class", "l1" and "giou" of the last layer, and "auxiliary" of all earlier ones.

        The last is left out where the output has no earlier layers.
        """
        layers = [*output.auxiliary, (output.logits, output.boxes)]
        logits = torch.stack([layer[0] for layer in layers])  # (layers, B, Q, classes)
        boxes = torch.stack([layer[1] for layer in layers])  # (layers, B, Q, 4)
        softmax = self.classification == "softmax"
        # The focal cost as published, whatever loss: alpha of a varifocal loss means something else.
        focal = {"alpha": self.alpha, "gamma": self.gamma} if self.classification == "focal" else {}
        assignment = match(logits, boxes, targets, softmax=softmax, **self.costs, **focal)
        parts = self.assigned(logits, boxes, assignment, targets, objects_per_process(targets))
        losses = dict(zip(("class", "l1", "giou"), parts[:, -1].unbind(), strict=True))
        return losses | ({"auxiliary": parts[:, :-1].sum()} if output.auxiliary else {})

    def assigned(
        self, logits: Tensor, boxes: Tensor, assignment: Tensor, targets: SetTargets, number: Tensor
    ) -> Tensor:
        """The losses of class, L1 and generalised IoU, weighted, of each layer, where queries have their objects.

        Args:
            logits: (layers, B, Q, classes).
            boxes: (layers, B, Q, 4).
            assignment: (layers, B, Q), long, -1 for no object.
            number: (), what the sums are divided by.

        Returns:
            (3, layers).
        """
        logits, boxes = logits.float(), boxes.float()
        layer, image, query = torch.nonzero(assignment >= 0, as_tuple=True)  # (matches,) each
        objects = assignment[layer, image, query]
        found, truths = boxes[layer, image, query], targets.boxes[image, objects]  # (matches, 4)
        labels = targets.labels[image, objects]
        differences = (found - truths).abs().sum(dim=-1)
        distances = 1 - generalized_iou(found, truths)
        per_layer = boxes.new_zeros(2, logits.shape[0]).index_add(1, layer, torch.stack([differences, distances]))
        if self.classification == "softmax":
            classes = assignment.new_full(assignment.shape, logits.shape[-1] - 1)
            classes[layer, image, query] = labels
            class_loss = self.cross_entropy(logits, classes)
        else:
            wanted = torch.zeros_like(logits)
            quality = overlap(found, truths)[0].detach() if self.classification == "varifocal" else 1.0
            wanted[layer, image, query, labels] = quality
            class_loss = self.sigmoid_loss(logits, wanted).sum(dim=(1, 2, 3)) / number
        losses = torch.cat([class_loss[None], per_layer / number])
        return losses * losses.new_tensor(self.weights)[:, None]

    def cross_entropy(self, logits: Tensor, classes: Tensor) -> Tensor:
        """The mean over queries, those without object weighted: (layers,)."""
        weights = torch.where(classes == logits.shape[-1] - 1, self.no_object_weight, 1.0)  # (layers, B, Q)
        losses = functional.cross_entropy(logits.movedim(-1, 1), classes, reduction="none")
        total = weights.sum(dim=(1, 2)).clamp(min=torch.finfo(losses.dtype).tiny)
        return (losses * weights).sum(dim=(1, 2)) / total

    def sigmoid_loss(self, logits: Tensor, wanted: Tensor) -> Tensor:
        """Of each query and class, (layers, B, Q, classes)."""
        if self.classification == "focal":
            return sigmoid_focal_loss(logits, wanted, self.alpha, self.gamma)
        weights = torch.where(wanted > 0, wanted, self.alpha * logits.detach().sigmoid() ** self.gamma)
        return functional.binary_cross_entropy_with_logits(logits, wanted, weights, reduction="none")


def objects_per_process(targets: SetTargets) -> Tensor:
    """The number of objects in a batch, on average over the processes that train together, at least 1."""
    number = targets.present.sum().to(targets.boxes.dtype)
    if distributed.is_available() and distributed.is_initialized():
        distributed.all_reduce(number)
        number = number / distributed.get_world_size()
    return number.clamp(min=1)
