"""`visattn score-detections`: the official scores of a file of detections, by boxes and by masks."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from visattn.evaluation.detection import DetectionScores, KindScores


def main(
    annotations: Annotated[Path, typer.Option(help="COCO annotations, instances_*.json")],
    results: Annotated[Path, typer.Option(help="a list of {image_id, category_id, bbox, score, segmentation}")],
    segm: Annotated[bool, typer.Option("--segm", help="score the masks, too")] = False,
    per_class: Annotated[bool, typer.Option("--per-class", help="show the scores of each class")] = False,
    curves: Annotated[
        Path | None, typer.Option(metavar="FILE", help="draw precision over recall (of the boxes), .png or .jpg")
    ] = None,
    output: Annotated[Path | None, typer.Option(help="writes the scores to this JSON file")] = None,
    backend: Annotated[
        str | None,
        typer.Option(
            metavar="pycocotools|faster",
            help="who counts, with the same numbers; default: faster where it is installed, visattn[detection]",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Scores detections as the official COCO evaluation does.

    Numbers are -1 where there is nothing to find, such as small objects in a set without any.

    Examples:

        visattn score-detections --annotations instances_val2017.json --results results.json --per-class

        visattn score-detections --annotations val.json --results results.json --segm --curves curves.png
    """
    from rich.console import Console

    from visattn.cli.errors import errors_as_messages
    from visattn.cli.pictures import check_output
    from visattn.evaluation.detection import evaluate_detection_files

    with errors_as_messages():
        if curves is not None:
            check_output("--curves", curves)
        chosen = backend or ("faster" if find_spec("hotcoco") else "pycocotools")
        kinds = ("bbox", "segm") if segm else ("bbox",)
        with Console(stderr=True).status("scoring"):
            scores = evaluate_detection_files(annotations, results, kinds, chosen)
        print_scores(Console(), scores)
        if per_class:
            print_classes(Console(), scores)
        if output is not None:
            write_json(output, scores)
        if curves is not None:
            draw(curves, scores)


def sides(scores: DetectionScores) -> dict[str, KindScores]:
    """What was scored, by its name."""
    both = {"boxes": scores.bbox, "masks": scores.segm}
    return {name: side for name, side in both.items() if side is not None}


def print_scores(console: Console, scores: DetectionScores) -> None:
    from rich.table import Table

    table = Table("score", title="detection scores")
    for name in sides(scores):
        table.add_column(name, justify="right")
    numbers = [side.numbers for side in sides(scores).values()]
    for name in numbers[0]:
        table.add_row(
            name, *(f"{side[name]:.4f}" for side in numbers), end_section=name in ("AP75", "AP_large", "AR_100")
        )
    console.print(table)


def print_classes(console: Console, scores: DetectionScores) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table("class", title="scores of each class")
    table.add_column("objects", justify="right")
    for name in sides(scores):
        table.add_column(f"AP {name}", justify="right")
        table.add_column(f"AP50 {name}", justify="right")
    for row in zip(*(side.per_class for side in sides(scores).values()), strict=True):
        numbers = [f"{number:.4f}" for one in row for number in (one.AP, one.AP50)]
        table.add_row(Text(row[0].name), str(row[0].objects), *numbers)
    console.print(table)


def write_json(path: Path, scores: DetectionScores) -> None:
    from visattn.files import atomic_path

    content = {
        name: side.numbers | {"per_class": [one._asdict() for one in side.per_class]}
        for name, side in (("bbox", scores.bbox), ("segm", scores.segm))
        if side is not None
    }
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def draw(path: Path, scores: DetectionScores) -> None:
    from visattn.files import atomic_path
    from visattn.interpret import precision_recall_figure

    assert scores.bbox is not None
    figure = precision_recall_figure(scores.bbox, [one.name for one in scores.bbox.per_class])
    with atomic_path(path) as temporary:
        figure.save(temporary)
