"""`visattn ask`: answers to questions about a picture, and what they rest on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from visattn.cli.checkpoint import AnswererOption, DeviceOption

if TYPE_CHECKING:
    from torch import Tensor

    from visattn.heads import Answer, VisualQuestionAnswerer


def main(
    image: Annotated[Path, typer.Argument(metavar="IMAGE", help="a picture", show_default=False)],
    questions: Annotated[
        list[str], typer.Argument(metavar="QUESTION...", help="about the picture, each in quotes", show_default=False)
    ],
    checkpoint: AnswererOption = None,
    top: Annotated[int, typer.Option("--top", min=1, help="answers to each question, best first")] = 3,
    explain: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="draw what the best answer rests on, words and places, and where each word looked; .png or .jpg",
            show_default=False,
        ),
    ] = None,
    device: DeviceOption = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="JSON instead of a table")] = False,
) -> None:
    """Answers questions about a picture.

    The percentages are the accuracy that the model expects of each answer by itself; they don't sum to 100.

    Examples:

        visattn ask photo.jpg "what color is the bus?" -c outputs/RUN/model

        visattn ask photo.jpg "is there a dog?" "how many people are there?" -c outputs/RUN/model --json

        visattn ask photo.jpg "where is the red shape?" -c outputs/RUN/model --explain why.png
    """
    from visattn.cli.checkpoint import open_model
    from visattn.cli.errors import errors_as_messages, report_warning
    from visattn.cli.pictures import check_output
    from visattn.data.preprocess import picture_batch
    from visattn.heads import VisualQuestionAnswerer

    with errors_as_messages():
        if explain is not None:
            check_output("--explain", explain)
            if explain.resolve() == image.resolve():
                raise ValueError(f"--explain {explain}: is the picture itself; choose another name")
            if len(questions) > 1:
                raise ValueError(f"--explain {explain}: shows one question; ask {len(questions)} one by one")
        model = open_model(VisualQuestionAnswerer, checkpoint, device)
        pixels = picture_batch(image, model.preprocess, next(model.parameters()))  # (1, 3, H, W)
        answers = model.answer(pixels, questions, num_return=top)
        for question in questions:
            if unknown := unknown_words(model, question):
                report_warning(f"{question}: the model has not learned {', '.join(unknown)}")
        if explain is not None:
            draw(model, image, pixels, questions[0], explain)
    if as_json:
        rows = [
            {"question": question, "answers": [answer._asdict() for answer in found]}
            for question, found in zip(questions, answers, strict=True)
        ]
        print(json.dumps(rows, indent=2, ensure_ascii=False))
    else:
        print_answers(questions, answers)


def unknown_words(model: VisualQuestionAnswerer, question: str) -> list[str]:
    """The words of a question that the model's vocabulary lacks, as they are written."""
    encoding = model.tokenizer.tokenizer.encode(question, add_special_tokens=False)
    spans = [
        span
        for number, span in zip(encoding.ids, encoding.offsets, strict=True)
        if number == model.tokenizer.unknown_id
    ]
    return [question[start:end] for start, end in spans]


def draw(model: VisualQuestionAnswerer, image: Path, pixels: Tensor, question: str, output: Path) -> None:
    """Writes the picture of what the best answer to a question rests on; pixels (1, 3, H, W)."""
    from visattn.data import open_image
    from visattn.files import atomic_path
    from visattn.interpret import explain_answer, view_of, word_figure

    assert model.preprocess is not None
    found = explain_answer(model, pixels, question)
    figure = word_figure(
        view_of(model.preprocess, open_image(image)),
        [found.answer, *(f"{word.word} ({word.share:.0%})" for word in found.words)],
        [found.attention, *(word.attention for word in found.words)],
        f"{question} {found.answer} ({found.probability:.0%})",
    )
    with atomic_path(output) as temporary:
        figure.save(temporary)


def print_answers(questions: list[str], answers: list[list[Answer]]) -> None:
    """A table with a line for each answer, and the question on the first of its lines."""
    from rich.bar import Bar
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(header_style="bold")
    table.add_column("question", overflow="fold")
    table.add_column("answer", overflow="fold")
    table.add_column("accuracy", justify="right")
    table.add_column("", width=20)
    for question, found in zip(questions, answers, strict=True):
        for place, answer in enumerate(found):
            table.add_row(
                Text(question if place == 0 else ""),
                Text(answer.text),
                f"{answer.probability:.1%}",
                Bar(1, 0, answer.probability, width=20, color="blue"),
                end_section=place == len(found) - 1,
            )
    Console().print(table)
