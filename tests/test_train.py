"""train.py as a person runs it: what a run leaves behind, exact resumption, several processes, clear refusals."""

from __future__ import annotations

import json
import signal
import subprocess
from pathlib import Path

import pytest
import torch
from PIL import Image

import visattn
from tests.train_runs import kill, often, run
from visattn.checkpoints import read_checkpoint

small = (
    "+model.dim=32",
    "+model.depth=2",
    "+model.num_heads=2",
    "+model.drop_path=0.2",
    "+model.attention=[local,global]",
    "dataset.train_scenes=200",  # 13 batches of 15
    "dataset.validation_scenes=40",
    "dataset.test_scenes=60",
    "dataset.batch_size=15",
    "trainer.max_epochs=2",
    "callbacks.progress_bar=null",
)


def train(*overrides: str) -> subprocess.CompletedProcess[str]:
    """Runs train.py with a small model on few scenes."""
    return run(*small, *overrides)


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> tuple[Path, str]:
    """A run that went through, and what it printed."""
    folder = tmp_path_factory.mktemp("finished")
    result = train(f"hydra.run.dir={folder}")
    assert result.returncode == 0, result.stderr[-3000:]
    return folder, result.stdout


def test_a_run_leaves_checkpoints_model_metrics_and_pictures(finished):
    folder, printed = finished
    assert printed.rstrip().endswith(str(folder))
    assert "test/accuracy" in printed
    metrics = json.loads((folder / "metrics.json").read_text())
    assert 0 <= metrics["test/accuracy"] <= metrics["test/accuracy_top5"] <= 1
    assert all(isinstance(value, float) for value in metrics.values())
    for name in ("predictions.png", "confusion.png"):
        with Image.open(folder / name) as picture:
            assert min(picture.size) > 300
    for name in ("last.ckpt", "best.ckpt"):
        assert read_checkpoint(folder / name)["visattn_model"]["num_classes"] == 8
    assert not [path for path in folder.iterdir() if path.name.startswith(".best") or path.name.startswith(".last")]


def test_the_portable_model_is_the_best_checkpoint(finished):
    folder, _ = finished
    portable, best = visattn.load_pretrained(folder / "model"), visattn.load_pretrained(folder / "best.ckpt")
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(portable(images), best(images))
    assert portable.classes == best.classes
    assert portable.preprocess is not None


def test_testing_a_finished_run_gives_its_numbers_again(finished, tmp_path):
    folder, _ = finished
    result = train(f"hydra.run.dir={tmp_path}", "train=false", f"checkpoint={folder / 'model'}")
    assert result.returncode == 0, result.stderr[-3000:]
    again = json.loads((tmp_path / "metrics.json").read_text())
    before = json.loads((folder / "metrics.json").read_text())
    assert again["test/accuracy"] == before["test/accuracy"]
    assert again["test/loss"] == pytest.approx(before["test/loss"], rel=1e-5)


def test_a_run_killed_twice_within_an_epoch_ends_with_the_same_weights(finished, tmp_path):
    folder, _ = finished
    first = train(f"hydra.run.dir={tmp_path}", *often, kill, "+callbacks.kill.step=5")
    assert first.returncode == -signal.SIGKILL, first.stderr[-3000:]
    resume = f"checkpoint={tmp_path / 'last.ckpt'}"
    assert read_checkpoint(tmp_path / "last.ckpt")["global_step"] == 4
    second = train(resume, *often, kill, "+callbacks.kill.step=9")
    assert second.returncode == -signal.SIGKILL, second.stderr[-3000:]
    assert read_checkpoint(tmp_path / "last.ckpt")["global_step"] == 8
    third = train(resume, *often)
    assert third.returncode == 0, third.stderr[-3000:]
    assert third.stdout.rstrip().endswith(str(tmp_path))  # a resumed run goes on in its own folder
    expected, resumed = (read_checkpoint(place / "last.ckpt") for place in (folder, tmp_path))
    assert resumed["global_step"] == expected["global_step"] == 26
    for name, value in expected["state_dict"].items():
        assert torch.equal(value, resumed["state_dict"][name]), name
    for number, state in expected["optimizer_states"][0]["state"].items():
        assert torch.equal(state["exp_avg"], resumed["optimizer_states"][0]["state"][number]["exp_avg"])
    before, after = (json.loads((place / "metrics.json").read_text()) for place in (folder, tmp_path))
    assert after["test/accuracy"] == before["test/accuracy"]


