"""Weights from files, folders and the Hugging Face hub, ours and published ones; and how ours are written."""

from visattn.checkpoints.averaging import average_pretrained
from visattn.checkpoints.native import (
    CheckpointError,
    build_model,
    model_config,
    read_checkpoint,
    read_weights,
    save_pretrained,
)
from visattn.checkpoints.pretrained import load_pretrained
from visattn.checkpoints.shipped import shipped_weights

__all__ = [
    "CheckpointError",
    "average_pretrained",
    "build_model",
    "load_pretrained",
    "model_config",
    "read_checkpoint",
    "read_weights",
    "save_pretrained",
    "shipped_weights",
]
