import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from visattn.data import CocoDetectionDataModule, CocoJsonDataModule, ImageFileError
from visattn.data.scene_coco import coco_instances
from visattn.data.scenes import draw_scene

shared = Path(__file__).parents[3] / "shared" / "data"


def write_scenes(file, folder, indices, size=48):
    folder.mkdir(parents=True, exist_ok=True)
    file.parent.mkdir(parents=True, exist_ok=True)
    content = coco_instances(0, indices, size)
    for index in indices:
        Image.fromarray(draw_scene(0, index, size).image).save(folder / f"{index:06}.png")
    file.write_text(json.dumps(content))
    return content


@pytest.fixture
def own(tmp_path):
    """A person's own set: ten scenes for training, four for the test."""
    write_scenes(tmp_path / "train.json", tmp_path / "images", range(10))
    write_scenes(tmp_path / "test.json", tmp_path / "images", range(10, 14))
    return tmp_path


def prepared(root, **options):
    options = {"annotations": "train.json", "test_annotations": "test.json", "validation_fraction": 0.2} | options
    data = CocoJsonDataModule(root, 48, 64, **options)
    data.setup()
    return data


def change(file, edit):
    content = json.loads(file.read_text())
    edit(content)
    file.write_text(json.dumps(content))


def test_splits_are_the_files_and_what_is_held_out(own):
    data = prepared(own)
    ids = {split: {image["id"] for image in data.ground_truth(split)["images"]} for split in data.splits}
    assert ids["test"] == {10, 11, 12, 13}
    assert len(ids["validation"]) == 2
    assert ids["train"] | ids["validation"] == set(range(10))
    assert data.classes == ("circle", "square", "triangle", "cross")
    same = prepared(own, test_annotations="train.json", validation_annotations="train.json")
    assert len(same.ground_truth("test")["images"]) == len(same.ground_truth("train")["images"]) == 10
    held = prepared(own, test_annotations=None, test_fraction=0.3)
    assert [len(held.ground_truth(split)["images"]) for split in ("train", "validation", "test")] == [6, 1, 3]


def test_the_ground_truth_is_the_file(own):
    truth, file = prepared(own, masks=True).ground_truth("test"), json.loads((own / "test.json").read_text())
    assert truth["annotations"] == file["annotations"]
    assert truth["images"] == file["images"]


@pytest.mark.parametrize("workers", [0, 1])
def test_pictures_in_memory_and_in_files_give_the_same_batches(own, workers):
    options = {"masks": True, "num_workers": workers, "augmentation": {"flip": 0.5, "scale": (0.5, 2), "crop": 0.5}}
    one, other = prepared(own, **options), prepared(own, memory=0.0, **options)
    assert one.splits["train"].pictures is not None
    assert other.splits["train"].pictures is None
    for mine, yours in (
        (one.test_dataloader(), other.test_dataloader()),
        (one.train_dataloader(), other.train_dataloader()),
    ):
        for (batch, targets, _), (their_batch, their_targets, _) in zip(mine, yours, strict=True):
            assert torch.equal(batch.images, their_batch.images)
            assert all(torch.equal(a["masks"], b["masks"]) for a, b in zip(targets, their_targets, strict=True))


def test_large_pictures_are_kept_in_the_size_they_are_shown_in(tmp_path):
    write_scenes(tmp_path / "train.json", tmp_path / "images", range(4), size=201)
    options = {"test_annotations": None, "validation_fraction": 0.3, "test_fraction": 0.3, "batch_size": 1}
    whole = prepared(tmp_path, **options)
    assert {picture.shape[1:] for picture in whole.splits["train"].pictures} == {(48, 48)}
    assert whole.open("train", 0).size == (201, 201)
    batch, targets, _ = next(iter(whole.test_dataloader()))
    expected = whole.preprocess(whole.open("test", 0))
    assert torch.equal(batch.images[0, :, :48, :48], expected)
    parts = prepared(tmp_path, augmentation={"crop": 1.0}, **options)
    assert {picture.shape[1:] for picture in parts.splits["train"].pictures} == {(96, 96)}
    assert {picture.shape[1:] for picture in parts.splits["test"].pictures} == {(48, 48)}
    truth = whole.ground_truth("test")["annotations"]
    first = [one["bbox"][0] for one in truth if one["image_id"] == targets[0]["image_id"]]
    assert torch.allclose(targets[0]["boxes"][:, 0], torch.tensor(first) * 48 / 201)


