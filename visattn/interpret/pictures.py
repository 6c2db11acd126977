"""Pictures of what a network saw, thought and looked at."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from io import BytesIO

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font
from matplotlib.patches import Rectangle
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2.functional import to_pil_image

from visattn.data import Preprocess

_colormap = matplotlib.colormaps["inferno"]  # its brightness grows evenly, for every eye and on paper
right_color, wrong_color = "#0072b2", "#d55e00"  # blue and vermilion of Okabe and Ito's palette


def draw_attention(image: Image.Image, attention: Tensor, strength: float = 0.75) -> Image.Image:
    """Lays a map over a picture: bright colours where the network looks, the picture dim and grey elsewhere.

    Args:
        attention: (H, W) in [0, 1], of any size.
        strength: of the colours, 0 to 1.
    """
    values = Image.fromarray(attention.detach().float().cpu().numpy())
    heat = np.asarray(values.resize(image.size, Image.Resampling.BICUBIC)).clip(0, 1)[..., None]  # (H, W, 1)
    colors = _colormap(heat[..., 0])[..., :3] * 255
    # Grey, so that the colours of the map are not taken for those of the picture.
    grey = np.asarray(image.convert("L").convert("RGB"), dtype=np.float32)
    base = np.asarray(image.convert("RGB"), dtype=np.float32)
    base = (1 - strength) * base + strength * grey
    blend = strength * (0.3 + 0.5 * heat)
    pixels = (1 - blend) * base + blend * colors
    return Image.fromarray(pixels.round().astype(np.uint8))


def attention_figure(
    image: Image.Image,
    attention: Tensor,
    title: str,
    caption: str = "",
    mark: tuple[float, float, float, float] | None = None,
) -> Image.Image:
    """A picture beside the same with a map over it, under a title, with a scale of the colours.

    Args:
        image: what the network saw.
        attention: (H, W) in [0, 1], of any size.
        title: says what the map shows.
        caption: a second line, smaller.
        mark: (top, left, bottom, right) of a place to outline, such as the query, as parts of height and width.
    """
    picture = enlarge(image.convert("RGB"), 480)
    overlay = draw_attention(picture, attention)
    width, height = picture.width / 100, picture.height / 100  # inches at 100 pixels each
    margin, gap, head = 0.25, 0.2, 0.85 if caption else 0.6
    total = (2 * width + gap + 2 * margin + 0.65, height + head + margin)
    figure = Figure(figsize=total, dpi=150, facecolor="white")
    for index, panel in enumerate((picture, overlay)):
        left = margin + index * (width + gap)
        axis = figure.add_axes((left / total[0], margin / total[1], width / total[0], height / total[1]))
        axis.imshow(np.asarray(panel), interpolation="nearest")
        axis.set_axis_off()
        if mark is not None:
            outline(axis, mark, panel.size)
    bar = figure.add_axes(
        ((2 * width + gap + 2 * margin - 0.1) / total[0], margin / total[1], 0.1 / total[0], height / total[1])
    )
    bar.imshow(np.linspace(1, 0, 256)[:, None], cmap=_colormap, aspect="auto")
    bar.set_xticks([])
    bar.set_yticks([0, 255], ["most", "least"], fontsize=8)
    bar.yaxis.tick_right()
    bar.tick_params(length=0)
    for spine in bar.spines.values():
        spine.set_visible(False)
    figure.text(margin / total[0], 1 - 0.36 / total[1], title, fontsize=11, fontweight="bold")
    figure.text(margin / total[0], 1 - 0.64 / total[1], caption, fontsize=9, color="0.35")
    return rendered(figure)


def view_of(preprocess: Preprocess, picture: Image.Image, side: int = 480) -> Image.Image:
    """What a network sees of a picture, in as much detail as the picture has.

    Args:
        preprocess: of the network.
        side: the longer side of the result in pixels is at most so much, or that of the network's image.
    """
    size = preprocess.image_size
    # How often the network's image fits into what the picture itself has to show.
    detail = min(picture.height / preprocess.resize[0], picture.width / preprocess.resize[1])
    factor = 1.0 if preprocess.fit == "none" else max(1.0, min(detail, side / max(size)))
    return to_pil_image(preprocess.at([round(length * factor) for length in size]).pixels(picture))


def word_figure(
    image: Image.Image, words: Sequence[str], attention: Sequence[Tensor], title: str, columns: int | None = None
) -> Image.Image:
    """A picture, and for each word of its caption the same with a map over it, below the word.

    Args:
        image: what the network saw.
        words: as they are to be printed.
        attention: for each word (H, W) in [0, 1], of any size.
        title: the caption.
        columns: panels in a row; None is at most 6, in rows of about equal length.

    Raises:
        ValueError: there are more words than maps or fewer, or columns is below 1.

    Source: the manner of Xu et al. 2015, https://arxiv.org/abs/1502.03044, figure 5.
    """
    if len(words) != len(attention) or (columns is not None and columns < 1):
        raise ValueError(f"{len(words)} words with {len(attention)} maps in {columns} columns")
    picture = enlarge(image.convert("RGB"), 240)
    panels = [picture, *(draw_attention(picture, values) for values in attention)]
    return panel_figure(panels, ["", *words], title, columns)


def panel_figure(
    panels: Sequence[Image.Image], labels: Sequence[str], title: str, columns: int | None = None
) -> Image.Image:
    """Pictures of one size in rows, a label above each and a title above all.

    Args:
        columns: panels in a row; None is at most 6, in rows of about equal length.
    """
    rows = -(-len(panels) // (columns or 6))
    columns = columns or -(-len(panels) // rows)
    width, height = panels[0].width / 100, panels[0].height / 100  # inches at 100 pixels each
    gap, margin, above = 0.12, 0.2, 0.32
    lines = textwrap.wrap(printable(title), max(int(columns * (width + gap) / 0.105), 20))
    head = 0.24 * len(lines)
    total = (columns * (width + gap) - gap + 2 * margin, head + rows * (height + above) + 2 * margin)
    figure = Figure(figsize=total, dpi=150, facecolor="white")
    for index, (label, panel) in enumerate(zip(labels, panels, strict=True)):
        row, column = divmod(index, columns)
        left, bottom = margin + column * (width + gap), total[1] - margin - head - (row + 1) * (height + above)
        axis = figure.add_axes((left / total[0], bottom / total[1], width / total[0], height / total[1]))
        axis.imshow(np.asarray(panel), interpolation="nearest")
        axis.set_axis_off()
        size = min(12.0, 115 * width / max(len(label), 1))  # points; long words become small rather than meet
        axis.set_title(printable(label), fontsize=size, pad=4, parse_math=False)
    for number, line in enumerate(lines):
        place = (margin / total[0], 1 - (margin + 0.24 * number) / total[1])
        figure.text(*place, line, fontsize=12, fontweight="bold", va="top", parse_math=False)
    return rendered(figure)


def printable(text: str) -> str:
    """The text with a replacement character for each that matplotlib's font cannot draw."""
    font = get_font(findfont(FontProperties()))
    return "".join(character if font.get_char_index(ord(character)) else "\ufffd" for character in text)


