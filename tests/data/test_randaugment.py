import math

import pytest
import torch
from torchvision.transforms import v2

from visattn.data.randaugment import randaugment, randaugment_operations


def pictures(number=40, height=29, width=37):
    return torch.randint(0, 256, (number, 3, height, width), dtype=torch.uint8, generator=torch.manual_seed(0))


def test_every_operation_is_one_of_torchvision(monkeypatch):
    """torchvision's own choice is steered to each operation and direction in turn, and compared."""
    images, theirs = pictures(4), v2.RandAugment(1, magnitude=13)
    names = list(v2.RandAugment._AUGMENTATION_SPACE)
    ours = randaugment_operations(13, 29, 37)
    assert len(ours) == len(names) == 14
    for position, operation in enumerate(ours):
        for direction, chance in ((1, 1.0), (-1, 0.0)):
            monkeypatch.setattr(torch, "randint", lambda *_, position=position: torch.tensor(position))
            monkeypatch.setattr(torch, "rand", lambda *_, chance=chance: torch.tensor(chance))
            assert torch.equal(operation(images, direction), theirs(images)), names[position]


def test_an_image_is_augmented_the_same_in_any_company():
    images, draws = pictures(), torch.rand(40, 2, dtype=torch.float64)
    together = randaugment(images, draws, 9)
    alone = torch.cat([randaugment(images[i : i + 1], draws[i : i + 1], 9) for i in range(40)])
    assert torch.equal(together, alone)


def test_operations_follow_each_other_in_the_order_of_the_draws():
    images = pictures(5)
    translate, rotate = 3.1 / 14, 5.1 / 14
    draws = torch.tensor([[translate, rotate]] * 5, dtype=torch.float64)
    operations = randaugment_operations(20, 29, 37)
    assert torch.equal(randaugment(images, draws, 20), operations[5](operations[3](images, 1), 1))
    assert not torch.equal(randaugment(images, draws, 20), randaugment(images, draws.flip(1), 20))


def test_given_images_stay_as_they_are():
    images = pictures()
    before = images.clone()
    randaugment(images, torch.rand(40, 3, dtype=torch.float64), 30)
    assert torch.equal(images, before)


def test_without_magnitude_few_images_change():
    images = pictures(1400)
    draws = torch.rand(1400, 1, dtype=torch.float64, generator=torch.manual_seed(1))
    changed = (randaugment(images, draws, 0) != images).flatten(1).any(1)
    neutral = (draws[:, 0] * 14).long() < 11  # all but solarize (at 255), autocontrast and equalize
    assert not changed[neutral].any()


@pytest.mark.parametrize("magnitude", [0, 9, 30])
def test_posterize_keeps_four_to_eight_bits(magnitude):
    levels = randaugment_operations(magnitude, 29, 37)[10](pictures(), 1).unique()
    assert len(levels) == 2 ** round(8 - 4 * magnitude / 30)
    assert math.log2(len(levels)) >= 4
