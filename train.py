"""Trains and tests a model: `python train.py model=vit_local dataset=shapes strategy=cpu`.

Every part is a choice in conf/: `python train.py --help` lists them, and any value can be overridden as
`trainer.max_epochs=20 task.learning_rate=5e-4`. `checkpoint=outputs/.../last.ckpt` resumes a run exactly,
`checkpoint=SOURCE` fine-tunes a published model, and `train=false checkpoint=...` only tests.
"""

from __future__ import annotations

import json
import os
import warnings
from pathlib import Path

import hydra
import lightning
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from hydra.utils import get_class, instantiate, to_absolute_path
from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table

from visattn.checkpoints import read_checkpoint
from visattn.files import atomic_path


@hydra.main(version_base="1.3", config_path="conf", config_name="config")
def main(config: DictConfig) -> None:
    refuse_sweep_over_processes(config)
    resume, pretrained = find_checkpoint(config)
    folder = Path(HydraConfig.get().runtime.output_dir)

    lightning.seed_everything(config.seed, workers=True)
    data = instantiate(config.dataset)
    data.prepare_data()
    data.setup()
    backbone = None if pretrained else instantiate(config.model, image_size=data.image_size)
    task = instantiate(config.task, data=data, backbone=backbone, pretrained=pretrained)
    trainer = lightning.Trainer(
        **instantiate(config.strategy),
        **config.trainer,
        callbacks=[callback for callback in instantiate(config.callbacks).values() if callback],
        logger=instantiate(config.logger),
        default_root_dir=folder,
    )
    if config.train:
        trainer.fit(task, datamodule=data, ckpt_path=resume, weights_only=True)
    ...


if __name__ == "__main__":
    main()
