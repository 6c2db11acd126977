"""A small backbone, and a trainer that only trains."""

from __future__ import annotations

from pathlib import Path

import lightning

from visattn.backbones import VisionTransformer, vit_local_tiny
from visattn.tasks import StepSeed


def small_backbone(**overrides) -> VisionTransformer:
    return vit_local_tiny(
        16, 4, **{"dim": 16, "depth": 2, "num_heads": 2, "attention": ("local", "global")} | overrides
    )


def trainer(folder: Path, epochs: int = 1, **options) -> lightning.Trainer:
    return lightning.Trainer(
        max_epochs=epochs, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=folder, use_distributed_sampler=False, num_sanity_val_steps=0,
        callbacks=[StepSeed()], **options,
    )  # fmt: skip
