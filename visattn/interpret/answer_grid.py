"""A picture of images with questions about them, and where a model looked for its answers."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2.functional import to_pil_image

from visattn.interpret.pictures import draw_attention, enlarge, printable, rendered, right_color, wrong_color
from visattn.interpret.questions import AnswerExplanation

_panel, _line, _gap = 1.3, 0.14, 0.14  # inches: of one of two panels, of a line of text, between cells


def answer_grid(
    images: Tensor,
    questions: Sequence[str],
    explanations: Sequence[AnswerExplanation],
    given: Sequence[str],
    columns: int = 4,
) -> Image.Image:
    """Each image beside the places that the answer rests on; below them the question and the answer.

    Args:
        images: (B, 3, H, W) in [0, 1].
        questions: about each image.
        explanations: of the answers to them.
        given: what people answered; "" where that is unknown. The answer is blue where it is the same, and orange with
            theirs behind it where it isn't.
        columns: pairs in a row.

    Raises:
        ValueError: there are no images, or not as many of the others.
    """
    if not len(images) == len(questions) == len(explanations) == len(given) or not len(images):
        raise ValueError(f"{len(images)} images, {len(questions)} questions, {len(explanations)} answers, {len(given)}")
    columns = min(columns, len(images))
    rows = -(-len(images) // columns)
    asked = [textwrap.wrap(printable(text), 44, max_lines=3, placeholder=" ...") or [""] for text in questions]
    width = 2 * _panel + _gap
    below = [
        _line * (1 + max(map(len, asked[row * columns : (row + 1) * columns]))) + 2 * _gap for row in range(rows)
    ]  # inches under the images of a row
    size = (columns * width + _gap, rows * _panel + sum(below) + _gap)
    figure = Figure(figsize=size, dpi=130, facecolor="white")
    top = size[1] - _gap
    for row in range(rows):
        for index in range(row * columns, min((row + 1) * columns, len(images))):
            left = _gap + (index - row * columns) * width
            picture = enlarge(to_pil_image(images[index].detach().float().cpu()), 200)
            pair = [np.asarray(picture), np.asarray(draw_attention(picture, explanations[index].attention))]
            axis = figure.add_axes(
                (left / size[0], (top - _panel) / size[1], 2 * _panel / size[0], _panel / size[1]), anchor="NW"
            )
            axis.imshow(np.concatenate(pair, axis=1))
            axis.set_axis_off()
            text: dict[str, Any] = {"va": "top", "fontsize": 7, "linespacing": 1.25, "parse_math": False}
            place, line = left / size[0], (top - _panel - 0.05) / size[1]
            figure.text(place, line, "\n".join(asked[index]), color="0.3", **text)
            found, true = explanations[index], given[index]
            answer = f"{found.answer} {found.probability:.0%}"
            if true and found.answer != true:
                answer += f", not {true}"
            color = "black" if not true else right_color if found.answer == true else wrong_color
            line -= _line * len(asked[index]) / size[1]
            figure.text(place, line, printable(answer), color=color, fontweight="bold", **text)
        top -= _panel + below[row]
    return rendered(figure)
