"""What makes a run resumable bit for bit, its weights averaged and its files whole."""

from __future__ import annotations

import hashlib
import reprlib
from collections.abc import Mapping
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.callbacks import Callback, WeightAveraging
from torch import Tensor

from visattn.backbones import Backbone
from visattn.checkpoints import read_checkpoint
from visattn.files import atomic_path
from visattn.tasks.optimization import exponential_average


class StepSeed(Callback):
    """Seeds the random numbers of each training step (dropout, drop path) from (seed, rank, step) alone.

    A resumed run then draws what the uninterrupted one would have drawn, with no random state to store.
    """

    def on_train_batch_start(self, trainer, pl_module, batch: Any, batch_idx: int) -> None:
        seed = pl_module.seed * 1_000_003 + trainer.global_rank
        step = trainer.current_epoch * 10_000_019 + batch_idx
        torch.manual_seed((seed * 6_364_136_223_846_793_005 + step * 1_442_695_040_888_963_407) % 2**63)


class ExponentialMovingAverage(WeightAveraging):
    """Keeps an exponential moving average of weights and buffers; validation, test and the saved model use it.

    Args:
        decay: how much of the average stays at each step once the warm-up of the average is over.
    """

    def __init__(self, decay: float = 0.999) -> None:
        super().__init__(multi_avg_fn=exponential_average(decay))


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint beside its destination and renames it there; reads it without executing code."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path, storage_options: Any = None) -> None:
        with atomic_path(path) as temporary:
            torch.save(checkpoint, temporary)

    def load_checkpoint(self, path, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        return read_checkpoint(path)


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
