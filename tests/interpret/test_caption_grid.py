"""The picture of images with captions."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from visattn.interpret.caption_grid import caption_grid


def test_every_image_stands_above_its_caption_whatever_characters_it_has():
    images = torch.tensor([[0.8, 0.1, 0.1], [0.1, 0.7, 0.1], [0.1, 0.1, 0.9]])[:, :, None, None].expand(-1, -1, 23, 17)
    captions = ["costs $5 and $6 \\frac", "", "a word " * 60]
    picture = np.asarray(caption_grid(images, captions, [["one"], [], ["two", "three", "four"]], columns=2)).astype(int)
    places = []
    for image in images:
        color = (image[:, 0, 0] * 255).round().int().numpy()
        rows, columns = np.nonzero(np.abs(picture - color).max(axis=2) <= 1)
        assert len(rows) > 10_000
        places.append((int(rows.min()), int(columns.min()), int(rows.max()), int(columns.max())))
    (top, left, bottom, right), second, third = places
    assert abs(top - second[0]) <= 1
    assert second[1] > right
    assert third[0] > bottom
    assert abs(third[1] - left) <= 1
    assert (bottom - top) / (right - left) == pytest.approx(23 / 17, rel=0.05)
    below = picture[bottom + 3 : third[0] - 3, left:right]
    assert below.min() < 60  # the caption is black


def test_numbers_that_differ_are_refused():
    with pytest.raises(ValueError, match="2 images, 1 captions and 2 lists of references"):
        caption_grid(torch.rand(2, 3, 8, 8), ["a"], [["a"], ["b"]])
