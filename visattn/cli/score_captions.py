"""`visattn score-captions`: the official scores of a caption file, with intervals and a comparison on request."""

from __future__ import annotations

import csv
import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from visattn.evaluation.captions import Scores


def main(
    references: Annotated[Path, typer.Option(help="COCO annotations, or Karpathy's dataset_*.json")],
    candidates: Annotated[Path, typer.Option(help="results: a list of {image_id, caption}")],
    metrics: Annotated[
        list[str] | None, typer.Option(help="one metric or several with commas; may be repeated; default: the official")
    ] = None,
    split: Annotated[str | None, typer.Option(help="the split of Karpathy's file, e.g. test")] = None,
    compare: Annotated[
        Path | None, typer.Option(help="results of a second system for the same images, for a paired test")
    ] = None,
    confidence: Annotated[
        float | None, typer.Option(min=0.5, max=0.999, help="bootstrap intervals with this confidence, e.g. 0.95")
    ] = None,
    per_image: Annotated[Path | None, typer.Option(help="writes the scores of each image to this CSV file")] = None,
    output: Annotated[Path | None, typer.Option(help="writes the scores to this JSON file")] = None,
) -> None:
    """Scores captions as the official COCO evaluation does, without Java."""
    from rich.console import Console

    from visattn.cli.errors import report_error, report_warning

    console, notes = Console(), Console(stderr=True)
    names = [name.strip() for part in metrics for name in part.split(",")] if metrics else None
    files = [candidates] if compare is None else [candidates, compare]
    try:
        with warnings.catch_warnings(record=True) as caught, notes.status("reading") as status:
            warnings.simplefilter("always", UserWarning)
            systems = _score(references, files, names, split, status.update)
        for warning in {str(warning.message): warning for warning in caught}:
            report_warning(warning)
        report = _report(systems, confidence)
        _print_table(console, report, [file.name for file in files])
        console.print(f"{len(systems[0].per_image)} images", highlight=False)
        if output:
            _write_json(output, {"images": len(systems[0].per_image), "metrics": report})
        if per_image:
            _write_csv(per_image, systems[0])
    except (ValueError, OSError, RuntimeError, ImportError) as error:
        report_error(error)
        raise typer.Exit(1) from None


def _score(
    references: Path, files: list[Path], metrics: list[str] | None, split: str | None, step: Callable[[str], object]
) -> list[Scores]:
    """The scores of one system, or of two that have captions of the same images."""
    from visattn.evaluation.captions import evaluate, read_candidates, read_references

    texts = read_references(references, split)
    systems = [read_candidates(file, texts) for file in files]
    for file, system in zip(files[1:], systems[1:], strict=True):
        if different := systems[0].keys() ^ system.keys():
            raise ValueError(
                f"{files[0]} and {file} hold captions of different images, so they cannot be compared; "
                f"{len(different)} images are in one only, for example {min(different, key=str)!r}"
            )
    judged = {image: captions for image, captions in texts.items() if image in systems[0]}
    return [
        evaluate(judged, system, metrics, lambda name, file=file: step(f"{file.name}: {name}"))  # type: ignore[misc]
        for file, system in zip(files, systems, strict=True)
    ]


def _report(systems: list[Scores], confidence: float | None) -> dict[str, dict]:
    """Per metric its score, and what was asked for besides."""
    from visattn.evaluation.captions import bootstrap_interval, paired_test

    first, *others = systems
    report: dict[str, dict] = {}
    for name, score in first.corpus.items():
        row: dict = {"score": score}
        values = [scores[name] for scores in first.per_image.values()]
        if confidence is not None:
            row["interval_of_image_mean"] = list(bootstrap_interval(values, confidence))
        for second in others:
            row["second_score"] = second.corpus[name]
            theirs = [second.per_image[image][name] for image in first.per_image]
            difference = paired_test(values, theirs, confidence or 0.95)
            row["mean_difference"], row["p_value"] = difference.mean, difference.p_value
        report[name] = row
    return report


def _print_table(console: Console, report: dict[str, dict], files: list[str]) -> None:
    from rich.table import Table

    table = Table("metric", title="caption scores")
    table.add_column(files[0], justify="right")
    row = next(iter(report.values()))
    if "interval_of_image_mean" in row:
        table.add_column("interval of the image mean", justify="right")
    for file in files[1:]:
        for title in (file, "mean difference", "p"):
            table.add_column(title, justify="right")
    for name, row in report.items():
        cells = [name, f"{row['score']:.4f}"]
        if "interval_of_image_mean" in row:
            low, high = row["interval_of_image_mean"]
            cells.append(f"{low:.4f} to {high:.4f}")
        if "second_score" in row:
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
