"""`visattn score-captions`: the official scores of a caption file, with intervals and a comparison on request."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from visattn.evaluation.captions import Scores


def main(
    references: Annotated[Path, typer.Option(help="COCO annotations, or Karpathy's dataset_*.json")],
    candidates: Annotated[Path, typer.Option(help="results: a list of {image_id, caption}")],
    metrics: Annotated[
        list[str] | None, typer.Option(help="one metric or several with commas; may be repeated; default: the official")
    ] = None,
    split: Annotated[str | None, typer.Option(help="the split of Karpathy's file, e.g. test")] = None,
    compare: Annotated[Path | None, typer.Option(help="results of a second system, for a paired test")] = None,
    confidence: Annotated[
        float | None, typer.Option(min=0.5, max=0.999, help="bootstrap intervals with this confidence, e.g. 0.95")
    ] = None,
    per_image: Annotated[Path | None, typer.Option(help="writes the scores of each image to this CSV file")] = None,
    output: Annotated[Path | None, typer.Option(help="writes the scores to this JSON file")] = None,
) -> None:
    """Scores captions as the official COCO evaluation does, without Java."""
    from rich.console import Console

    from visattn.evaluation.captions import evaluate_coco

    console, notes = Console(), Console(stderr=True)
    names = [name.strip() for part in metrics for name in part.split(",")] if metrics else None
    try:
        with notes.status("reading") as status:

            def step(name: str) -> None:
                status.update(name)

            first = evaluate_coco(references, candidates, names, split, step)
            second = evaluate_coco(references, compare, names, split, step) if compare else None
            report = _report(first, second, confidence)
    except (ValueError, OSError, RuntimeError, ImportError) as error:
        notes.print(f"[red]error:[/red] {error}", highlight=False, soft_wrap=True)
        raise typer.Exit(1) from None
    _print_table(console, report, candidates.name, compare.name if compare else None)
    console.print(f"{len(first.per_image)} images", highlight=False)
    if output:
        _write_json(output, {"images": len(first.per_image), "metrics": report})
    if per_image:
        _write_csv(per_image, first)


def _report(first: Scores, second: Scores | None, confidence: float | None) -> dict[str, dict]:
    """Per metric its score, and what was asked for besides."""
    from visattn.evaluation.captions import bootstrap_interval, paired_test

    if second is not None and first.per_image.keys() != second.per_image.keys():
        raise ValueError("the two result files hold captions of different images; a paired test needs the same ones")
    report: dict[str, dict] = {}
    for name, score in first.corpus.items():
        row: dict = {"score": score}
        values = [scores[name] for scores in first.per_image.values()]
        if confidence is not None:
            row["interval_of_image_mean"] = list(bootstrap_interval(values, confidence))
        if second is not None:
            row["second_score"] = second.corpus[name]
            others = [second.per_image[image][name] for image in first.per_image]
            difference = paired_test(values, others, confidence or 0.95)
            row["mean_difference"], row["p_value"] = difference.mean, difference.p_value
        report[name] = row
    return report


def _print_table(console, report: dict[str, dict], first: str, second: str | None) -> None:
    from rich.table import Table

    rows = list(report.values())
    table = Table("metric", title="caption scores")
    table.add_column(first, justify="right")
    if "interval_of_image_mean" in rows[0]:
        table.add_column("interval of the image mean", justify="right")
    if second is not None:
        for title in (second, "mean difference", "p"):
            table.add_column(title, justify="right")
    for name, row in report.items():
        cells = [name, f"{row['score']:.4f}"]
        if "interval_of_image_mean" in row:
            low, high = row["interval_of_image_mean"]
            cells.append(f"{low:.4f} to {high:.4f}")
        if second is not None:
            cells += [f"{row['second_score']:.4f}", f"{row['mean_difference']:+.4f}", f"{row['p_value']:.4f}"]
        table.add_row(*cells)
    console.print(table)


def _write_json(path: Path, report: dict) -> None:
    from visattn.files import atomic_path

    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


def _write_csv(path: Path, scores: Scores) -> None:
    from visattn.files import atomic_path

    with atomic_path(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["image_id", *scores.corpus])
        for image, values in scores.per_image.items():
            writer.writerow([image, *(values[name] for name in scores.corpus)])
