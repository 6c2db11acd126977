"""Classification: a backbone and a linear head on its pooled features."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, nn
from torch.nn import functional

from visattn.backbones import Backbone, Features

if TYPE_CHECKING:
    from visattn.data import Preprocess


class ImageClassifier(nn.Module):
    """Images (B, channels, H, W) to logits (B, num_classes).

    A backbone with a distillation token gets a second head that reads this token; the logits are the mean of both.

    Args:
        backbone: gives the features.
        num_classes: number of logits; None leaves the head out: only `features` works then.
        dropout: probability on the pooled features, in training.

    Attributes:
        classes: names of the classes, or None if unknown.
        preprocess: turns a picture into what `forward` expects, or None if unknown.

    Raises:
        ValueError: num_classes is below 1.

    Source: DeiT (Touvron et al. 2021, https://arxiv.org/abs/2012.12877), section 4, for the distillation head.
    """

    def __init__(self, backbone: Backbone, num_classes: int | None, *, dropout: float = 0.0) -> None:
        super().__init__()
        if num_classes is not None and num_classes < 1:
            raise ValueError(f"num_classes {num_classes} is too few; for features alone use the backbone")
        self.backbone = backbone
        self.num_classes = num_classes
        self.dropout = dropout
        self.classes: tuple[str, ...] | None = None
        self.preprocess: Preprocess | None = None
        distilled = getattr(backbone, "distillation_token", None) is not None
        self.head = None if num_classes is None else nn.Linear(backbone.num_features, num_classes)
        self.distillation_head = (
            nn.Linear(backbone.num_features, num_classes) if distilled and num_classes is not None else None
        )
        for head in (self.head, self.distillation_head):
            if head is not None:
                nn.init.trunc_normal_(head.weight, std=0.02)
                nn.init.zeros_(head.bias)

    def features(self, images: Tensor) -> Features:
        """Images (B, channels, H, W) to what the backbone sees in them."""
        return self.backbone(images)

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, channels, H, W) to logits (B, num_classes).

        Raises:
            ValueError: the model has no head.
        """
        if self.head is None:
            raise ValueError("this model has no classifier: use model.features(images), or load it with num_classes=")
        features = self.features(images)
        logits = self.head(self.drop(features.pooled))
        if self.distillation_head is None:
            return logits
        return (logits + self.distillation_head(self.drop(features.tokens[:, 1]))) / 2

    def drop(self, pooled: Tensor) -> Tensor:
        return functional.dropout(pooled, self.dropout) if self.dropout and self.training else pooled
