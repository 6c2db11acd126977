"""train.py on objects: what a run leaves, exact resumption, several processes, the official files."""

from __future__ import annotations

import json
import signal
import subprocess
from pathlib import Path

import pytest
import torch
from PIL import Image

import visattn
from tests.train_runs import kill, metrics, often, root, run
from visattn.checkpoints import read_checkpoint
from visattn.evaluation.detection import evaluate_detection_files
from visattn.heads import ObjectDetector

coco = root.parent / "shared" / "data" / "coco_mini"
scenes = (
    "dataset=shapes_detection",
    "dataset.image_size=32",
    "dataset.train_scenes=24",  # 6 batches
    "dataset.validation_scenes=5",
    "dataset.test_scenes=7",
    "dataset.batch_size=4",
)
backbone = (
    "+model.dim=16",
    "+model.depth=2",
    "+model.num_heads=2",
    "+model.drop_path=0.2",
    "+model.attention=[local,global]",
    "+model.patch_size=4",
)
brief = ("trainer.max_epochs=2", "trainer.log_every_n_steps=1", "callbacks.progress_bar=null")
default_head = (
    "task.head.dim=16",
    "task.head.num_heads=2",
    "task.head.decoder_depth=2",
    "task.head.hidden_dim=24",
    "task.head.num_queries=9",
    "task.head.denoising=6",
)
fcos = ("task/head=fcos", "task.head.out_channels=64", "task.head.levels=[2,3,4]", "task.head.convolutions=1")
mask_rcnn = ("task/head=mask_rcnn", "task.head.out_channels=32", "task.head.levels=[2,3,4]", "task.head.hidden=16",
             "task.head.mask_channels=8", "task.head.samples=8", "task.head.proposals=20")  # fmt: skip


def train(*overrides: str) -> subprocess.CompletedProcess[str]:
    """Runs train.py with a small detector, on few scenes unless another data set is named."""
    data = () if any(override.startswith("dataset=") for override in overrides) else scenes
    head = () if any(override.startswith("task/head=") for override in overrides) else default_head
    return run(*data, *backbone, *brief, *head, *overrides)


def succeed(*overrides: str) -> subprocess.CompletedProcess[str]:
    result = train(*overrides)
    assert result.returncode == 0, result.stderr[-3000:]
    return result


def assert_same_ends(folder: Path, other: Path) -> None:
    """Weights, averages and optimizer of two finished runs are equal bit for bit."""
    expected, found = (read_checkpoint(place / "last.ckpt") for place in (folder, other))
    assert found["global_step"] == expected["global_step"]
    for part in ("state_dict", "current_model_state"):
        for name, value in expected[part].items():
            assert torch.equal(value, found[part][name]), name
    for number, state in expected["optimizer_states"][0]["state"].items():
        assert torch.equal(state["exp_avg"], found["optimizer_states"][0]["state"][number]["exp_avg"])


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> tuple[Path, str]:
    """A run of the default head that went through, and what it printed."""
    folder = tmp_path_factory.mktemp("finished")
    return folder, succeed(f"hydra.run.dir={folder}").stdout


def test_a_run_leaves_model_scores_results_and_pictures(finished):
    folder, printed = finished
    assert printed.rstrip().endswith(str(folder))
    assert "test/AP50" in printed
    assert {"val/AP", "test/AP", "test/AR_100", "test/AP/circle"} <= metrics(folder).keys()
    assert isinstance(visattn.load_pretrained(folder / "model"), ObjectDetector)
    results = json.loads((folder / "results.json").read_text())
    assert {entry["image_id"] for entry in results} == set(range(7))
    for name in ("detections.png", "precision_recall.png"):
        with Image.open(folder / name) as picture:
            assert min(picture.size) > 150
    assert "train/loss" in (folder / "csv" / "version_0" / "metrics.csv").read_text().splitlines()[0]
    assert read_checkpoint(folder / "best.ckpt")["callbacks"] is not None


def test_testing_the_model_folder_gives_its_detections_and_scores_again(finished, tmp_path):
    """Alone and in two processes, which share 7 images in batches that don't divide."""
    folder, _ = finished
    for name, strategy in (("one", "cpu"), ("two", "ddp_cpu")):
        place = tmp_path / name
        succeed(f"hydra.run.dir={place}", "train=false", f"checkpoint={folder / 'model'}", f"strategy={strategy}")
        results, expected = (json.loads((run / "results.json").read_text()) for run in (place, folder))
        assert [entry["image_id"] for entry in results] == [entry["image_id"] for entry in expected]
        for found, before in zip(results, expected, strict=True):
            assert found["score"] == pytest.approx(before["score"], abs=1e-5)
        for metric, value in metrics(place).items():
            assert value == pytest.approx(metrics(folder)[metric], abs=1e-4), metric


