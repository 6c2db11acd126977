"""train.py on captions: what a run leaves, both stages, exact resumption, several processes."""

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
from visattn.evaluation.captions import evaluate, evaluate_coco, read_references
from visattn.heads import ImageCaptioner

coco = root.parent / "shared" / "data" / "coco_mini"
scenes = (
    "dataset=shapes_captions",
    "dataset.image_size=16",
    "dataset.augmentation.crop_padding=1",
    "dataset.train_scenes=12",  # 60 captions, 6 batches
    "dataset.validation_scenes=5",
    "dataset.test_scenes=7",
    "dataset.batch_size=10",
)
small = (
    "+model.dim=16",
    "+model.depth=2",
    "+model.num_heads=2",
    "+model.drop_path=0.2",
    "+model.attention=[local,global]",
    "task.decoder.dim=16",
    "task.decoder.depth=1",
    "task.decoder.num_heads=2",
    "task.encoder_heads=2",
    "task.max_new_tokens=12",
    "task.test_beams=2",
    "trainer.max_epochs=2",
    "trainer.log_every_n_steps=1",
    "callbacks.progress_bar=null",
)
second_stage = (
    "task.objective=scst",
    "dataset.batch_size=3",
    "task.num_samples=3",
    "task.bleu_weight=0.5",
)  # 4 batches


def train(*overrides: str) -> subprocess.CompletedProcess[str]:
    """Runs train.py with a small captioner, on few scenes unless another data set is named."""
    data = () if any(override.startswith("dataset=") for override in overrides) else scenes
    return run(*data, *small, *overrides)


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
    """A run that went through, and what it printed."""
    folder = tmp_path_factory.mktemp("finished")
    result = succeed(f"hydra.run.dir={folder}", "task.scheduled_sampling=0.5")
    return folder, result.stdout


