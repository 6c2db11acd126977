from typer.testing import CliRunner

from visattn.benchmark import attention


def test_the_table_names_every_alternative():
    import typer

    app = typer.Typer()
    app.command()(attention.main)
    arguments = ["--size", "8", "--kernel", "3", "--seconds", "0.01", "--heads", "1", "--head-dim", "4", "--no-flex"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    for name in ("ours", "global", "dense mask", "gather", "flex"):
        assert name in result.output
