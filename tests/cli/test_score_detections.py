import json

import numpy as np
import pytest
from PIL import Image

from tests.evaluation.detection_sets import made_up, official


@pytest.fixture
def files(tmp_path):
    """Annotations and results."""
    paths = tmp_path / "instances.json", tmp_path / "results.json"
    for path, content in zip(paths, made_up(0), strict=True):
        path.write_text(json.dumps(content))
    return paths


def options(files):
    return ["--annotations", files[0], "--results", files[1]]


@pytest.mark.parametrize("backend", [[], ["--backend", "pycocotools"]], ids=["default", "pycocotools"])
def test_the_numbers_are_the_official_ones(backend, files, tmp_path, run):
    output = tmp_path / "scores.json"
    code, table, errors = run("score-detections", *options(files), "--segm", "--output", output, *backend)
    assert code == 0, errors
    written = json.loads(output.read_text())
    for kind in ("bbox", "segm"):
        expected, _ = official(*made_up(0), kind)
        numbers = [written[kind][name] for name in list(written[kind])[:12]]
        np.testing.assert_allclose(numbers, expected, rtol=0, atol=1e-9)
        assert all(f"{number:.4f}" in table for number in expected)
        assert [row["category_id"] for row in written[kind]["per_class"]] == [3, 7, 11, 20, 90]


def test_classes_are_shown_on_request(files, run):
    code, output, errors = run("score-detections", *options(files))
    assert (code, "kind 90" in output) == (0, False), errors
    code, output, errors = run("score-detections", *options(files), "--per-class")
    assert code == 0, errors
    assert "kind 90" in output
    assert "-1.0000" in output


def test_curves_are_drawn(files, tmp_path, run):
    code, _, errors = run("score-detections", *options(files), "--curves", tmp_path / "curves.png")
    assert code == 0, errors
    with Image.open(tmp_path / "curves.png") as figure:
        assert min(figure.size) > 400


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda results: results[5].update(image_id=4711), 'results.json: entry 5: "image_id" is 4711'),
        (lambda results: results[5].update(score=float("nan")), 'results.json: entry 5: "score" is nan'),
        (lambda results: results[5].update(bbox=[1, 2]), 'results.json: entry 5: "bbox" is [1, 2], not four'),
    ],
)
def test_a_wrong_entry_is_named_without_traceback(change, message, files, run):
    results = made_up(0)[1]
    change(results)
    files[1].write_text(json.dumps(results))
    code, output, errors = run("score-detections", *options(files))
    assert (code, output) == (1, "")
    assert message in errors
    assert "Traceback" not in errors


def test_a_missing_file_and_an_unknown_backend_are_named(files, tmp_path, run):
    code, _, errors = run("score-detections", "--annotations", files[0], "--results", tmp_path / "none.json")
    assert (code, "none.json: there is no such file" in errors) == (1, True)
    code, _, errors = run("score-detections", *options(files), "--backend", "slow")
    assert (code, "backend 'slow' is neither of pycocotools, faster" in errors) == (1, True)
