import re

import typer
from typer.testing import CliRunner

from visattn.benchmark import ring


def test_processes_share_an_image_and_find_the_same_loss():
    app = typer.Typer()
    app.command()(ring.main)
    arguments = "--image-size 32 --patch-size 4 --dim 12 --depth 1 --processes 1 --processes 2 --chunk 16"
    result = CliRunner().invoke(app, arguments.split())
    assert result.exit_code == 0, result.output
    losses = re.findall(r"^ +[12] .*?(\d+\.\d{6})$", result.output, flags=re.MULTILINE)
    assert len(losses) == 2
    assert abs(float(losses[0]) - float(losses[1])) < 1e-4
