"""The `visattn` command: one file per subcommand. Heavy imports wait within them, so that help comes at once."""

from __future__ import annotations

import typer

from visattn.cli import ask, attend, caption, classify, demo, detect, models, score_captions, score_detections

app = typer.Typer(
    help="Vision models whose attention can be looked at. `visattn COMMAND --help` has examples.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_show_locals=False,
)
app.command("models")(models.main)
app.command("classify")(classify.main)
app.command("caption")(caption.main)
app.command("detect")(detect.main)
app.command("ask")(ask.main)
app.command("attend")(attend.main)
app.command("demo")(demo.main)
app.command("score-captions")(score_captions.main)
app.command("score-detections")(score_detections.main)


def main() -> None:
    """Runs the command that the shell names."""
    app()
