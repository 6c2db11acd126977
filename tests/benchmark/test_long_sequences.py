import re

import typer
from typer.testing import CliRunner

from visattn.benchmark import long_sequences


def test_every_kind_is_measured_and_exact_ones_have_no_error():
    app = typer.Typer()
    app.command()(long_sequences.main)
    result = CliRunner().invoke(app, ["--side", "8", "--features", "16", "--seconds", "0.01", "--heads", "1"])
    assert result.exit_code == 0, result.output
    rows = dict(re.findall(r"^  (\S.{13})(.*)$", result.output, flags=re.MULTILINE))
    rows = {name.strip(): numbers.split() for name, numbers in rows.items()}
    kinds = {
        "softmax",
        "chunked",
        "neighborhood",
        "relative",
        "window, 8x8",
        "grid, 8x8",
        "focal",
        "graph, 3x3",
        "axial",
        "pooled, 8x8",
        "linear",
        "performer",
        "linformer",
        "nystrom",
    }
    assert kinds <= rows.keys()
    assert float(rows["chunked"][-1]) == 0
    assert float(rows["performer"][-1]) > 0
    larger = CliRunner().invoke(app, ["--side", "8", "--features", "4", "--seconds", "0.01", "--quadratic", "63"])
    assert "softmax" not in larger.output.partition("tokens\n")[2]
