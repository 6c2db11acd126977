"""A picture of what the networks of the zoo learned: accuracy against multiply-adds, and against images a second."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Annotation
from matplotlib.ticker import LogLocator, NullFormatter
from matplotlib.transforms import Bbox

from visattn.benchmark.zoo_results import Training, reference


def training_figure(rows: Sequence[Training]) -> Figure:
    """Two panels with a point for each training, and its name beside it.

    Raises:
        ValueError: there are none.
    """
    if not rows:
        raise ValueError("there are no trainings to draw")
    figure = Figure(figsize=(13, 6), dpi=120, facecolor="white", layout="constrained")
    canvas = FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2, sharey=True)
    left.set_xlabel("multiply-adds of one image, millions")
    right.set_xlabel("images a second, forward")
    left.set_ylabel("test accuracy, %")
    panels = ((left, [row.multiply_adds / 1e6 for row in rows]), (right, [row.forward for row in rows]))
    for axes, places in panels:
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5)))
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.margins(0.12, 0.08)
        axes.grid(color="0.92", which="both")
        axes.set_axisbelow(True)
        for row, place in zip(rows, places, strict=True):
            is_reference = row.name == reference
            axes.plot(
                place,
                100 * row.accuracy,
                marker="D" if is_reference else "o",
                color="tab:red" if is_reference else "tab:blue",
                markersize=7,
            )
    figure.suptitle(title(rows))
    canvas.draw()  # where everything is in pixels is known from here on, and stays so
    figure.set_layout_engine("none")
    for axes, places in panels:
        points = [(place, 100 * row.accuracy) for row, place in zip(rows, places, strict=True)]
        label_points(axes, points, [row.name for row in rows])
    return figure


def title(rows: Sequence[Training]) -> str:
    minutes = sorted({row.minutes for row in rows})
    threads = sorted({row.threads for row in rows})
    return (
        f"CIFAR-10 after {' or '.join(f'{number:g}' for number in minutes)} minutes of training "
        f"on {' or '.join(map(str, threads))} {'thread' if threads == [1] else 'threads'}"
    )


def label_points(axes: Axes, points: Sequence[tuple[float, float]], names: Sequence[str]) -> list[Annotation]:
    """Writes a name beside each point, as near as it can be without touching another name or point.

    The figure must have been drawn, so that its layout is settled.

    Args:
        points: (x, y) in the units of the axes.
    """
    renderer = axes.figure.canvas.get_renderer()  # type: ignore[attr-defined]
    pixels = axes.transData.transform(points)
    taken = [Bbox.from_extents(x - 5, y - 5, x + 5, y + 5) for x, y in pixels]
    labels = []
    # The crowded first: they have the least choice.
    order = sorted(range(len(points)), key=lambda index: crowding(pixels, index))
    for index in order:
        best: tuple[float, tuple[float, float], Bbox] | None = None
        label = axes.annotate(names[index], points[index], (0, 0), textcoords="offset points", fontsize=8)
        for distance, angle in itertools.product(
            (7, 12, 18, 26, 36, 48, 62, 80, 100, 125, 150, 180, 220), range(0, 360, 30)
        ):
            offset = (distance * math.cos(math.radians(angle)), distance * math.sin(math.radians(angle)))
            place_label(label, offset)
            box = label.get_window_extent(renderer).padded(1)
            overlap = sum(common_area(box, other) for other in taken) + area(box) - common_area(box, axes.bbox)
            if best is None or overlap < best[0]:
                best = (overlap, offset, box)
            if overlap == 0:
                break
        assert best is not None
        place_label(label, best[1])
        if math.hypot(*best[1]) > 15:
            axes.annotate(
                "",
                points[index],
                xytext=best[1],
                textcoords="offset points",
                arrowprops={"arrowstyle": "-", "color": "0.6", "linewidth": 0.6},
            )
        taken.append(best[2])
        labels.append(label)
    return labels


def place_label(label: Annotation, offset: tuple[float, float]) -> None:
    """Moves a label so that its nearest edge or corner is at an offset in points from what it names."""
    label.set_position(offset)
    horizontal, vertical = offset
    label.set_horizontalalignment("left" if horizontal > 3 else "right" if horizontal < -3 else "center")
    steep = abs(vertical) > abs(horizontal)
    label.set_verticalalignment("center" if not steep else "bottom" if vertical > 0 else "top")


def crowding(pixels: np.ndarray, index: int) -> float:
    """The distance to the nearest other point."""
    x, y = pixels[index]
    return min((math.hypot(x - u, y - v) for other, (u, v) in enumerate(pixels) if other != index), default=0.0)


def area(box: Bbox) -> float:
    return float(box.width * box.height)


def common_area(box: Bbox, other: Bbox) -> float:
    wide = min(box.x1, other.x1) - max(box.x0, other.x0)
    high = min(box.y1, other.y1) - max(box.y0, other.y0)
    return max(wide, 0.0) * max(high, 0.0)
