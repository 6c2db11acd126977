"""Pictures of what a network saw, thought and looked at."""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

_colormap = matplotlib.colormaps["inferno"]  # its brightness grows evenly, for every eye and on paper
_right, _wrong = "#0072b2", "#d55e00"  # blue and vermilion of Okabe and Ito's palette


def draw_attention(image: Image.Image, attention: Tensor, strength: float = 0.6) -> Image.Image:
    """Lays a map over a picture: bright where the network looks, the picture dimmed elsewhere.

    Args:
        attention: (H, W) in [0, 1], of any size.
        strength: of the colours, 0 to 1.
    """
    values = Image.fromarray((attention.float().cpu().numpy() * 255).astype(np.uint8))
    heat = np.asarray(values.resize(image.size, Image.Resampling.BICUBIC), dtype=np.float32) / 255  # (H, W)
    colors = _colormap(heat)[..., :3] * 255
    blend = strength * (0.35 + 0.65 * heat)[..., None]
    pixels = (1 - blend) * np.asarray(image.convert("RGB"), dtype=np.float32) + blend * colors
    return Image.fromarray(pixels.round().astype(np.uint8))


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
    figure = Figure(figsize=(columns * 2.3, rows * 1.62 + 0.3), dpi=130, layout="constrained", facecolor="white")
    figure.get_layout_engine().set(w_pad=0.05, h_pad=0.04, wspace=0.02, hspace=0.02)
    axes = figure.subplots(rows, columns, squeeze=False)
    names = classes if classes is not None else [str(number) for number in range(probabilities.shape[1])]
    for position, axis in enumerate(axes.flat):
        axis.set_axis_off()
        if position < len(images):
            pixels = (images[position].permute(1, 2, 0).numpy() * 255).round().astype(np.uint8)
            picture = enlarge(Image.fromarray(pixels))
            pair = np.concatenate([np.asarray(picture), np.asarray(draw_attention(picture, attention[position]))], 1)
            axis.imshow(pair)
            title(axis, probabilities[position], labels[position], names)
    correct = sum(int(row.argmax()) == label for row, label in zip(probabilities, labels, strict=True))
    figure.suptitle(f"{correct} of {len(images)} right; beside each image, where the network looked", fontsize=9)
    buffer = BytesIO()
    figure.savefig(buffer, format="png")
    return Image.open(buffer).convert("RGB")


def enlarge(picture: Image.Image, side: int = 160) -> Image.Image:
    """Small pictures keep their pixels visible; large ones are reduced."""
    factor = side / max(picture.size)
    size = (round(picture.width * factor), round(picture.height * factor))
    return picture.resize(size, Image.Resampling.NEAREST if factor > 2 else Image.Resampling.LANCZOS)


def title(axis: Axes, probabilities: Tensor, label: int, names: Sequence[str]) -> None:
    """Predicted class and probability; the true class below if it is another."""
    predicted = int(probabilities.argmax())
    text = f"{names[predicted]} {float(probabilities[predicted]):.0%}"
    if predicted != label:
        text += f"\nnot {names[label]}"
    size = 7.5 if len(text) < 26 else 5.5
    axis.set_title(text, fontsize=size, color=_right if predicted == label else _wrong, pad=3)
