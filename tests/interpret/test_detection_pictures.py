"""Pictures of objects that were found: boxes, names, masks, and grids of them beside the truth."""

import numpy as np
import pytest
import torch
from PIL import Image

from visattn.heads import Detections
from visattn.interpret import detection_grid, draw_detections
from visattn.interpret.detection_pictures import class_color


def found(boxes, labels, scores=None, masks=None):
    scores = [0.9] * len(labels) if scores is None else scores
    return Detections(
        torch.tensor(boxes).float().view(-1, 4), torch.tensor(scores).float(), torch.tensor(labels).long(), masks
    )


def near(picture, color, tolerance=3):
    """Where a picture has a colour: (height, width), bool."""
    return np.abs(np.asarray(picture).astype(int) - color).max(axis=2) <= tolerance


def test_each_box_is_drawn_in_the_colour_of_its_class():
    picture = Image.new("RGB", (301, 211), (30, 30, 30))
    drawn = draw_detections(picture, found([[40, 50, 120, 130], [180, 90, 260, 180]], [0, 1]), ("cat", "dog"))
    for label, (left, top, right, bottom) in ((0, (40, 50, 120, 130)), (1, (180, 90, 260, 180))):
        places = near(drawn, class_color(label))
        assert places[top : bottom + 1, left].mean() > 0.7
        assert places[bottom, left : right + 1].mean() > 0.7
        assert not places[top + 12 : bottom - 12, left + 12 : right - 12].any()  # inside, nothing
    assert near(picture, (30, 30, 30)).all()  # the picture that was given is as before


def test_masks_shine_through_and_only_where_they_are():
    picture = Image.new("RGB", (120, 90), (200, 200, 200))
    masks = torch.zeros(1, 90, 120, dtype=torch.bool)
    masks[0, 30:60, 40:80] = True
    drawn = np.asarray(draw_detections(picture, found([[40, 30, 80, 60]], [2], masks=masks))).astype(float)
    inside = drawn[45, 60]
    expected = 0.55 * 200 + 0.45 * np.array(class_color(2))
    np.testing.assert_allclose(inside, expected, atol=1)
    np.testing.assert_array_equal(drawn[80, 10], 200)


def test_names_of_objects_beside_each_other_do_not_cover_each_other():
    picture = Image.new("RGB", (400, 300), (0, 0, 0))
    one, other = [100, 100, 200, 200], [102, 101, 202, 201]
    apart = draw_detections(picture, found([one], [0], [0.9]), ["x" * 9, "y" * 9])
    both = draw_detections(picture, found([one, other], [0, 1], [0.9, 0.8]), ["x" * 9, "y" * 9])
    name = near(apart, class_color(0))[:100].sum()
    assert name > 200
    assert near(both, class_color(0))[:100].sum() >= 0.9 * name  # the surer one's name is whole
    assert near(both, class_color(1)).sum() > 0.5 * name


@pytest.mark.parametrize(
    "boxes", [[[-50, -50, 500, 500]], [[10, 10, 10, 10]], [[90, 60, 20, 15]], [[0.2, 0.4, 119.9, 89.8]], []]
)
def test_boxes_of_every_kind_can_be_drawn(boxes):
    picture = Image.new("L", (120, 90), 70)
    drawn = draw_detections(picture, found(boxes, [200] * len(boxes)), None)
    assert drawn.size == picture.size
    assert (np.asarray(drawn) != 70).any() == bool(boxes)


def test_names_with_any_characters_are_drawn():
    picture = Image.new("RGB", (200, 100))
    for name in ("$x_{1}$", "Straße", "猫", "a" * 80, ""):
        draw_detections(picture, found([[20, 30, 150, 80]], [0]), [name])


def test_colours_of_classes_differ():
    colors = np.array([class_color(label) for label in range(91)])
    assert len(np.unique(colors, axis=0)) == 91
    first = colors[:12].astype(int)
    distances = np.abs(first[:, None] - first[None]).sum(axis=2) + 999 * np.eye(12, dtype=int)
    assert distances.min() > 40


def test_the_grid_shows_sure_predictions_left_and_the_truth_right():
    pictures = [Image.new("RGB", (97, 61), (120, 120, 120)), Image.new("RGB", (53, 89), (120, 120, 120))]
    predictions = [
        found([[10, 10, 50, 40], [60, 20, 90, 50]], [0, 1], [0.9, 0.2]),
        found([], []),
    ]
    truths = [
        {"boxes": torch.tensor([[60.0, 20, 90, 50]]), "labels": torch.tensor([1])},
        {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.long)},
    ]
    grid = detection_grid(pictures, predictions, truths, ("cat", "dog"), threshold=0.5, columns=1)
    width = grid.width
    columns = np.nonzero(near(grid, class_color(0), 12))[1]
    assert len(columns) > 100
    assert columns.max() < width / 2  # the prediction of class 0 is left only
    columns = np.nonzero(near(grid, class_color(1), 12))[1]
    assert len(columns) > 100
    assert columns.min() > width / 2  # the unsure one is left out, the truth is right
    assert grid.height > 400  # two rows


def test_masks_of_the_truth_are_drawn_too():
    picture = Image.new("RGB", (60, 60), (0, 0, 0))
    masks = torch.zeros(1, 60, 60, dtype=torch.uint8)
    masks[0, 20:50, 20:50] = 1
    truth = {"boxes": torch.tensor([[20.0, 20, 50, 50]]), "labels": torch.tensor([0]), "masks": masks}
    nothing = found([], [])
    with_mask = detection_grid([picture], [nothing], [truth], ("a",))
    without = detection_grid([picture], [nothing], [truth | {"masks": masks * 0}], ("a",))
    assert np.asarray(with_mask).mean() > np.asarray(without).mean() + 1


def test_numbers_that_differ_are_refused():
    with pytest.raises(ValueError, match="2 pictures, 1 predictions and 0 truths"):
        detection_grid([Image.new("RGB", (9, 9))] * 2, [found([], [])], [])
