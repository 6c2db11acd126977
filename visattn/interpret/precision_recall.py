"""Curves of precision over recall: for each class, and for each demand on how well boxes fit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from visattn.interpret.detection_pictures import class_color
from visattn.interpret.pictures import printable, rendered

_named = 12  # classes whose curves are told apart


class PrecisionCurves(Protocol):
    """What the curves are drawn from; `visattn.evaluation.KindScores` is such."""

    @property
    def precision(self) -> np.ndarray: ...


def precision_recall_figure(scores: PrecisionCurves, classes: Sequence[str]) -> Image.Image:
    """Beside each other: the curve of each class at an IoU of 0.5, and the mean of the classes at all IoUs.

    Of many classes those that are found best and worst have colours and names, the others are grey.

    Args:
        scores: with `precision` (10 IoUs from 0.5 to 0.95, recalls from 0 to 1, classes), -1 for classes without
            objects.
        classes: their names.

    Raises:
        ValueError: there is not one name for each class.
    """
    precision = np.asarray(scores.precision, dtype=float)  # (IoUs, recalls, classes)
    if precision.ndim != 3 or precision.shape[2] != len(classes):
        raise ValueError(f"precision {precision.shape} doesn't fit (IoUs, recalls, {len(classes)} classes)")
    recall, present = np.linspace(0, 1, precision.shape[1]), (precision > -1).any(axis=(0, 1))
    figure = Figure(figsize=(9.6, 4.4), dpi=130, facecolor="white")
    figure.set_layout_engine("constrained")
    by_class, by_overlap = figure.subplots(1, 2)
    draw_classes(by_class, recall, precision[0], np.flatnonzero(present), classes)
    draw_overlaps(by_overlap, recall, precision[:, :, present])
    for axis in (by_class, by_overlap):
        axis.set(xlim=(0, 1), ylim=(0, 1.02), xlabel="recall", ylabel="precision")
        axis.grid(color="0.9")
        axis.spines[["top", "right"]].set_visible(False)
        if axis.get_legend_handles_labels()[0]:
            axis.legend(fontsize=7, loc="lower left", framealpha=0.85)
    return rendered(figure)


def draw_classes(
    axis: Axes, recall: np.ndarray, precision: np.ndarray, present: np.ndarray, classes: Sequence[str]
) -> None:
    """The curves at an IoU of 0.5, precision (recalls, classes), of the classes that are present."""
    average = precision.mean(axis=0)  # (classes,)
    order = sorted(present.tolist(), key=lambda label: -average[label])
    named = order if len(order) <= _named else order[: _named // 2] + order[-_named // 2 :]
    for label in order:
        if label not in named:
            axis.plot(recall, precision[:, label], color="0.8", linewidth=0.7)
    for label in named:
        color = np.array(class_color(label)) / 255
        axis.plot(recall, precision[:, label], color=color, label=f"{printable(classes[label])} {average[label]:.3f}")
    if order:
        mean = precision[:, order].mean(axis=1)
        axis.plot(recall, mean, color="black", linestyle="--", label=f"mean {mean.mean():.3f}")
    others = f", the best and the worst of {len(order)}" if len(named) < len(order) else ""
    axis.set_title(f"IoU 0.5: classes with their AP50{others}", fontsize=9)


def draw_overlaps(axis: Axes, recall: np.ndarray, precision: np.ndarray) -> None:
    """The mean curve over the classes, precision (IoUs, recalls, classes that are present), at each IoU."""
    axis.set_title("All classes: the better a box must fit, the fewer do", fontsize=9)
    if not precision.shape[2]:
        return
    colors = matplotlib.colormaps["viridis"](np.linspace(0, 0.9, len(precision)))
    for overlap, curve, color in zip(
        np.linspace(0.5, 0.95, len(precision)), precision.mean(axis=2), colors, strict=True
    ):
        axis.plot(recall, curve, color=color, label=f"IoU {overlap:.2f}: {curve.mean():.3f}")
