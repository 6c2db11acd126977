"""`visattn detect`: the objects on pictures, with boxes around them, and where the network looked for each."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from visattn.cli.checkpoint import DetectorOption, DeviceOption

if TYPE_CHECKING:
    from PIL import Image

    from visattn.heads import Detections, ObjectDetector


def main(
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE...", help="pictures, or folders of pictures")],
    checkpoint: DetectorOption = None,
    threshold: Annotated[
        float, typer.Option("--threshold", min=0.0, max=1.0, help="objects with greater scores are shown")
    ] = 0.5,
    max_detections: Annotated[int, typer.Option("--max-detections", min=1, help="objects of a picture, at most")] = 100,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE|FOLDER",
            help="draw the objects: into a .png or .jpg file, or for several pictures into a folder",
            show_default=False,
        ),
    ] = None,
    explain: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE|FOLDER",
            help="draw for each object where the network looked, likewise",
            show_default=False,
        ),
    ] = None,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, help="pictures at once")] = 4,
    device: DeviceOption = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="JSON instead of a table")] = False,
) -> None:
    """Finds the objects on pictures.

    Boxes are left, top, right and bottom in pixels of the picture. A picture that cannot be read is named on stderr,
    the others are searched, and the exit code is 1.

    Examples:

        visattn detect street.jpg -c outputs/RUN/model --output found.png

        visattn detect photos/ -c facebook/detr-resnet-50 --threshold 0.7 --json

        visattn detect street.jpg -c facebook/detr-resnet-50 --explain attention.png
    """
    from visattn.cli.checkpoint import open_model
    from visattn.cli.errors import errors_as_messages, report_error
    from visattn.cli.pictures import drawing_paths, in_order_of, picture_paths, read_batches
    from visattn.data import open_image
    from visattn.heads import ObjectDetector

    with errors_as_messages():
        paths = picture_paths(images)
        drawings = {} if output is None else drawing_paths("--output", output, paths, "objects", "searched")
        explanations = {} if explain is None else drawing_paths("--explain", explain, paths, "attention", "searched")
        if same := {file.resolve() for file in drawings.values()} & {file.resolve() for file in explanations.values()}:
            raise ValueError(f"--output and --explain would both be written to {min(same)}; name another")
        model = open_model(ObjectDetector, checkpoint, device)
        rows: list[dict[str, Any]] = []
        problems: list[dict[str, str]] = []
        for batch, pictures in read_batches(paths, open_image, batch_size, "searching", problems):
            detections = model.detect(pictures, threshold, max_detections=max_detections)
            for path, picture, found in zip(batch, pictures, detections, strict=True):
                row = row_of(model, path, picture, found)
                if path in drawings:
                    draw(model, picture, found, drawings[path])
                    row["output"] = str(drawings[path])
                if path in explanations:
                    draw_attention(model, picture, threshold, path.name, explanations[path])
                    row["explanation"] = str(explanations[path])
                rows.append(row)
    for problem in problems:
        report_error(problem["error"])
    if as_json:
        print(json.dumps(in_order_of(paths, rows + problems), indent=2, ensure_ascii=False))
    elif rows:
        print_objects(rows, threshold)
    if problems:
        raise typer.Exit(1)


def row_of(model: ObjectDetector, path: Path, picture: Image.Image, found: Detections) -> dict[str, Any]:
    """What was found in a picture, as plain data; masks as COCO's run lengths."""
    from visattn.evaluation.detection import coco_results

    labels = found.labels.tolist()
    entries = coco_results(found, 0, range(model.num_classes))
    objects = []
    for label, box, entry in zip(labels, found.boxes.tolist(), entries, strict=True):
        name = str(label) if model.classes is None else model.classes[label]
        thing: dict[str, Any] = {"class": name, "label": label, "score": entry["score"], "box": box}
        if "segmentation" in entry:
            thing["segmentation"] = entry["segmentation"]
        objects.append(thing)
    return {"image": str(path), "width": picture.width, "height": picture.height, "detections": objects}


def draw(model: ObjectDetector, picture: Image.Image, found: Detections, output: Path) -> None:
    """Writes the picture with the objects on it; a small one is enlarged, so that names can be read."""
    from visattn.files import atomic_path
    from visattn.interpret import draw_detections
    from visattn.interpret.pictures import enlarge

    size = (picture.height, picture.width)
    shown = picture if max(size) >= 480 else enlarge(picture.convert("RGB"), 480)
    drawn = draw_detections(shown, found.resized(size, (shown.height, shown.width)), model.classes)
    with atomic_path(output) as temporary:
        drawn.save(temporary)


def draw_attention(model: ObjectDetector, picture: Image.Image, threshold: float, name: str, output: Path) -> None:
    """Writes the picture of where the model looked for each object."""
    from visattn.files import atomic_path
    from visattn.interpret import object_attention, object_figure

    objects = object_attention(model, picture, threshold)
    figure = object_figure(picture, objects, model.classes, f"{name}: where the decoder looked for each object")
    with atomic_path(output) as temporary:
        figure.save(temporary)


def print_objects(rows: list[dict[str, Any]], threshold: float) -> None:
    """A table with a line for each object, and the name of the picture on the first of its lines."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(header_style="bold")
    table.add_column("image", overflow="fold")
    table.add_column("object", overflow="fold")
    table.add_column("score", justify="right")
    table.add_column("box", justify="right")
    for row in rows:
        if not row["detections"]:
            table.add_row(Text(row["image"]), Text(f"none above {threshold:g}", style="dim"), "", "", end_section=True)
        for place, thing in enumerate(row["detections"]):
            table.add_row(
                Text(row["image"] if place == 0 else ""),
                Text(thing["class"]),
                f"{thing['score']:.1%}",
                " ".join(f"{side:.0f}" for side in thing["box"]),
                end_section=place == len(row["detections"]) - 1,
            )
    Console().print(table)
