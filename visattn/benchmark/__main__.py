"""`python -m visattn.benchmark NAME [options]`; `python -m visattn.benchmark NAME --help` lists the options of one."""

from __future__ import annotations

import os

import typer

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # read when torch is imported; its profiler would talk between the rows

from visattn.benchmark import attention, backbones, caption_scores, captioning, detection, long_sequences, ring, zoo

app = typer.Typer(help="Compares visattn with its alternatives in one run and prints ratios.", no_args_is_help=True)
app.command("attention")(attention.main)
app.command("backbones")(backbones.main)
app.command("caption-scores")(caption_scores.main)
app.command("captioning")(captioning.main)
app.command("detection")(detection.main)
app.command("long-sequences")(long_sequences.main)
app.command("ring")(ring.main)
app.add_typer(zoo.app, name="zoo")

if __name__ == "__main__":
    app(prog_name="python -m visattn.benchmark")
