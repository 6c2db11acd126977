"""A picture of images with the captions a model gives them and those that people gave."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from visattn.interpret.pictures import enlarge, rendered

_width, _image, _line, _gap = 2.6, 2.0, 0.135, 0.12  # inches: of a cell, of its image, of a line of text, between cells


def caption_grid(
    images: Tensor,
    captions: Sequence[str],
    references: Sequence[Sequence[str]],
    columns: int = 6,
    num_references: int = 2,
) -> Image.Image:
    """Each image above its caption, in black, and some of its references, in grey.

    Args:
        images: (B, 3, H, W) in [0, 1].
        captions: of each image, by the model.
        references: of each image, by people; any number.
        columns: images in a row.
        num_references: how many are shown at most.

    Raises:
        ValueError: there are no images, or not as many captions and references.
    """
    if not len(images) == len(captions) == len(references) or not len(images):
        raise ValueError(f"{len(images)} images, {len(captions)} captions and {len(references)} lists of references")
    columns = min(columns, len(images))
    cells = [
        (lines(caption or "(no words)"), [line for text in group[:num_references] for line in lines(text)])
        for caption, group in zip(captions, references, strict=True)
    ]
    rows = [cells[start : start + columns] for start in range(0, len(cells), columns)]
    heights = [_image + _gap * 2 + _line * (1 + max(len(ours) + len(theirs) for ours, theirs in row)) for row in rows]
    size = (columns * _width + _gap, sum(heights) + _gap)
    figure = Figure(figsize=size, dpi=130, facecolor="white")
    top = size[1] - _gap
    for row, height in enumerate(heights):
        for column, (ours, theirs) in enumerate(rows[row]):
            left = _gap + column * _width
            axis = figure.add_axes((left / size[0], (top - _image) / size[1], _image / size[0], _image / size[1]))
            axis.set_axis_off()
            axis.set_anchor("W")
            pixels = images[row * columns + column].detach().float().cpu().permute(1, 2, 0).numpy()
            picture = Image.fromarray((pixels * 255).round().astype(np.uint8))
            axis.imshow(np.asarray(enlarge(picture, 260)))
            below = top - _image - 0.05
            for text, color in ((ours, "black"), (theirs, "0.45")):
                figure.text(
                    left / size[0],
                    below / size[1],
                    "\n".join(text),
                    va="top",
                    fontsize=7,
                    color=color,
                    linespacing=1.25,
                    parse_math=False,
                )
                below -= _line * len(text) + 0.03
        top -= height
    return rendered(figure)


def lines(text: str, width: int = 46) -> list[str]:
    """A sentence on lines that fit under an image, at most four of them."""
    return textwrap.wrap(text, width, max_lines=4, placeholder=" ...") or [""]
