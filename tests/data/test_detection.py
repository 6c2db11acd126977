import numpy as np
import pytest
import torch

from visattn.data import ShapesDetectionDataModule
from visattn.data.detection import DetectionData, DetectionSplit
from visattn.data.detection_files import Instances
from visattn.data.shapes_detection import draw_split


class TwoSizes(DetectionData):
    """Scenes of two sizes, in turn."""

    def read_splits(self):
        self.classes, self.category_ids = ("circle", "square", "triangle", "cross"), (3, 5, 90, 91)
        small, large = (draw_split(self.seed, range(6), size, self.has_masks) for size in (40, 61))
        parts = [(small, large)[index % 2].instances.select([index]) for index in range(6)]
        instances = Instances(
            [],
            np.concatenate([part.image_ids for part in parts]),
            np.concatenate([part.sizes for part in parts]),
            np.concatenate([[0], np.cumsum([part.first[1] for part in parts])]),
            *(np.concatenate([getattr(part, name) for part in parts]) for name in Instances._fields[4:9]),
            [mask for part in parts for mask in part.masks] if self.has_masks else None,
        )
        pictures = [(small, large)[index % 2].pictures[index] for index in range(6)]
        return {split: DetectionSplit(pictures, instances) for split in ("train", "validation", "test")}


def prepared(**options):
    data = TwoSizes(52, 80, divisor=16, **options)
    data.setup()
    return data


def equal(one, other):
    """Whether two batches are the same, bit for bit."""
    same = all(torch.equal(mine, yours) for mine, yours in zip([*one[0], one[2]], [*other[0], other[2]], strict=True))
    for mine, yours in zip(one[1], other[1], strict=True):
        same &= mine.keys() == yours.keys()
        same &= all(torch.equal(torch.as_tensor(mine[name]), torch.as_tensor(yours[name])) for name in mine)
    return same


def test_a_batch_of_evaluation_holds_whole_pictures_in_order():
    data = prepared(batch_size=4, masks=True)
    batch, targets, index = next(iter(data.val_dataloader()))
    assert index.tolist() == [0, 1, 2, 3]
    assert batch.images.shape == (4, 3, 64, 64)
    assert batch.sizes.tolist() == [[52, 52]] * 4
    assert [target["orig_size"].tolist() for target in targets] == [[40, 40], [61, 61]] * 2
    truth = data.ground_truth("validation")
    for target in targets:
        height, width = target["orig_size"].tolist()
        of_image = [one for one in truth["annotations"] if one["image_id"] == target["image_id"]]
        assert [data.category_ids[label] for label in target["labels"]] == [one["category_id"] for one in of_image]
        boxes = target["boxes"] * torch.tensor([width, height, width, height]) / 52
        corners = [[x, y, x + w, y + h] for x, y, w, h in (one["bbox"] for one in of_image)]
        assert torch.allclose(boxes, torch.tensor(corners), atol=1e-4)
        areas = torch.tensor([one["area"] for one in of_image]) * 52**2 / (height * width)
        assert torch.allclose(target["area"], areas)
        assert target["masks"].shape == (len(of_image), 52, 52)
        assert target["iscrowd"].tolist() == [0] * len(of_image)


def test_the_pictures_are_normalised_and_the_padding_is_zero():
    data = prepared(mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7))
    batch, _, _ = data.examples(2)
    assert (batch.images.permute(0, 2, 3, 1)[batch.padding] == 0).all()
    expected = data.preprocess(data.open("test", 0))
    assert torch.equal(batch.images[0, :, :52, :52], expected)


def test_a_new_mean_is_used_by_the_loaders():
    data = prepared()
    data.preprocess = data.preprocess.with_colors_of(prepared(mean=(0, 0, 0), std=(1, 1, 1)).preprocess)
    assert next(iter(data.val_dataloader()))[0].images.min() >= 0


augmentation = {"flip": 0.5, "scale": (0.6, 1.5), "crop": 0.5, "photometric": 0.5, "mosaic": 0.3, "copy_paste": 0.3}


@pytest.mark.parametrize("workers", [0, 1])
def test_a_run_goes_on_within_an_epoch_bit_for_bit(workers):
    def loader(number):
        return prepared(
            batch_size=2, masks=True, seed=3, augmentation=augmentation, num_workers=number
        ).train_dataloader()

    whole = loader(0)
    whole.sampler.set_epoch(4)
    batches = list(whole)
    assert len(batches) == 3
    resumed = loader(workers)
    resumed.load_state_dict({"epoch": 4, "batches_done": 1})
    resumed.sampler.set_epoch(4)
    rest = list(resumed)
    assert len(rest) == 2
    assert all(equal(one, other) for one, other in zip(batches[1:], rest, strict=True))
    whole.sampler.set_epoch(5)
    assert not any(equal(one, other) for one, other in zip(batches, whole, strict=True))


def test_an_index_that_fills_up_stays_minus_one():
    batches = prepared().batches("test")
    _, targets, index = batches.__getitems__([(0, 5), (0, -1)])
    assert index.tolist() == [5, -1]
    assert len(targets) == 2


def test_crowds_are_left_out_of_training_and_kept_in_the_ground_truth():
    data = prepared(batch_size=6)
    data.splits["train"].instances.crowd[0] = True
    _, targets, index = next(iter(data.train_dataloader()))
    first = targets[index.tolist().index(0)]
    number = data.splits["train"].instances.first[1]
    assert len(first["labels"]) == number - 1
    annotations = data.ground_truth("train")["annotations"]
    assert [one["iscrowd"] for one in annotations[:2]] == [1, 0]
    _, targets, _ = next(iter(data.val_dataloader()))
    assert targets[0]["iscrowd"].tolist() == [1] + [0] * (number - 1)


def test_the_annotation_id_0_that_coco_evaluation_takes_for_none_is_numbered_anew():
    data = prepared()
    assert [one["id"] for one in data.ground_truth("test")["annotations"][:2]] != [7, 8]
    data.splits["test"].instances.ids[:] = np.arange(len(data.splits["test"].instances.ids))
    assert [one["id"] for one in data.ground_truth("test")["annotations"][:2]] == [1, 2]


def test_pictures_without_objects_make_batches():
    data = prepared(masks=True, augmentation=augmentation, batch_size=6)
    split = data.splits["train"]
    empty = split.instances.select(range(6))._replace(first=np.zeros(7, dtype=int), masks=[])
    empty = empty._replace(**{name: getattr(empty, name)[:0] for name in Instances._fields[4:9]})
    data.splits["train"] = split._replace(instances=empty)
    loader = data.train_dataloader()
    for epoch in range(5):
        loader.sampler.set_epoch(epoch)
        for batch, targets, _ in loader:
            assert torch.isfinite(batch.images).all()
            for target, size in zip(targets, batch.sizes.tolist(), strict=True):
                assert target["boxes"].shape == (0, 4)
                assert target["labels"].shape == (0,)
                assert target["masks"].shape == (0, *size)
    truth = data.ground_truth("train")
    assert (len(truth["images"]), truth["annotations"]) == (6, [])


def test_examples_are_spread_over_the_split():
    data = ShapesDetectionDataModule(32, train_scenes=2, validation_scenes=2, test_scenes=9)
    data.setup()
    assert data.examples(3)[2].tolist() == [0, 4, 8]
    assert data.examples(100)[2].tolist() == list(range(9))
