"""Whitening by the data, and several views of a test image."""

import pytest
import torch

from visattn.backbones import LocalHybrid
from visattn.tasks.classification import logits_of_views


class Corner(torch.nn.Module):
    """The pixel at the upper left as the logit."""

    def forward(self, images):
        return images[:, :, 0, 0]


def test_two_views_are_an_image_and_its_mirror_image():
    images = torch.arange(12.0).view(1, 1, 3, 4)
    assert logits_of_views(Corner(), images, 2).item() == (0 + 3) / 2


def test_six_views_shift_both_by_a_pixel_and_weigh_those_as_much_as_the_first_two():
    images = torch.arange(12.0).view(1, 1, 3, 4)
    # up and to the left the corner is 5 or, mirrored, the reflected 10's column; down and to the right 5 again
    padded = torch.nn.functional.pad(images, (1, 1, 1, 1), mode="reflect")[0, 0]
    shifted = [(padded[2, 2] + padded[2, -1]) / 2, (padded[0, 0] + padded[0, -3]) / 2]
    expected = ((0 + 3) / 2 + sum(shifted) / 2) / 2
    assert logits_of_views(Corner(), images, 6).item() == pytest.approx(expected.item())
