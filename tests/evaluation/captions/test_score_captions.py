"""The command `score-captions`."""

import json
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from tests.evaluation.captions.originals import needs_extra
from visattn.cli.score_captions import main
from visattn.evaluation.captions import METRICS, evaluate_coco

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


def _run(files, *options, references="annotations", candidates="results"):
    return CliRunner().invoke(app, ["--references", files[references], "--candidates", files[candidates], *options])


@needs_extra
def test_the_official_metrics_are_the_default(files):
    result = _run(files)
    assert result.exit_code == 0, result.output
    for name in METRICS:
        assert f" {name} " in result.output


def test_karpathys_file_is_taken_by_split(files, tmp_path):
    images = [
        {"cocoid": i, "split": "test" if i else "val", "sentences": [{"raw": f"a dog number {i}"}]} for i in range(7)
    ]
    path = tmp_path / "dataset_coco.json"
    path.write_text(json.dumps({"images": images}))
    files["karpathy"] = str(path)
    whole = _run(files, "--metrics", "ROUGE_L", references="karpathy")
    assert "7 images" in whole.output
    part = _run(files, "--metrics", "ROUGE_L", "--split", "test", references="karpathy")
    assert part.exit_code == 1
    assert 'results.json: entry 0: "image_id" 0 has no references' in part.output


def test_an_empty_caption_is_a_warning(files):
    entries = [{"image_id": 0, "caption": ""}, {"image_id": 1, "caption": "a dog"}]
    Path(files["results"]).write_text(json.dumps(entries))
    result = _run(files, "--metrics", "Bleu_1")
    assert result.exit_code == 0
    assert "warning: " in result.output
    assert 'entry 0: "caption" is empty' in result.output


def test_systems_with_captions_of_different_images_are_not_compared(files):
    Path(files["worse"]).write_text(json.dumps([{"image_id": 3, "caption": "a dog"}]))
    result = _run(files, "--metrics", "Bleu_1", "--compare", files["worse"])
    assert result.exit_code == 1
    assert "6 images are in one only, for example 0" in result.output


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'[{"image_id": 99, "caption": "a"}]', 'entry 0: "image_id" 99 has no references'),
        (b'[{"image_id": 1, "caption": "a"}, {"image_id": 1, "caption": "b"}]', "has a caption already"),
        (b'[{"image_id": 1}]', 'entry 0: "caption" is missing'),
        (b'[{"image_id": 1, "caption": null}]', 'entry 0: "caption" must be a string, found null'),
        (b'[{"image_id": 1, "caption": 7}]', 'entry 0: "caption" must be a string, found a number'),
        (b'{"image_id": 1, "caption": "a"}', "expected a list of"),
        (b'[{"image_id": 1, "caption": "caf\xe9"}]', "not UTF-8 (byte 32)"),
        ('[{"image_id": 1, "caption": "a"}]'.encode("utf-16"), "not UTF-8"),
        (b"[", "no JSON"),
        (b"[]", "the list of results is empty"),
    ],
)
def test_a_bad_file_is_an_error_that_names_it_and_no_traceback(files, content, message):
    Path(files["results"]).write_bytes(content)
    result = _run(files, "--metrics", "Bleu_1")
    assert result.exit_code == 1
    assert "error: " in result.output
    assert "results.json: " in result.output
    assert message in result.output
    assert isinstance(result.exception, SystemExit)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--metrics", "BLEU"], "unknown metric 'BLEU'; there are Bleu_1"),
        (["--metrics", "Bleu_1", "--split", "test"], "COCO annotations hold no splits"),
        (["--metrics", "Bleu_1", "--compare", "nowhere.json"], "nowhere.json"),
        (["--metrics", "SPICE"], "SPICE needs"),
    ],
)
def test_what_cannot_be_done_is_said(files, options, message):
    result = _run(files, *options)
    assert result.exit_code == 1
    assert message in result.output
