import numpy as np
import pytest
import torch
from pycocotools import mask as run_lengths

from visattn.data import ShapesDetectionDataModule, draw_scene
from visattn.data.scene_coco import coco_instances


@pytest.fixture(scope="module")
def data():
    data = ShapesDetectionDataModule(48, train_scenes=11, validation_scenes=5, test_scenes=300, seed=4)
    data.setup()
    return data


def test_scenes_are_those_of_draw_scene_and_of_the_coco_files(data):
    truth, expected = data.ground_truth("test"), coco_instances(4, range(300), 48)
    assert truth["images"] == expected["images"]
    assert [{"id": c["id"], "name": c["name"]} for c in expected["categories"]] == truth["categories"]
    assert truth["annotations"] == expected["annotations"]
    for index in (0, 255, 256, 299):
        assert np.array_equal(np.asarray(data.open("test", index)), draw_scene(4, index, 48).image)


def test_no_scene_is_in_two_splits(data):
    ids = [image["id"] for split in data.splits for image in data.ground_truth(split)["images"]]
    assert sorted(ids) == list(range(316))


def test_the_data_says_what_it_holds(data):
    assert data.task == "detection"
    assert data.classes == ("circle", "square", "triangle", "cross")
    assert data.category_ids == (1, 2, 3, 4)
    assert (data.num_classes, data.image_size, data.has_masks) == (4, 48, True)


def test_targets_are_the_objects_of_the_images(data):
    batch, targets, index = next(iter(data.test_dataloader()))
    assert batch.images.shape == (8, 3, 64, 64)
    assert batch.sizes.tolist() == [[48, 48]] * 8
    assert index.tolist() == list(range(8))
    for place, target in enumerate(targets):
        things = draw_scene(4, place, 48).objects
        assert [data.classes[label] for label in target["labels"]] == [thing.kind for thing in things]
        assert torch.equal(target["masks"], torch.from_numpy(np.stack([thing.mask for thing in things])).byte())
        assert target["image_id"] == place
        assert target["orig_size"].tolist() == [48, 48]
        boxes = [[x, y, x + width, y + height] for x, y, width, height in (thing.bounding_box for thing in things)]
        assert target["boxes"].tolist() == boxes
        assert type(target["boxes"]) is torch.Tensor


def test_without_masks_there_are_none():
    data = ShapesDetectionDataModule(48, train_scenes=3, validation_scenes=2, test_scenes=2, masks=False)
    data.setup()
    _, targets, _ = next(iter(data.train_dataloader()))
    assert "masks" not in targets[0]
    assert "segmentation" not in data.ground_truth("train")["annotations"][0]
    with pytest.raises(ValueError, match="copy_paste needs masks"):
        ShapesDetectionDataModule(48, masks=False, augmentation={"copy_paste": 0.5})


def test_masks_of_the_ground_truth_are_for_pycocotools(data):
    annotation = data.ground_truth("test")["annotations"][0]
    mask = run_lengths.decode(annotation["segmentation"])
    assert np.array_equal(mask, draw_scene(4, 0, 48).objects[0].mask)
