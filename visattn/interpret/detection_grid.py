"""A picture of images with the objects that a model finds in them beside those that are there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image

from visattn.heads import Detections
from visattn.interpret.detection_pictures import draw_detections
from visattn.interpret.pictures import enlarge, rendered

_panel, _gap, _line, _head = 2.3, 0.1, 0.2, 0.35  # inches: side of one of two panels, between, of text, of the title


def detection_grid(
    pictures: Sequence[Image.Image],
    predictions: Sequence[Detections],
    truths: Sequence[Mapping[str, Any]],
    classes: Sequence[str] | None = None,
    threshold: float = 0.5,
    columns: int = 3,
) -> Image.Image:
    """Each picture twice: with what was found in it, and with what is there.

    Args:
        pictures: of any sizes.
        predictions: of each picture, in its pixels.
        truths: of each picture, in its pixels: "boxes" (n, 4) as left, top, right, bottom, "labels" (n,) and, if they
            are there, "masks" (n, height, width).
        classes: a name for each label; None shows numbers.
        threshold: predictions with greater scores are drawn.
        columns: pairs in a row.

    Raises:
        ValueError: there are no pictures, or not as many of the others.
    """
    if not len(pictures) == len(predictions) == len(truths) or not len(pictures):
        raise ValueError(f"{len(pictures)} pictures, {len(predictions)} predictions and {len(truths)} truths")
    columns = min(columns, len(pictures))
    rows = [range(start, min(start + columns, len(pictures))) for start in range(0, len(pictures), columns)]
    # A picture's panel is a square at most, and each row as high as its highest picture.
    heights = [
        _line + _gap + _panel * max(pictures[index].height / max(pictures[index].size) for index in row) for row in rows
    ]
    width = 2 * _panel + 3 * _gap
    size = (columns * width + _gap, sum(heights) + _head + _gap)
    figure = Figure(figsize=size, dpi=150, facecolor="white")
    top = size[1] - _head
    for row, height in zip(rows, heights, strict=True):
        for column, index in enumerate(row):
            found, truth = predictions[index].above(threshold), as_detections(truths[index])
            counts = (f"found {len(found.labels)}", f"there are {len(truth.labels)}")
            for side, (objects, scores) in enumerate(((found, True), (truth, False))):
                panel = drawn(pictures[index], objects, classes, scores)
                wide, high = (_panel * length / max(panel.size) for length in panel.size)
                left = _gap + column * width + side * (_panel + _gap)
                place = (left / size[0], (top - _line - high) / size[1], wide / size[0], high / size[1])
                axis = figure.add_axes(place)
                axis.imshow(np.asarray(panel))
                axis.set_axis_off()
                figure.text(left / size[0], (top - 0.14) / size[1], counts[side], fontsize=7, color="0.35")
        top -= height
    title = f"Left, what the model finds (scores above {threshold:g}); right, what is there"
    figure.text(_gap / size[0], 1 - 0.23 / size[1], title, fontsize=9, fontweight="bold")
    return rendered(figure)


def as_detections(truth: Mapping[str, Any]) -> Detections:
    """Targets as if they had been found, the smallest first, so that they are drawn over the others."""
    boxes, labels = torch.as_tensor(truth["boxes"]).float().view(-1, 4), torch.as_tensor(truth["labels"])
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    order = area.argsort()
    masks = truth.get("masks")
    return Detections(
        boxes[order],
        torch.ones(len(order)),
        labels[order],
        None if masks is None else torch.as_tensor(masks)[order].bool(),
    )


def drawn(picture: Image.Image, objects: Detections, classes: Sequence[str] | None, scores: bool) -> Image.Image:
    """The picture at the size of a panel with the objects on it."""
    panel = enlarge(picture.convert("RGB"), 440)
    return draw_detections(
        panel,
        objects.resized((picture.height, picture.width), (panel.height, panel.width)),
        classes,
        scores=scores,
    )
