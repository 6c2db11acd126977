"""`visattn classify`: the most probable classes of pictures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from visattn.cli.checkpoint import ArchitectureOption, CheckpointOption, DeviceOption

if TYPE_CHECKING:
    from torch import Tensor

    from visattn.heads import ImageClassifier


def main(
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE...", help="pictures, or folders of pictures")],
    checkpoint: CheckpointOption = None,
    architecture: ArchitectureOption = None,
    top: Annotated[int, typer.Option("--top", min=1, help="how many classes to show")] = 5,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, help="pictures at once")] = 32,
    device: DeviceOption = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="JSON instead of a table")] = False,
) -> None:
    """Shows the most probable classes of pictures.

    A picture that cannot be read is named on stderr, the others are classified, and the exit code is 1.

    Examples:

        visattn classify cat.jpg

        visattn classify photos/ --checkpoint outputs/RUN/model --top 3

        visattn classify cat.jpg -c google/vit-base-patch16-224 --json
    """
    from visattn.cli.checkpoint import open_model
    from visattn.cli.errors import errors_as_messages, report_error
    from visattn.cli.pictures import in_order_of, picture_paths
    from visattn.heads import ImageClassifier

    with errors_as_messages():
        paths = picture_paths(images)
        model = open_model(ImageClassifier, checkpoint, device, architecture)
        if model.head is None:
            raise ValueError(f"{checkpoint} has no classifier; visattn attend --method rollout needs none")
        rows, problems = classify(model, paths, batch_size, top)
    for problem in problems:
        report_error(problem["error"])
    if as_json:
        print(json.dumps(in_order_of(paths, rows + problems), indent=2))
    elif rows:
        print_predictions(rows)
    if problems:
        raise typer.Exit(1)


def classify(
    model: ImageClassifier, paths: list[Path], batch_size: int, top: int
) -> tuple[list[dict[str, Any]], list[dict[str, str]]]:
    """For each picture its predictions, and for each that cannot be read the error, as plain data."""
    from visattn.cli.pictures import picture_batches

    assert model.preprocess is not None
    rows: list[dict[str, Any]] = []
    problems: list[dict[str, str]] = []
    for batch, images in picture_batches(paths, model.preprocess, batch_size, "classifying", problems):
        for path, predictions in zip(batch, predict(model, images, top), strict=True):
            rows.append({"image": str(path), "predictions": predictions})
    return rows, problems


def predict(model: ImageClassifier, images: Tensor, top: int) -> list[list[dict[str, Any]]]:
    """The most probable classes of preprocessed images (B, 3, H, W), the first the most probable."""
    import torch

    with torch.inference_mode():
        logits = model(images.to(next(model.parameters()).device)).float()  # (B, classes)
    probabilities, indices = logits.softmax(dim=1).topk(min(top, logits.shape[1]))
    return [
        [
            {"class": class_name(model, index), "index": index, "probability": probability}
            for index, probability in zip(chosen, values, strict=True)
        ]
        for chosen, values in zip(indices.tolist(), probabilities.tolist(), strict=True)
    ]


def class_name(model: ImageClassifier, index: int) -> str:
    """The name of a class, or its number where names are unknown."""
    return str(index) if model.classes is None else model.classes[index]


def print_predictions(rows: list[dict[str, Any]]) -> None:
    """A table with a line for each class, and the name of the picture on the first of its lines."""
    from rich.bar import Bar
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(header_style="bold")
    table.add_column("image", overflow="fold")
    table.add_column("class", overflow="fold")
    table.add_column("probability", justify="right")
    table.add_column("", width=20)
    for row in rows:
        for place, prediction in enumerate(row["predictions"]):
            probability = prediction["probability"]
            table.add_row(
                Text(row["image"] if place == 0 else ""),
                Text(prediction["class"]),
                f"{probability:.1%}",
                Bar(1, 0, probability, width=20, color="blue"),
                end_section=place == len(row["predictions"]) - 1,
            )
    Console().print(table)
