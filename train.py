"""Trains and tests a model: `python train.py model=vit_local dataset=shapes strategy=cpu`.

Every part is a choice in conf/; `python train.py --help` lists them, and any value can be overridden, as in
`trainer.max_epochs=20 task.learning_rate=5e-4`. `checkpoint=outputs/.../last.ckpt` continues a run exactly, in its own
folder; `checkpoint=SOURCE` fine-tunes a published model; `train=false checkpoint=...` only tests.
"""

from __future__ import annotations

import json
import logging
import warnings
from pathlib import Path

import hydra
import lightning
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from hydra.utils import instantiate
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.table import Table

from visattn.attention.ring import without_other_processes
from visattn.checkpoints import read_checkpoint
from visattn.files import atomic_path


def run_folder(train: bool, checkpoint: str | None, new_folder: str) -> str:
    """Where a run writes: a resumed one where it left off, any other in a new folder."""
    return str(Path(str(checkpoint)).parent) if resumes(train, checkpoint) else new_folder


def resumes(train: bool, checkpoint: str | None) -> bool:
    return train and checkpoint is not None and checkpoint.endswith(".ckpt")


OmegaConf.register_new_resolver("run_folder", run_folder, replace=True)


@hydra.main(version_base="1.3", config_path="conf", config_name="config")
def main(config: DictConfig) -> None:
    check_checkpoint(config.train, config.checkpoint)
    quieten_lightning()
    folder = Path(HydraConfig.get().runtime.output_dir)
    resume_from = config.checkpoint if resumes(config.train, config.checkpoint) else None
    pretrained = source_of_model(config.train, config.checkpoint)

    lightning.seed_everything(config.seed, workers=True, verbose=False)
    data = instantiate(config.dataset)
    data.prepare_data()
    data.setup()
    backbone = None if pretrained else instantiate(config.model, image_size=data.image_size)
    task = instantiate(config.task, data=data, backbone=backbone, pretrained=pretrained)
    trainer = lightning.Trainer(
        **instantiate(config.strategy),
        **instantiate(config.trainer),
        callbacks=[callback for callback in instantiate(config.callbacks).values() if callback],
        logger=instantiate(config.logger),
        default_root_dir=folder,
    )
    refuse_sweep_over_processes(trainer)

    metrics: dict[str, float] = {}
    if config.train:
        trainer.fit(task, datamodule=data, ckpt_path=resume_from, weights_only=True)
        metrics |= numbers(trainer)
        load_best(trainer, task)
    trainer.test(task, datamodule=data, verbose=False)
    metrics |= numbers(trainer)
    if trainer.is_global_zero:
        with without_other_processes():
            task.save_results(folder, data)
        report(metrics, folder)


def check_checkpoint(train: bool, checkpoint: str | None) -> None:
    """Refuses, before anything is built, a run that cannot start as asked.

    Raises:
        ValueError: a test without a checkpoint.
        FileNotFoundError: there is no such checkpoint to resume from; a silent fresh start would waste a day.
    """
    if not train and checkpoint is None:
        raise ValueError("train=false only tests, and needs checkpoint=... to say what")
    if resumes(train, checkpoint) and not Path(str(checkpoint)).is_file():
        raise FileNotFoundError(f"checkpoint={checkpoint}: there is no such file to resume from")


def source_of_model(train: bool, checkpoint: str | None) -> str | None:
    """Where the model comes from; None is conf/model.

    A run that began with a pretrained model is resumed with the model of its checkpoint, which no model= describes.
    """
    if checkpoint is None or not resumes(train, checkpoint):
        return checkpoint
    return checkpoint if read_checkpoint(checkpoint).get("visattn_pretrained") else None


def refuse_sweep_over_processes(trainer: lightning.Trainer) -> None:
    """Refuses `-m` with several processes per run: each rank would start the whole sweep again.

    Raises:
        ValueError: a sweep in this process, over runs of more than one process.
    """
    hydra_config = HydraConfig.get()
    in_this_process = "BasicLauncher" in hydra_config.launcher._target_
    if hydra_config.mode == RunMode.MULTIRUN and in_this_process and trainer.world_size > 1:
        raise ValueError(
            f"-m cannot sweep over runs of {trainer.world_size} processes, since every process would start the sweep "
            "anew: use strategy=cpu or strategy=gpu, or hydra/launcher=submitit_slurm, or one command per run"
        )


def quieten_lightning() -> None:
    """Silences advice that doesn't apply here and leaves every other message."""
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(
        lambda record: "Tip" not in record.getMessage()
    )
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")  # batches come from memory
    warnings.filterwarnings("ignore", message=".*in eval mode at the start of training.*")  # what is frozen
    warnings.filterwarnings("ignore", message=".*Checkpoint directory .* exists and is not empty.*")  # a resumed run


def numbers(trainer: lightning.Trainer) -> dict[str, float]:
    """The metrics of the last stage, name to number, without the learning rates, which the log has step by step."""
    return {name: float(value) for name, value in trainer.callback_metrics.items() if not name.startswith("lr-")}


def load_best(trainer: lightning.Trainer, task: lightning.LightningModule) -> None:
    """Gives the task the weights of the best epoch, if this run kept them."""
    best = getattr(trainer.checkpoint_callback, "best_model_path", "")
    if best:
        task.load_state_dict(read_checkpoint(best)["state_dict"])


@rank_zero_only
def report(metrics: dict[str, float], folder: Path) -> None:
    """Writes metrics.json, shows the results as a table, and ends with the folder that holds everything."""
    with atomic_path(folder / "metrics.json") as temporary:
        temporary.write_text(json.dumps(metrics, indent=2) + "\n")
    table = Table("metric", "value", title="Results")
    for name, value in sorted(metrics.items()):
        percent = f"  ({value:.2%})" if "accuracy" in name else ""
        table.add_row(name, f"{value:.4f}{percent}")
    console = Console()
    console.print(table)
    print(folder.resolve())


if __name__ == "__main__":
    main()
