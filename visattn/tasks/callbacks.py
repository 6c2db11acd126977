"""What makes a run resumable bit for bit, its weights averaged and its files whole."""

from __future__ import annotations

from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.callbacks import Callback, WeightAveraging

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
