import pytest
import torch
import typer
from typer.testing import CliRunner

from visattn.benchmark import captioning


def run(*arguments):
    app = typer.Typer()
    app.command()(captioning.main)
    return CliRunner().invoke(app, arguments)


def test_the_table_compares_equal_captions():
    pytest.importorskip("transformers")
    arguments = [
        "--size",
        "micro",
        "--batch",
        "2",
        "--beams",
        "1",
        "--beams",
        "3",
        "--words",
        "4",
        "--image-tokens",
        "7",
    ]
    result = run(*arguments, "--turns", "1", "--seconds", "0")
    assert result.exit_code == 0, result.output
    rows = [line.split() for line in result.output.splitlines() if line.startswith("micro")]
    assert [row[1:3] for row in rows] == [["2", "1"], ["2", "3"]]
    for *_, theirs, ours, ratio, equal in rows:
        assert float(theirs) / float(ours) == pytest.approx(float(ratio), rel=0.1)
        assert equal == "2/2"


def test_both_read_the_same_weights():
    pytest.importorskip("transformers")
    theirs, ours = captioning.twins(captioning.sizes["micro"])
    memory, token_ids = torch.randn(2, 7, 64), torch.randint(1000, (2, 5))
    with torch.no_grad():
        expected = theirs(encoder_outputs=(memory,), decoder_input_ids=token_ids).logits
        torch.testing.assert_close(ours(memory, token_ids), expected, rtol=0, atol=1e-3)


def test_an_unknown_size_is_named():
    result = run("--size", "giant")
    assert result.exit_code == 2
    assert "giant" in result.output
