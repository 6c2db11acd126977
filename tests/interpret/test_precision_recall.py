"""The figure of precision over recall."""

from typing import NamedTuple

import numpy as np
import pytest

from visattn.interpret import precision_recall_figure
from visattn.interpret.detection_pictures import class_color


class Curves(NamedTuple):
    precision: np.ndarray


def falling(classes, seed=0):
    """Curves that begin at 1 and fall at random recalls."""
    ends = np.random.default_rng(seed).uniform(0.3, 1, (10, 1, classes))
    return np.clip((ends - np.linspace(0, 1, 101)[None, :, None]) * 4, 0, 1)


def pixels_of(figure, color):
    return int((np.abs(np.asarray(figure).astype(int) - color).max(axis=2) <= 3).sum())


def test_every_class_has_a_curve_in_its_colour():
    figure = precision_recall_figure(Curves(falling(3)), ("cat", "$dog_1", "猫"))
    assert min(figure.size) > 400
    for label in range(3):
        assert pixels_of(figure, class_color(label)) > 150


def test_a_class_without_objects_is_left_out():
    precision = falling(3)
    precision[:, :, 1] = -1
    figure = precision_recall_figure(Curves(precision), ("cat", "dog", "eel"))
    assert pixels_of(figure, class_color(0)) > 150
    assert pixels_of(figure, class_color(1)) < 20
    precision_recall_figure(Curves(precision * 0 - 1), ("cat", "dog", "eel"))  # with nothing at all, empty axes


def test_of_many_classes_the_best_and_the_worst_are_named():
    precision = falling(80)
    order = np.argsort(-precision[0].mean(axis=0))
    figure = precision_recall_figure(Curves(precision), [f"kind {number}" for number in range(80)])
    assert pixels_of(figure, class_color(int(order[0]))) > 15
    assert pixels_of(figure, class_color(int(order[-1]))) > 15
    assert pixels_of(figure, (204, 204, 204)) > 1000


def test_names_must_fit():
    with pytest.raises(ValueError, match=r"precision .10, 101, 3. doesn't fit .IoUs, recalls, 2 classes."):
        precision_recall_figure(Curves(falling(3)), ("cat", "dog"))
