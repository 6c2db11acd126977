"""The command `score-captions`."""

import json

import pytest
import typer
from typer.testing import CliRunner

from visattn.cli.score_captions import main
from visattn.evaluation.captions import evaluate_coco

app = typer.Typer()
app.command()(main)


@pytest.fixture
def files(tmp_path):
    annotations = [{"image_id": i, "caption": f"{word} dog runs over {word} grass"} for i, word in enumerate("abcdefg")]
    results = [{"image_id": i, "caption": f"{word} dog runs"} for i, word in enumerate("abcdefg")]
    worse = [{"image_id": i, "caption": "cats sleep"} for i in range(7)]
    paths = {}
    for name, data in {"annotations": {"annotations": annotations}, "results": results, "worse": worse}.items():
        paths[name] = str(tmp_path / f"{name}.json")
        (tmp_path / f"{name}.json").write_text(json.dumps(data))
    return paths


def test_scores_go_to_the_screen_and_to_both_files(files, tmp_path):
    output, table = tmp_path / "scores.json", tmp_path / "images.csv"
    result = CliRunner().invoke(app, [
        "--references", files["annotations"], "--candidates", files["results"], "--metrics", "Bleu_1,CIDEr",
        "--compare", files["worse"], "--confidence", "0.9", "--output", str(output), "--per-image", str(table),
    ])  # fmt: skip
    assert result.exit_code == 0, result.output
    assert "Bleu_1" in result.output
    scores = evaluate_coco(files["annotations"], files["results"], ["Bleu_1", "CIDEr"])
    written = json.loads(output.read_text())["metrics"]
    assert {name: row["score"] for name, row in written.items()} == scores.corpus
    assert written["CIDEr"]["mean_difference"] > 0
    assert table.read_text().splitlines()[0] == "image_id,Bleu_1,CIDEr"
    assert len(table.read_text().splitlines()) == 8


def test_a_bad_file_is_an_error_and_no_traceback(files):
    result = CliRunner().invoke(app, ["--references", files["results"], "--candidates", files["results"]])
    assert result.exit_code == 1
    assert "expected an object" in result.output
