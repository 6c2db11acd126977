import pytest
import torch
import typer
from typer.testing import CliRunner

from visattn.benchmark import detection
from visattn.evaluation import evaluate_detections


def run(*arguments):
    app = typer.Typer()
    app.command()(detection.main)
    return CliRunner().invoke(app, arguments)


def test_scores_are_compared_and_equal():
    pytest.importorskip("hotcoco")
    result = run("scores", "--images", "20")
    assert result.exit_code == 0, result.output
    rows = [line.split() for line in result.output.splitlines() if " ours" in line or line.startswith(("bbox", "segm"))]
    assert len(rows) == 6
    for *_, ratio, difference in rows:
        assert float(ratio) > 0
        assert float(difference) < 1e-9


def test_the_made_up_set_is_no_easy_one():
    truth, results = detection.made_up_detections(20, masks=False)
    assert len(results) == 2000
    numbers = evaluate_detections(truth, results).bbox.numbers
    assert all(0.005 < number < 0.95 for number in numbers.values())


@pytest.mark.parametrize("place", detection.places, ids=lambda place: place.name)
def test_both_attend_alike(place):
    pytest.importorskip("transformers")
    small = place._replace(grids=((5, 7), (3, 4), (2, 2))[: len(place.grids)], queries=place.queries and 9)
    inputs = detection.attention_inputs(small, 2, "cpu")
    expected = detection.their_attention(small.grids)(*inputs)
    torch.testing.assert_close(detection.our_attention(small.grids)(*inputs), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["detr_micro", "rt_detr_v2_micro"])
def test_models_are_compared_with_the_same_weights(name):
    pytest.importorskip("transformers")
    result = run("models", "--model", name, "--batch", "2", "--size", "64", "--seconds", "0")
    assert result.exit_code == 0, result.output
    ((*_, theirs, ours, ratio),) = [line.split() for line in result.output.splitlines() if line.startswith(name)]
    assert float(theirs) / float(ours) == pytest.approx(float(ratio), rel=0.1)


def test_unknown_parts_and_models_are_named():
    for arguments in (["giant"], ["models", "--model", "giant"]):
        result = run(*arguments)
        assert result.exit_code == 2
        assert "giant" in result.output
