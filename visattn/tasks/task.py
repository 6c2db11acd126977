"""What the tasks share: a model around a backbone, how it is trained, and checkpoints that know whose they are."""

from __future__ import annotations

import hashlib
import reprlib
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import lightning
import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor

from visattn.backbones import Backbone
from visattn.checkpoints import load_pretrained, model_config
from visattn.checkpoints.native import Model
from visattn.heads import ImageClassifier
from visattn.tasks.optimization import clip_gradients, parameter_groups, scheduled_optimizer

Answer = TypeVar("Answer")


class BackboneTask(lightning.LightningModule):
    """Trains `model`, which a task makes in its constructor, and then calls `prepare`.

    Args:
        backbone, pretrained: what the model starts from, of which one is given.
        learning_rate: the peak of the schedule.
        weight_decay, layer_decay, backbone_learning_rate: see `parameter_groups`; a rate of 0 freezes the backbone: no
            gradients, no dropout, and batch norm keeps its statistics.
        betas, warmup_epochs, final_learning_rate, optimizer: see `scheduled_optimizer`.
        channels_last: keep images and kernels in channels-last memory.
        seed: of the random numbers in training, see `StepSeed`.

    Raises:
        ValueError: both or neither of `backbone` and `pretrained` are given.
    """

    model: Model

    def __init__(
        self,
        backbone: Backbone | None,
        pretrained: str | None,
        *,
        learning_rate: float,
        weight_decay: float,
        layer_decay: float,
        betas: Sequence[float],
        warmup_epochs: float,
        final_learning_rate: float,
        channels_last: bool,
        seed: int,
        backbone_learning_rate: float | None = None,
        optimizer: str = "adamw",
    ) -> None:
        super().__init__()
        if (backbone is None) == (pretrained is None):
            raise ValueError("give one of backbone (a new model) and pretrained (the source of a whole one)")
        self.is_pretrained = pretrained is not None
        self.is_frozen = backbone_learning_rate == 0
        self.optimizer = optimizer
        self.learning_rate, self.backbone_learning_rate = learning_rate, backbone_learning_rate
        self.weight_decay, self.layer_decay, self.betas = weight_decay, layer_decay, betas
        self.warmup_epochs, self.final_learning_rate = warmup_epochs, final_learning_rate
        self.channels_last, self.seed = channels_last, seed

    def prepare(self) -> None:
        """Freezes the backbone and lays out the weights, where the options say so."""
        if self.is_frozen:
            self.model.backbone.requires_grad_(False)
        if self.channels_last:
            self.model.to(memory_format=torch.channels_last)

    def train(self, mode: bool = True) -> BackboneTask:
        """As ever, but a frozen backbone stays as it is tested."""
        super().train(mode)
        if self.is_frozen:
            self.model.backbone.eval()
        return self

    def laid_out(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) in the memory format of the weights."""
        return images.contiguous(memory_format=torch.channels_last) if self.channels_last else images

    def configure_optimizers(self) -> OptimizerLRScheduler:
        groups = parameter_groups(
            self.model,
            self.model.backbone,
            self.learning_rate,
            self.weight_decay,
            self.layer_decay,
            self.backbone_learning_rate,
        )
        return scheduled_optimizer(
            self, groups, self.betas, self.warmup_epochs, self.final_learning_rate, self.optimizer
        )

    def configure_gradient_clipping(self, optimizer, gradient_clip_val=None, gradient_clip_algorithm=None) -> None:
        clip_gradients(self, optimizer, gradient_clip_val, gradient_clip_algorithm)

    def on_save_checkpoint(self, checkpoint: dict) -> None:
        # With this, visattn.load_pretrained reads a run's checkpoint like any published model.
        checkpoint["visattn_model"] = model_config(self.model)
        checkpoint["visattn_pretrained"] = self.is_pretrained  # train.py resumes such a run with the model of this file

    def on_load_checkpoint(self, checkpoint: dict) -> None:
        refuse_other_model(checkpoint.get("visattn_model"), model_config(self.model))


def classifier_backbone(source: str, image_size: int) -> Backbone:
    """The backbone of a pretrained classifier, for a new model of another kind, with the preprocessing that it expects.

    Raises:
        CheckpointError: the source is no classifier.
    """
    model = load_pretrained(source, image_size=image_size, expected=ImageClassifier)
    model.backbone.preprocess = model.preprocess
    return model.backbone


def gathered(answers: dict[int, Answer]) -> dict[int, Answer]:
    """What all processes of a run have found, by the place or number of what it is about."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return answers
    parts: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(parts, answers)
    return {place: answer for part in parts for place, answer in part.items()}


def refuse_other_model(saved: dict[str, Any] | None, ours: dict[str, Any]) -> None:
    """Refuses to continue a run with another model than it has.

    Args:
        saved, ours: `model_config` of the checkpoint's model and of the one that shall take its weights.

    Raises:
        ValueError: an architecture or its arguments differ; the message names those that do.
    """
    if saved is None:
        return
    before, now = architecture(saved), architecture(ours)
    differing = [name for name in sorted(before.keys() | now.keys()) if before.get(name) != now.get(name)]
    if differing:
        short = reprlib.repr  # of a long list a few entries
        shown = ", ".join(
            f"{name} ({short(before.get(name))} instead of {short(now.get(name))})" for name in differing[:8]
        )
        raise ValueError(
            f"the checkpoint is of another model than the configuration, differing in {shown}; resume with the same "
            "model= and task= options"
        )


def architecture(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """What decides about the meaning of the weights in a `model_config`: nested names joined by dots, and values."""
    flat: dict[str, Any] = {}
    for name, value in config.items():
        if name == "tokenizer":
            flat[name] = hashlib.sha256(str(value).encode()).hexdigest()[:8]
        elif isinstance(value, dict) and name != "preprocess":
            flat |= architecture(value, f"{prefix}{name}.")
        elif name not in ("classes", "preprocess"):
            flat[prefix + name] = value
    return {name.removeprefix("arguments."): value for name, value in flat.items()}


def refuse_other_backbone(weights: Mapping[str, Tensor], backbone: Backbone) -> None:
    """Refuses to continue a run with another frozen backbone than it has, of which features may be kept.

    Raises:
        ValueError: its weights are not those of the checkpoint.
    """
    for name, tensor in backbone.state_dict().items():
        if not torch.equal(weights[f"model.backbone.{name}"].cpu(), tensor.cpu()):
            raise ValueError(
                f"the frozen backbone has other weights than in the checkpoint, the first is {name}: resume with the "
                "same model= and seed="
            )