@pytest.fixture(scope="module")
def finished_second_stage(finished, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("second")
    succeed(f"hydra.run.dir={folder}", f"checkpoint={finished[0] / 'model'}", *second_stage)
    return folder


def test_a_run_leaves_model_scores_results_and_picture(finished):
    folder, printed = finished
    assert printed.rstrip().endswith(str(folder))
    assert "test/CIDEr" in printed
    scores = metrics(folder)
    for name in ("Bleu_4", "METEOR", "ROUGE_L", "CIDEr"):
        assert {f"val/{name}", f"test/{name}"} <= scores.keys()
    model = visattn.load_pretrained(folder / "model")
    assert isinstance(model, ImageCaptioner)
    results = json.loads((folder / "results.json").read_text())
    assert len(results) == 7
    assert all(entry.keys() == {"image_id", "caption"} for entry in results)
    with Image.open(folder / "captions.png") as picture:
        assert min(picture.size) > 300
    assert read_checkpoint(folder / "best.ckpt")["callbacks"] is not None


def test_the_best_epoch_is_that_of_the_highest_cider(finished):
    folder, _ = finished
    lines = (folder / "csv" / "version_0" / "metrics.csv").read_text().splitlines()
    column = lines[0].split(",").index("val/CIDEr")
    by_epoch = [float(line.split(",")[column]) for line in lines[1:] if line.split(",")[column]]
    states = read_checkpoint(folder / "best.ckpt")["callbacks"].values()
    kept = [float(state["best_model_score"]) for state in states if state.get("monitor") == "val/CIDEr"]
    assert kept == [pytest.approx(max(by_epoch), rel=1e-5)]


def test_testing_the_model_folder_gives_its_captions_and_scores_again(finished, tmp_path):
    """Alone and in two processes, which share 7 images in batches that don't divide."""
    folder, _ = finished
    for name, strategy in (("one", "cpu"), ("two", "ddp_cpu")):
        place = tmp_path / name
        succeed(f"hydra.run.dir={place}", "train=false", f"checkpoint={folder / 'model'}", f"strategy={strategy}")
        assert json.loads((place / "results.json").read_text()) == json.loads((folder / "results.json").read_text())
        for metric, value in metrics(place).items():
            assert value == pytest.approx(metrics(folder)[metric], rel=1e-6), metric


def test_a_killed_run_ends_with_the_same_weights(finished, tmp_path):
    folder, _ = finished
    killing = (kill, "+callbacks.kill.step=9")
    killed = train(f"hydra.run.dir={tmp_path}", "task.scheduled_sampling=0.5", *often, *killing)
    assert killed.returncode == -signal.SIGKILL, killed.stderr[-3000:]
    assert read_checkpoint(tmp_path / "last.ckpt")["global_step"] == 8
    succeed(f"checkpoint={tmp_path / 'last.ckpt'}", "task.scheduled_sampling=0.5", *often)
    assert_same_ends(folder, tmp_path)
    assert metrics(tmp_path)["test/CIDEr"] == metrics(folder)["test/CIDEr"]


def test_a_killed_second_stage_ends_with_the_same_weights(finished, finished_second_stage, tmp_path):
    """Resumed by the checkpoint alone: model= of the command is of another width, and has no say."""
    killing = (kill, "+callbacks.kill.step=7")
    start = f"checkpoint={finished[0] / 'model'}"
    killed = train(f"hydra.run.dir={tmp_path}", start, *second_stage, *often, *killing)
    assert killed.returncode == -signal.SIGKILL, killed.stderr[-3000:]
    assert read_checkpoint(tmp_path / "last.ckpt")["global_step"] == 6
    succeed(f"checkpoint={tmp_path / 'last.ckpt'}", *second_stage, *often, "model.dim=8")
    assert_same_ends(finished_second_stage, tmp_path)


def test_the_second_stage_starts_from_the_first_with_its_own_learning_rate(finished, finished_second_stage):
    first, second = (read_checkpoint(place / "last.ckpt") for place in (finished[0], finished_second_stage))
    assert second["global_step"] == 8  # 12 images in batches of 3, twice
    assert {group["initial_lr"] for group in second["optimizer_states"][0]["param_groups"]} == {2e-5}
    assert second["visattn_model"]["tokenizer"] == first["visattn_model"]["tokenizer"]
    lines = (finished_second_stage / "csv" / "version_0" / "metrics.csv").read_text()
    assert "train/reward" in lines


def test_two_processes_learn_as_one(tmp_path):
    """The loss is the mean over all words, however they fall to the processes; only the order of sums differs."""
    steady = ("+model.stem=patch", "model.drop_path=0", "task.decoder.dropout=0", "dataset.train_scenes=16",
              "trainer.max_epochs=1", "task.learning_rate=1e-4")  # fmt: skip
    one, two = tmp_path / "one", tmp_path / "two"
    succeed(f"hydra.run.dir={one}", *steady, "dataset.batch_size=16")
    succeed(f"hydra.run.dir={two}", *steady, "dataset.batch_size=8", "strategy=ddp_cpu")
    first, second = (read_checkpoint(place / "last.ckpt")["current_model_state"] for place in (one, two))
    for name, value in first.items():
        torch.testing.assert_close(second[name], value, rtol=1e-3, atol=2e-6, msg=name)


def test_features_of_a_frozen_backbone_are_kept_for_the_next_run(finished, tmp_path):
    folder, _ = finished
    frozen = ("task.backbone_learning_rate=0", "task.cache_features=true", f"task.cache_folder={tmp_path / 'features'}")
    start = f"checkpoint={folder / 'model'}"
    first = succeed(f"hydra.run.dir={tmp_path / 'first'}", start, *frozen)
    assert "features of train" in first.stdout
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "features").iterdir()}
    assert len(files) == 2
    second = succeed(f"hydra.run.dir={tmp_path / 'second'}", start, *frozen, *second_stage)
    assert "features of train" not in second.stdout
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "features").iterdir()} == files
    before, after = (visattn.load_pretrained(place / "model").backbone for place in (folder, tmp_path / "second"))
    for name, value in before.state_dict().items():
        assert torch.equal(after.state_dict()[name], value), name
    assert_scores_are_those_of_the_results(tmp_path / "second")


@pytest.mark.skipif(not coco.is_dir(), reason="needs ../shared/data/coco_mini")
def test_coco_is_decoded_scored_and_written_in_its_own_format(finished, tmp_path):
    """The words of shapes say little about photographs; their captions are scored all the same."""
    result = succeed(f"hydra.run.dir={tmp_path}", "train=false", f"checkpoint={finished[0] / 'model'}",
                     "dataset=coco_captions", f"dataset.root={coco}")  # fmt: skip
    assert "test/METEOR" in result.stdout
    scores = evaluate_coco(coco / "annotations" / "captions_val2017.json", tmp_path / "results.json").corpus
    assert {entry["image_id"] for entry in json.loads((tmp_path / "results.json").read_text())} == set(
        read_references(coco / "annotations" / "captions_val2017.json")
    )
    for name, value in scores.items():
        assert metrics(tmp_path)[f"test/{name}"] == pytest.approx(value, rel=1e-5, abs=1e-7), name


def assert_scores_are_those_of_the_results(folder: Path) -> None:
    data = visattn.data.ShapesCaptionsDataModule(16, train_scenes=12, validation_scenes=5, test_scenes=7)
    data.setup()
    results = {entry["image_id"]: entry["caption"] for entry in json.loads((folder / "results.json").read_text())}
    expected = evaluate(data.references("test"), results).corpus
    for name, value in expected.items():
        assert metrics(folder)[f"test/{name}"] == pytest.approx(value, rel=1e-6), name