def test_empty_boxes_and_those_outside_train_nothing_and_are_reported(own):
    def edit(content):
        boxes = [[5, 5, 0, 9], [5, 5, 9, -3], [60, 5, 9, 9], [40, 40, 30, 30]]
        for annotation, box in zip(content["annotations"], boxes, strict=False):
            annotation |= {"bbox": box, "image_id": 3}

    change(own / "train.json", edit)
    with pytest.warns(UserWarning, match=r"train\.json: 3 of \d+ boxes have no pixel .* annotations 1, 2, 3"):
        data = prepared(own, validation_annotations="test.json")
    _, targets, _ = data.batches("train", data.augmentation).__getitems__([(0, 3)])
    truth = [one for one in data.ground_truth("train")["annotations"] if one["image_id"] == 3]
    assert len(targets[0]["boxes"]) == len(truth) - 3
    assert [40, 40, 48, 48] in targets[0]["boxes"].tolist()  # clipped
    assert [one["bbox"] for one in truth[:3]] == [[5, 5, 0, 9], [5, 5, 9, -3], [60, 5, 9, 9]]


def test_the_ground_truth_scores_as_the_file_does(own, tmp_path):
    """Crowds, empty boxes and those beyond the image count as pycocotools defines."""

    def edit(content):
        content["annotations"][0]["bbox"] = [5, 5, 0, 9]
        content["annotations"][1] |= {"iscrowd": 1, "bbox": [-4, -4, 80, 30]}
        content["annotations"][2]["bbox"] = [40, 40, 30, 30]

    change(own / "test.json", edit)
    with pytest.warns(UserWarning, match="boxes have no pixel"):
        data = prepared(own)
    file, ours = COCO(str(own / "test.json")), COCO()
    ours.dataset = data.ground_truth("test")
    ours.createIndex()
    draws = np.random.default_rng(0)
    results = [
        {"image_id": one["image_id"], "category_id": one["category_id"], "score": draws.random(), "bbox": box}
        for one in file.dataset["annotations"]
        for box in ([one["bbox"][0] + draws.normal(), *one["bbox"][1:]], [3, 3, 20, 20])
    ]
    stats = []
    for truth in (file, ours):
        evaluation = COCOeval(truth, truth.loadRes(results), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
        stats.append(evaluation.stats)
    assert np.array_equal(*stats)
    assert 0 < stats[0][0] < 1


def test_what_cannot_be_used_is_an_error_or_left_out_and_counted(own):
    (own / "images" / "000002.png").write_bytes(b"no picture")
    (own / "images" / "000003.png").unlink()
    Image.new("RGB", (48, 31)).save(own / "images" / "000004.png")
    change(own / "train.json", lambda content: content["annotations"][0].update(category_id=77))
    with pytest.raises(ImageFileError, match=r"000003\.png: there is no such file, yet .*train\.json lists it"):
        prepared(own)
    for memory in (4.0, 0.0):
        with pytest.warns(UserWarning, match="4 pictures or objects are left out"):
            data = prepared(own, on_error="skip", memory=memory, validation_annotations="test.json")
        assert [image["id"] for image in data.ground_truth("train")["images"]] == [0, 1, 5, 6, 7, 8, 9]
        assert {one["image_id"] for one in data.ground_truth("train")["annotations"]} == {0, 1, 5, 6, 7, 8, 9}


@pytest.mark.parametrize("memory", [4.0, 0.0])
def test_a_picture_of_another_size_than_the_file_says_is_an_error(own, memory):
    change(own / "test.json", lambda content: content["images"][2].update(height=47))
    with pytest.raises(ImageFileError, match=r"000012\.png: has height and width \[48, 48\] .* \[47, 48\] .*image 12"):
        prepared(own, memory=memory)


@pytest.mark.parametrize("memory", [4.0, 0.0])
def test_a_picture_that_its_exif_turns_is_described_upright(own, memory):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (48, 31)).save(own / "images" / "000012.jpg", exif=exif)
    change(own / "test.json", lambda content: content["images"][2].update(file_name="000012.jpg", height=48, width=31))
    prepared(own, memory=memory)
    change(own / "test.json", lambda content: content["images"][2].update(height=31, width=48))
    with pytest.raises(ImageFileError, match=r"pixels, upright as its EXIF orientation says, but \[31, 48\]"):
        prepared(own, memory=memory)


