import json

import pytest
from PIL import Image
from typer.testing import CliRunner

from tests.benchmark.cifar_folders import write_images
from visattn.benchmark.__main__ import app


def run(*arguments):
    return CliRunner().invoke(app, ["zoo", *map(str, arguments)])


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A finished `zoo accuracy` of two networks: its options, its file, and what it printed."""
    folder = tmp_path_factory.mktemp("zoo")
    options = ["accuracy", "airbench94", "vit_local_tiny", "--minutes", 0.02, "--threads", 1, "--batch-size", 16]
    options += ["--airbench-batch-size", 16, "--data", write_images(folder / "images", 8, 3), "--train-images", 18]
    file = folder / "results" / "zoo.json"
    result = run(*options, "--output", file)
    assert result.exit_code == 0, result.output
    return options, file, result.output


def test_every_network_has_its_row(trained):
    _, file, output = trained
    rows = json.loads(file.read_text())["training"]
    assert [row["name"] for row in rows] == ["airbench94", "vit_local_tiny"]
    for row in rows:
        assert row["train_images"] == 18
        assert row["images"] == 16 * (row["steps"] + row["left_out"]) > 0
        assert row["minutes"] == 0.02
        assert 0 <= row["accuracy_views"] <= 1
        assert row["name"] in output


def test_what_is_there_is_not_trained_again(trained):
    options, file, _ = trained
    before = file.read_text()
    assert run(*options, "--output", file).exit_code == 0
    assert file.read_text() == before
    assert run(*options, "--output", file, "--seed", 1).exit_code == 0
    assert len(json.loads(file.read_text())["training"]) == 4
    file.write_text(before)


def test_speed_has_a_ratio_where_there_is_a_twin(trained, tmp_path):
    file = tmp_path / "speed.json"
    result = run("speed", "vit_tiny", "airbench94", "--size", 32, "--batch-size", 1, "--seconds", 0.1, "--output", file)
    assert result.exit_code == 0, result.output
    alone, twin = json.loads(file.read_text())["speed"]
    assert (alone["name"], alone["forward_ratio"]) == ("airbench94", None)
    assert (twin["name"], twin["image_size"]) == ("vit_tiny", 32)
    assert 0.2 < twin["forward_ratio"] < 5
    assert 0.2 < twin["training_ratio"] < 5


def test_the_table_is_markdown_with_the_best_first(trained):
    _, file, _ = trained
    lines = run("table", file).output.splitlines()
    columns = lines[0].count("|")
    assert all(line.count("|") == columns for line in lines[:4])
    accuracies = [float(line.split("|")[7].strip(" %")) for line in lines[2:4]]
    assert accuracies == sorted(accuracies, reverse=True)


def test_the_picture_is_drawn(trained, tmp_path):
    _, file, _ = trained
    result = run("plot", file, tmp_path / "zoo.png")
    assert result.exit_code == 0, result.output
    assert Image.open(tmp_path / "zoo.png").size == (1560, 720)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["accuracy", "vit_huge"], "vit_huge"),
        (["accuracy", "vit_tiny", "--dtype", "float16"], "float16"),
        (["accuracy", "vit_tiny", "--views", "3"], "views 3"),
        (["speed", "--size", "64"], "64"),
        (["table", "nothing.json"], "nothing.json"),
    ],
)
def test_bad_options_are_named(arguments, message):
    result = run(*arguments)
    assert result.exit_code == 2
    assert message in result.output