def outline(axis: Axes, mark: tuple[float, float, float, float], size: tuple[int, int]) -> None:
    """A white frame with a dark rim, visible on any picture of this (width, height)."""
    top, left, bottom, right = mark
    corner = (left * size[0] - 0.5, top * size[1] - 0.5)
    for color, line in (("black", 3.0), ("white", 1.4)):
        axis.add_patch(
            Rectangle(corner, (right - left) * size[0], (bottom - top) * size[1], fill=False, color=color, lw=line)
        )


def rendered(figure: Figure) -> Image.Image:
    """The figure as a picture."""
    buffer = BytesIO()
    figure.savefig(buffer, format="png")
    return Image.open(buffer).convert("RGB")


def prediction_grid(
    images: Tensor,
    attention: Tensor,
    probabilities: Tensor,
    labels: Sequence[int],
    classes: Sequence[str] | None = None,
    columns: int = 6,
) -> Image.Image:
    """Each image beside its attention, with the predicted class and, where that is wrong, the true one.

    Args:
        images: (B, 3, H, W) in [0, 1].
        attention: (B, H, W) in [0, 1].
        probabilities: (B, classes).
        labels: the true classes.
        classes: their names; None shows numbers.
        columns: pairs in a row.
    """
    columns = min(columns, len(images))
    rows = -(-len(images) // columns)
    figure = Figure(figsize=(columns * 2.3, rows * 1.62 + 0.3), dpi=130, facecolor="white")
    figure.set_layout_engine("constrained", w_pad=0.05, h_pad=0.04, wspace=0.02, hspace=0.02)
    axes = figure.subplots(rows, columns, squeeze=False)
    names = classes if classes is not None else [str(number) for number in range(probabilities.shape[1])]
    for position, axis in enumerate(axes.flat):
        axis.set_axis_off()
        if position < len(images):
            pixels = (images[position].cpu().permute(1, 2, 0).numpy() * 255).round().astype(np.uint8)
            picture = enlarge(Image.fromarray(pixels))
            pair = np.concatenate([np.asarray(picture), np.asarray(draw_attention(picture, attention[position]))], 1)
            axis.imshow(pair)
            title(axis, probabilities[position], labels[position], names)
    correct = sum(int(row.argmax()) == label for row, label in zip(probabilities, labels, strict=True))
    figure.suptitle(f"{correct} of {len(images)} right; beside each image, where the network looked", fontsize=9)
    return rendered(figure)


def enlarge(picture: Image.Image, side: int = 160) -> Image.Image:
    """Small pictures keep their pixels visible; large ones are reduced."""
    factor = side / max(picture.size)
    size = (round(picture.width * factor), round(picture.height * factor))
    return picture.resize(size, Image.Resampling.NEAREST if factor > 4 else Image.Resampling.LANCZOS)


def title(axis: Axes, probabilities: Tensor, label: int, names: Sequence[str]) -> None:
    """Predicted class and probability; the true class below if it is another."""
    predicted = int(probabilities.argmax())
    text = f"{names[predicted]} {float(probabilities[predicted]):.0%}"
    if predicted != label:
        text += f"\nnot {names[label]}"
    size = 7.5 if len(text) < 26 else 5.5
    axis.set_title(text, fontsize=size, color=right_color if predicted == label else wrong_color, pad=3)