def test_a_killed_run_ends_with_the_same_weights(finished, tmp_path):
    folder, _ = finished
    killed = train(f"hydra.run.dir={tmp_path}", *often, kill, "+callbacks.kill.step=9")
    assert killed.returncode == -signal.SIGKILL, killed.stderr[-3000:]
    assert read_checkpoint(tmp_path / "last.ckpt")["global_step"] == 8
    succeed(f"checkpoint={tmp_path / 'last.ckpt'}", *often)
    assert_same_ends(folder, tmp_path)
    assert metrics(tmp_path) == metrics(folder)


def test_a_killed_run_of_masks_with_augmentation_ends_with_the_same_weights(tmp_path):
    """Boxes are sampled by chance in training, and pictures changed by chance."""
    options = (*mask_rcnn, "dataset.augmentation.flip=0.5", "dataset.augmentation.scale=[0.7,1.4]",
               "+dataset.augmentation.copy_paste=0.5", "dataset.train_scenes=12")  # fmt: skip
    succeed(f"hydra.run.dir={tmp_path / 'whole'}", *options)
    killed = train(f"hydra.run.dir={tmp_path / 'killed'}", *options, *often, kill, "+callbacks.kill.step=5")
    assert killed.returncode == -signal.SIGKILL, killed.stderr[-3000:]
    succeed(f"checkpoint={tmp_path / 'killed' / 'last.ckpt'}", *options, *often)
    assert_same_ends(tmp_path / "whole", tmp_path / "killed")
    assert {"val/mask_AP", "test/mask_AP50"} <= metrics(tmp_path / "killed").keys()


def test_a_run_from_a_pretrained_model_is_resumed_by_its_checkpoint_alone(finished, tmp_path):
    """model= of the command is of another width, and has no say."""
    start = f"checkpoint={finished[0] / 'model'}"
    succeed(f"hydra.run.dir={tmp_path / 'whole'}", start)
    killed = train(f"hydra.run.dir={tmp_path / 'killed'}", start, *often, kill, "+callbacks.kill.step=7")
    assert killed.returncode == -signal.SIGKILL, killed.stderr[-3000:]
    succeed(f"checkpoint={tmp_path / 'killed' / 'last.ckpt'}", *often, "model.dim=8")
    assert_same_ends(tmp_path / "whole", tmp_path / "killed")


def test_two_processes_learn_as_one(tmp_path):
    """The loss is the mean over all positive places, however they fall to the processes.

    With as many channels as groups, biases in front of the group norms would learn from rounding errors alone.
    """
    steady = (*fcos, "+model.stem=patch", "model.drop_path=0", "trainer.max_epochs=1", "task.learning_rate=1e-4",
              "dataset.augmentation.flip=0.5")  # fmt: skip
    one, two = tmp_path / "one", tmp_path / "two"
    succeed(f"hydra.run.dir={one}", *steady, "dataset.batch_size=8")
    succeed(f"hydra.run.dir={two}", *steady, "dataset.batch_size=4", "strategy=ddp_cpu")
    first, second = (read_checkpoint(place / "last.ckpt")["current_model_state"] for place in (one, two))
    for name, value in first.items():
        torch.testing.assert_close(second[name], value, rtol=1e-3, atol=2e-6, msg=name)
    assert metrics(two)["test/AP"] == pytest.approx(metrics(one)["test/AP"], abs=1e-3)


@pytest.mark.skipif(not coco.is_dir(), reason="needs ../shared/data/coco_mini")
def test_coco_is_detected_scored_and_written_in_its_own_format(tmp_path):
    succeed(f"hydra.run.dir={tmp_path}", *fcos, "dataset=coco_detection", f"dataset.root={coco}", "dataset.shortest=64",
            "dataset.longest=96", "dataset.memory=0", "model.patch_size=8",
            "task.head.levels=[3,4,5]", "trainer.max_epochs=1", "trainer.limit_train_batches=3")  # fmt: skip
    annotations = coco / "annotations" / "instances_val2017.json"
    scores = evaluate_detection_files(annotations, tmp_path / "results.json").bbox
    for name, value in scores.numbers.items():
        assert metrics(tmp_path)[f"test/{name}"] == pytest.approx(value, abs=1e-6), name
    model = visattn.load_pretrained(tmp_path / "model")
    assert (model.num_classes, model.category_ids[-1]) == (80, 90)
