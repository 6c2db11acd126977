"""train.py on questions: what a run leaves, exact resumption, several processes, VQA v2's files."""

from __future__ import annotations

import json
import signal
import subprocess
from pathlib import Path

import pytest
import torch
from PIL import Image

import visattn
from tests.data.test_vqa_v2 import write
from tests.train_runs import kill, metrics, often, run
from visattn.checkpoints import read_checkpoint
from visattn.heads import VisualQuestionAnswerer

scenes = (
    "dataset=shapes_vqa",
    "dataset.image_size=16",
    "dataset.augmentation.crop_padding=1",
    "dataset.train_scenes=26",  # 6 batches of 4
    "dataset.validation_scenes=6",
    "dataset.test_scenes=7",
    "dataset.batch_size=4",
    "dataset.questions_per_image=4",
)
small = (
    "+model.dim=16",
    "+model.depth=2",
    "+model.num_heads=2",
    "+model.drop_path=0.2",
    "+model.attention=[local,global]",
    "task.questions.dim=16",
    "task.questions.depth=1",
    "task.questions.num_heads=2",
    "task.encoder_heads=2",
    "task.dropout=0.1",
    "trainer.max_epochs=2",
    "trainer.log_every_n_steps=1",
    "callbacks.progress_bar=null",
)


def train(*overrides: str) -> subprocess.CompletedProcess[str]:
    """Runs train.py with a small model, on few scenes unless another data set is named."""
    data = () if any(override.startswith("dataset=") for override in overrides) else scenes
    return run(*data, *small, *overrides)


def succeed(*overrides: str) -> subprocess.CompletedProcess[str]:
    result = train(*overrides)
    assert result.returncode == 0, result.stderr[-3000:]
    return result


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> tuple[Path, str]:
    """A run that went through, and what it printed."""
    folder = tmp_path_factory.mktemp("finished")
    return folder, succeed(f"hydra.run.dir={folder}").stdout


def test_a_run_leaves_checkpoints_model_answers_and_picture(finished):
    folder, printed = finished
    assert printed.rstrip().endswith(str(folder))
    assert "test/accuracy/relation" in printed
    assert {"test/accuracy", "test/accuracy/yes/no", "val/accuracy", "val/loss"} <= metrics(folder).keys()
    results = json.loads((folder / "results.json").read_text())
    assert [entry["question_id"] for entry in results] == list(range(63))
    assert read_checkpoint(folder / "best.ckpt")["visattn_model"]["kind"] == "question_answering"
    with Image.open(folder / "answers.png") as picture:
        assert min(picture.size) > 300


def test_the_portable_model_is_the_best_checkpoint(finished):
    folder, _ = finished
    portable, best = (visattn.load_pretrained(folder / name) for name in ("model", "best.ckpt"))
    assert isinstance(portable, VisualQuestionAnswerer)
    images, text = torch.randn(3, 3, 16, 16), "what is red?"
    assert portable.answer(images, text, num_return=5) == best.answer(images, text, num_return=5)


def test_testing_a_finished_run_gives_its_numbers_again(finished, tmp_path):
    folder, _ = finished
    succeed(f"hydra.run.dir={tmp_path}", "train=false", f"checkpoint={folder / 'model'}")
    again, before = metrics(tmp_path), metrics(folder)
    assert again == pytest.approx({name: before[name] for name in again}, rel=1e-5)
    assert (tmp_path / "results.json").read_text() == (folder / "results.json").read_text()


def test_a_run_killed_twice_within_an_epoch_ends_with_the_same_weights(finished, tmp_path):
    folder, _ = finished
    first = train(f"hydra.run.dir={tmp_path}", *often, kill, "+callbacks.kill.step=3")
    assert first.returncode == -signal.SIGKILL, first.stderr[-3000:]
    resume = f"checkpoint={tmp_path / 'last.ckpt'}"
    assert read_checkpoint(tmp_path / "last.ckpt")["global_step"] == 2
    second = train(resume, *often, kill, "+callbacks.kill.step=9")
    assert second.returncode == -signal.SIGKILL, second.stderr[-3000:]
    assert read_checkpoint(tmp_path / "last.ckpt")["global_step"] == 8
    succeed(resume, *often)
    expected, resumed = (read_checkpoint(place / "last.ckpt") for place in (folder, tmp_path))
    assert resumed["global_step"] == expected["global_step"] == 12
    for part in ("state_dict", "current_model_state"):
        for name, value in expected[part].items():
            assert torch.equal(value, resumed[part][name]), name
    for number, state in expected["optimizer_states"][0]["state"].items():
        assert torch.equal(state["exp_avg"], resumed["optimizer_states"][0]["state"][number]["exp_avg"])
    assert metrics(tmp_path)["test/accuracy"] == metrics(folder)["test/accuracy"]


def test_two_processes_reach_the_loss_of_one(tmp_path):
    """With the same global batch, no batch norm and nothing drawn, only the order of sums differs."""
    one, two = tmp_path / "one", tmp_path / "two"
    steady = ("+model.stem=patch", "model.drop_path=0", "task.dropout=0", "dataset.train_scenes=24")
    succeed(f"hydra.run.dir={one}", *steady)
    succeed(f"hydra.run.dir={two}", *steady, "dataset.batch_size=2", "strategy=ddp_cpu")
    for name in ("val/loss", "test/loss"):
        assert metrics(two)[name] == pytest.approx(metrics(one)[name], rel=1e-4)
    assert metrics(two)["test/accuracy"] == pytest.approx(metrics(one)["test/accuracy"], abs=0.04)
    answered = [entry["question_id"] for entry in json.loads((two / "results.json").read_text())]
    assert answered == list(range(63))  # 7 scenes, of which each process had a part


def test_vqa_v2_is_learned_and_its_test_answered_for_the_server(tmp_path):
    data, folder = tmp_path / "vqa", tmp_path / "run"
    data.mkdir()
    write(data, "train2014")
    write(data, "test2015", (5, 6, 8), with_annotations=False)
    options = ("dataset=vqa_v2", f"dataset.root={data}", "dataset.test=test2015", "dataset.validation_fraction=0.25")
    few = ("dataset.image_size=16", "dataset.augmentation.crop_padding=1", "dataset.min_count=1")
    succeed(f"hydra.run.dir={folder}", *options, *few)
    results = json.loads((folder / "results.json").read_text())
    assert [entry["question_id"] for entry in results] == [5000, 5001, 6000, 6001, 8000, 8001]
    assert {entry["answer"] for entry in results} <= {"yes", "red", "dark red", "blue"}
    assert "val/accuracy" in metrics(folder)
    assert not [name for name in metrics(folder) if name.startswith("test/")]
