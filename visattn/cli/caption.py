"""`visattn caption`: what is on pictures, in words, and where the network looked for each of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from visattn.cli.checkpoint import CaptionerOption, DeviceOption

if TYPE_CHECKING:
    from torch import Tensor

    from visattn.heads import Caption, ImageCaptioner


def main(
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE...", help="pictures, or folders of pictures")],
    checkpoint: CaptionerOption = None,
    beams: Annotated[int, typer.Option("--beams", min=1, help="beginnings that the search keeps; 1: greedy")] = 5,
    nbest: Annotated[int, typer.Option("--nbest", min=1, help="captions per picture, best first")] = 1,
    max_words: Annotated[
        int, typer.Option("--max-words", min=1, help="words of a caption, or tokens where words are made of several")
    ] = 20,
    explain: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE|FOLDER",
            help="draw for each word of the best caption where the network looked: into a .png or .jpg file, or for "
            "several pictures into a folder",
            show_default=False,
        ),
    ] = None,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, help="pictures at once")] = 16,
    device: DeviceOption = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="JSON instead of a table")] = False,
) -> None:
    """Describes pictures in words.

    A picture that cannot be read is named on stderr, the others are described, and the exit code is 1.

    Examples:

        visattn caption photo.jpg

        visattn caption photo.jpg --nbest 3 --explain words.png

        visattn caption photos/ -c outputs/RUN/model --json
    """
    from visattn.cli.checkpoint import open_model
    from visattn.cli.errors import errors_as_messages, report_error
    from visattn.cli.pictures import drawing_paths, in_order_of, picture_batches, picture_paths
    from visattn.heads import ImageCaptioner

    with errors_as_messages():
        if nbest > beams:
            raise ValueError(f"--nbest {nbest} of --beams {beams}: a search keeps no more captions than beams")
        paths = picture_paths(images)
        drawings = {} if explain is None else drawing_paths("--explain", explain, paths, "words", "described")
        model = open_model(ImageCaptioner, checkpoint, device)
        assert model.preprocess is not None
        rows: list[dict[str, Any]] = []
        problems: list[dict[str, str]] = []
        for batch, pixels in picture_batches(paths, model.preprocess, batch_size, "describing", problems):
            captions = model.caption(pixels, num_beams=beams, max_new_tokens=max_words, num_return=nbest)
            for number, (path, found) in enumerate(zip(batch, captions, strict=True)):
                row: dict[str, Any] = {"image": str(path), "captions": [caption._asdict() for caption in found]}
                if path in drawings:
                    draw(model, path, pixels[number : number + 1], found[0], drawings[path])
                    row["explanation"] = str(drawings[path])
                rows.append(row)
    for problem in problems:
        report_error(problem["error"])
    if as_json:
        print(json.dumps(in_order_of(paths, rows + problems), indent=2, ensure_ascii=False))
    elif rows:
        print_captions(rows)
    if problems:
        raise typer.Exit(1)


def draw(model: ImageCaptioner, path: Path, image: Tensor, caption: Caption, output: Path) -> None:
    """Writes the picture of where the model looked for each word; image (1, 3, H, W)."""
    from visattn.data import open_image
    from visattn.files import atomic_path
    from visattn.interpret import view_of, word_attention, word_figure

    assert model.preprocess is not None
    words = word_attention(model, image.to(next(model.parameters())), caption.token_ids)
    picture = view_of(model.preprocess, open_image(path))
    figure = word_figure(picture, [word.word for word in words], [word.attention for word in words], caption.text)
    with atomic_path(output) as temporary:
        figure.save(temporary)


def print_captions(rows: list[dict[str, Any]]) -> None:
    """A table with a line for each caption, and the name of the picture on the first of its lines."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(header_style="bold")
    table.add_column("image", overflow="fold")
    table.add_column("caption", overflow="fold")
    table.add_column("log p", justify="right")
    for row in rows:
        for place, caption in enumerate(row["captions"]):
            table.add_row(
                Text(row["image"] if place == 0 else ""),
                Text(caption["text"]),
                f"{caption['log_probability']:.2f}",
                end_section=place == len(row["captions"]) - 1,
            )
    Console().print(table)
