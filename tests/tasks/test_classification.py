"""Whitening by the data, and several views of a test image."""

from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

import train
from tests.tasks.small_runs import trainer
from visattn.backbones import LocalHybrid
from visattn.backbones.hybrid import WhitenedPatches
from visattn.data import ShapesDataModule
from visattn.tasks import ImageClassification
from visattn.tasks.classification import logits_of_views

conf = Path(train.__file__).parent / "conf"


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


def small_task(**values):
    keywords = OmegaConf.to_container(OmegaConf.load(conf / "task" / "classification.yaml"), resolve=False)
    del keywords["_target_"]
    data = ShapesDataModule(16, train_scenes=40, validation_scenes=8, test_scenes=8)
    data.setup()
    backbone = LocalHybrid(16, dims=(8,), depths=(1,), num_heads=(1,), stem="whitening")
    return data, ImageClassification(data, backbone, **keywords | {"seed": 0, "replace_head": True} | values)


def test_a_new_backbone_adapts_to_the_training_images():
    data, task = small_task()
    stem = WhitenedPatches(3, 2, 1)
    stem.fit(data.examples(40, "train")[0])
    torch.testing.assert_close(task.model.backbone.stem.filters, stem.filters)


def test_an_impossible_number_of_views_is_refused():
    with pytest.raises(ValueError, match=r"1, 2 .* or 6"):
        small_task(test_views=3)


def test_a_test_reports_one_view_and_the_mean_of_several(tmp_path):
    data, task = small_task(test_views=2)
    run = trainer(tmp_path)
    run.test(task, datamodule=data, verbose=False)
    assert {"test/accuracy", "test/accuracy_views"} <= run.callback_metrics.keys()