def test_two_processes_reach_the_loss_of_one(tmp_path):
    """With the same global batch and no batch norm, only the order of sums differs."""
    one, two = tmp_path / "one", tmp_path / "two"
    steady = ("+model.stem=patch", "model.drop_path=0", "dataset.train_scenes=208")
    single = train(f"hydra.run.dir={one}", *steady, "dataset.batch_size=16")
    assert single.returncode == 0, single.stderr[-3000:]
    double = train(f"hydra.run.dir={two}", *steady, "dataset.batch_size=8", "strategy=ddp_cpu")
    assert double.returncode == 0, double.stderr[-3000:]
    first, second = (json.loads((place / "metrics.json").read_text()) for place in (one, two))
    for name in ("val/loss", "test/loss"):
        assert second[name] == pytest.approx(first[name], rel=1e-4)
    assert second["test/accuracy"] == pytest.approx(first["test/accuracy"], abs=0.02)


def test_two_processes_that_share_the_tokens_of_images_reach_the_loss_of_one(tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    steady = ("model=vit", "+model.attention=[global]", "model.drop_path=0")  # 17 tokens: 9 and 8
    kept = [option for option in small if "attention" not in option]
    for place, strategy in ((one, "cpu"), (two, "token_parallel_cpu")):
        result = run(*kept, *steady, f"hydra.run.dir={place}", f"strategy={strategy}")
        assert result.returncode == 0, result.stderr[-3000:]
    first, second = (json.loads((place / "metrics.json").read_text()) for place in (one, two))
    for name in ("val/loss", "test/loss"):
        assert second[name] == pytest.approx(first[name], rel=1e-4)
    assert second["test/accuracy"] == first["test/accuracy"]
    # What both counted is counted once, and what one process drew it drew without the other.
    assert (two / "confusion.png").read_bytes() == (one / "confusion.png").read_bytes()
    with Image.open(two / "predictions.png") as picture:
        assert min(picture.size) > 300
    images = torch.randn(2, 3, 64, 64)
    logits = [visattn.load_pretrained(place / "model")(images) for place in (one, two)]
    torch.testing.assert_close(logits[1], logits[0], rtol=0.01, atol=0.01)


def test_fine_tuning_starts_from_a_pretrained_model(finished, tmp_path):
    folder, _ = finished
    result = train(f"hydra.run.dir={tmp_path}", f"checkpoint={folder / 'model'}", "trainer.max_epochs=1",
                   "task.layer_decay=0.8", "task.learning_rate=1e-6")  # fmt: skip
    assert result.returncode == 0, result.stderr[-3000:]
    before, after = (json.loads((place / "metrics.json").read_text()) for place in (folder, tmp_path))
    assert after["test/loss"] == pytest.approx(before["test/loss"], rel=1e-2)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("checkpoint=nowhere/last.ckpt",), "nowhere/last.ckpt: there is no such file to resume from"),
        (("train=false",), "train=false only tests, and needs checkpoint="),
        (("model=vit_lokal",), "vit_local"),
        (("hydra.mode=MULTIRUN", "strategy=ddp_cpu", "seed=0,1"), "-m cannot sweep over runs of 2 processes"),
    ],
)
def test_what_cannot_run_is_refused_with_a_reason(overrides, message, tmp_path):
    result = train(*overrides, f"hydra.run.dir={tmp_path}", f"hydra.sweep.dir={tmp_path}")
    assert result.returncode != 0
    assert message in result.stderr + result.stdout


def test_resuming_with_another_model_names_the_difference(finished):
    folder, _ = finished
    result = train(f"checkpoint={folder / 'last.ckpt'}", "model.depth=3", "trainer.max_epochs=3")
    assert result.returncode != 0
    assert "differing in depth" in result.stderr