def test_missing_folders_and_files_are_named(own, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"set dataset\.root"):
        prepared(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"set dataset\.images"):
        prepared(own, images="photos")
    with pytest.raises(FileNotFoundError, match=r"missing\.json: there is no such file of objects"):
        prepared(own, annotations="missing.json")
    with pytest.raises(ValueError, match="on_error 'ignore' is unknown"):
        prepared(own, on_error="ignore")


def test_the_official_folders_of_coco(tmp_path):
    write_scenes(tmp_path / "annotations" / "instances_train2014.json", tmp_path / "train2014", range(8))
    write_scenes(tmp_path / "annotations" / "instances_val2014.json", tmp_path / "val2014", range(20, 23))
    data = CocoDetectionDataModule(tmp_path, 48, 64, year=2014, validation_fraction=0.25)
    data.setup()
    assert [len(data.ground_truth(split)["images"]) for split in ("train", "validation", "test")] == [6, 2, 3]
    data = CocoDetectionDataModule(tmp_path, 48, 64, year=2014, validation_fraction=0)
    data.setup()
    assert [len(data.ground_truth(split)["images"]) for split in ("train", "validation", "test")] == [8, 3, 3]


@pytest.mark.skipif(not (shared / "coco_mini").is_dir(), reason="the folder shared/data/coco_mini is missing")
def test_a_part_of_coco_itself_is_read_with_masks_and_crowds():
    data = CocoDetectionDataModule(shared / "coco_mini", 96, 128, masks=True, memory=0.0, validation_fraction=0)
    data.setup()
    assert (data.num_classes, data.category_ids[0], data.category_ids[-1]) == (80, 1, 90)
    assert (data.classes[0], data.classes[-1]) == ("person", "toothbrush")
    file = COCO(str(shared / "coco_mini" / "annotations" / "instances_val2017.json"))
    truth = data.ground_truth("test")
    assert len(truth["images"]) == 188
    expected = {one["id"]: one for one in file.dataset["annotations"]}
    assert {one["id"] for one in truth["annotations"]} == set(expected)
    for one in truth["annotations"][::20]:
        assert one["bbox"] == expected[one["id"]]["bbox"]
        assert np.array_equal(file.annToMask(one), file.annToMask(expected[one["id"]]))
    assert any(one["iscrowd"] for one in truth["annotations"])


@pytest.mark.skipif(not (shared / "pennfudan").is_dir(), reason="the folder shared/data/pennfudan is missing")
def test_pedestrians_are_read_with_masks():
    data = CocoJsonDataModule(
        shared / "pennfudan",
        96,
        128,
        annotations="instances_train.json",
        validation_annotations="instances_val.json",
        test_annotations="instances_val.json",
        masks=True,
        memory=0.0,
    )
    data.setup()
    assert data.classes == ("person",)
    batch, targets, _ = data.examples(5)
    for target, (height, width) in zip(targets, batch.sizes.tolist(), strict=True):
        assert target["masks"].shape == (len(target["boxes"]), height, width)
        share = target["area"] / (target["boxes"][:, 2:] - target["boxes"][:, :2]).prod(1)
        assert ((share > 0.15) & (share < 0.95)).all()
