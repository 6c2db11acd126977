"""Boxes, names, scores and masks drawn over a picture."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence

import numpy as np
from matplotlib.font_manager import FontProperties, findfont
from PIL import Image, ImageDraw, ImageFont

from visattn.heads import Detections
from visattn.interpret.pictures import printable

Color = tuple[int, int, int]
_palette: tuple[Color, ...] = (  # Okabe and Ito's, without black, lighter where lines would vanish on dark pictures
    (230, 159, 0),
    (86, 180, 233),
    (0, 178, 130),
    (240, 228, 66),
    (66, 133, 244),
    (232, 93, 20),
    (221, 133, 180),
)
_mask_strength = 0.45


def draw_detections(
    picture: Image.Image, detections: Detections, classes: Sequence[str] | None = None, *, scores: bool = True
) -> Image.Image:
    """A picture with the box of each object, its class and score on it, and its mask over it; the surest on top.

    Args:
        picture: that the boxes are of.
        detections: boxes and masks in its pixels.
        classes: a name for each label; None shows numbers.
        scores: whether they are written behind the names.
    """
    image = picture.convert("RGB")
    labels, order = detections.labels.tolist(), range(len(detections.labels) - 1, -1, -1)
    if detections.masks is not None:
        pixels = np.array(image)
        for index in order:
            mask = detections.masks[index].detach().cpu().numpy().astype(bool)  # (height, width)
            color = np.array(class_color(labels[index]))
            pixels[mask] = ((1 - _mask_strength) * pixels[mask] + _mask_strength * color).round()
        image = Image.fromarray(pixels)
    draw = ImageDraw.Draw(image)
    side = max(image.size)
    line, font = max(round(side / 180), 2), ImageFont.truetype(findfont(FontProperties()), max(side / 36, 10))
    boxes = detections.boxes.detach().float().cpu().tolist()
    for index in order:
        draw_box(draw, boxes[index], class_color(labels[index]), line)
    taken: list[tuple[float, float, float, float]] = []
    for index in reversed(order):  # the surest first, whose name gets the best place
        text = class_name(labels[index], classes)
        text += f" {float(detections.scores[index]):.0%}" if scores else ""
        draw_name(draw, text, boxes[index], class_color(labels[index]), font, taken)
    return image


def class_color(label: int) -> Color:
    """A colour for each class, the same in every picture; those of neighbouring numbers are far apart."""
    if label < len(_palette):
        return _palette[label]
    hue = label * 0.618034 % 1.0  # the golden ratio: no two of the first hundreds meet
    red, green, blue = colorsys.hls_to_rgb(hue, (0.5, 0.65, 0.4)[label % 3], (0.9, 0.75)[label % 2])
    return round(255 * red), round(255 * green), round(255 * blue)


def class_name(label: int, classes: Sequence[str] | None) -> str:
    return printable(f"class {label}" if classes is None else classes[label])


def draw_box(draw: ImageDraw.ImageDraw, box: Sequence[float], color: Color, line: int) -> None:
    """A frame with a thin dark rim, which is seen on any picture."""
    left, top, right, bottom = box
    corners = (min(left, right), min(top, bottom), max(left, right), max(top, bottom))
    draw.rectangle(corners, outline=(0, 0, 0), width=line + 1)
    draw.rectangle(corners, outline=color, width=line)


def draw_name(
    draw: ImageDraw.ImageDraw,
    text: str,
    box: Sequence[float],
    color: Color,
    font: ImageFont.FreeTypeFont,
    taken: list[tuple[float, float, float, float]],
) -> None:
    """The name on its colour: above the box, or where there is no room within it, below it, or at its lower edge.

    Args:
        taken: the places of names before; gets that of this one.
    """
    left, top, right, bottom = draw.textbbox((0, 0), text, font=font)
    pad = 0.15 * font.size
    width, height = right - left + 2 * pad, bottom - top + 2 * pad
    limit = (max(draw.im.size[0] - width, 0), max(draw.im.size[1] - height, 0))
    x = min(max(box[0], 0), limit[0])
    places = [(x, min(max(y, 0), limit[1])) for y in (box[1] - height, box[1], box[3], box[3] - height)]
    free = (
        place
        for place in places
        if not any(meets((*place, place[0] + width, place[1] + height), other) for other in taken)
    )
    x, y = next(free, places[0])
    taken.append((x, y, x + width, y + height))
    draw.rectangle(taken[-1], fill=color)
    dark = 0.299 * color[0] + 0.587 * color[1] + 0.114 * color[2] < 140
    draw.text((x + pad - left, y + pad - top), text, font=font, fill=(255, 255, 255) if dark else (0, 0, 0))


def meets(one: tuple[float, float, float, float], other: tuple[float, float, float, float]) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]
