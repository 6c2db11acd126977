import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from visattn.data import (
    CaptionFileError,
    CaptionJsonDataModule,
    CocoCaptionsDataModule,
    Flickr8kDataModule,
    ImageFileError,
)

real = Path(__file__).parents[3] / "shared" / "data"
plain = {"min_count": 1, "mean": (0, 0, 0), "std": (1, 1, 1), "batch_size": 2}


def color(number):
    return 40 + 8 * number, 250 - 9 * number, 100


def save(path, number):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (30 + number, 20), color(number)).save(path, quality=95)


def captions_file(path, numbers, file_name="{:012}.jpg"):
    """COCO's format, each picture with two captions."""
    content = {
        "images": [{"id": number, "file_name": file_name.format(number)} for number in numbers],
        "annotations": [
            {"id": 2 * number + k, "image_id": number, "caption": f"picture {word} number {number}"}
            for number in numbers
            for k, word in enumerate(("of", "with"))
        ],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def prepared(cls, root, **options):
    data = cls(root, 16, **plain | options)
    data.prepare_data()
    data.setup()
    return data


def ids(data):
    return {split: sorted(part.image_ids) for split, part in data.splits.items()}


def assert_captions_are_of_their_images(data):
    """By the colour of each picture, through training batches and those of evaluation."""
    data.pairs = "images"
    data.batch_size = 1
    for images, token_ids, index in data.train_dataloader():
        number = data.tokenizer.decode(token_ids[0]).split()[-1]
        assert str(data.splits["train"].image_ids[index]) == number
        torch.testing.assert_close(images[0, :, 8, 8] * 255, torch.tensor(color(int(number))).float(), rtol=0, atol=4)
    for images, index in data.test_dataloader():
        number = int(data.splits["test"].image_ids[index])
        torch.testing.assert_close(images[0, :, 8, 8] * 255, torch.tensor(color(number)).float(), rtol=0, atol=4)


@pytest.fixture
def own(tmp_path):
    """A person's own ten pictures with captions."""
    for number in range(10):
        save(tmp_path / "images" / f"{number:012}.jpg", number)
    captions_file(tmp_path / "captions.json", range(10))
    return tmp_path


def test_one_file_is_split_by_images(own):
    data = prepared(CaptionJsonDataModule, own, validation_fraction=0.25, test_fraction=0.2)
    assert {split: len(found) for split, found in ids(data).items()} == {"train": 6, "validation": 2, "test": 2}
    assert sorted(image for part in ids(data).values() for image in part) == list(range(10))
    assert ids(prepared(CaptionJsonDataModule, own, validation_fraction=0.25, test_fraction=0.2)) == ids(data)
    other = prepared(CaptionJsonDataModule, own, validation_fraction=0.25, test_fraction=0.2, seed=1)
    assert ids(other) != ids(data)
    assert data.references("test").keys() == set(ids(data)["test"])
    assert_captions_are_of_their_images(data)


def test_three_files_are_used_as_they_are(own):
    for name, numbers in (("train", range(5)), ("val", (7, 6)), ("test", (9, 5, 8))):
        captions_file(own / "split" / f"{name}.json", numbers)
    data = prepared(
        CaptionJsonDataModule,
        own,
        annotations="split/train.json",
        validation_annotations="split/val.json",
        test_annotations="split/test.json",
    )
    assert ids(data) == {"train": [0, 1, 2, 3, 4], "validation": [6, 7], "test": [5, 8, 9]}
    assert data.splits["test"].image_ids == [9, 5, 8]  # in the order of the file
    assert_captions_are_of_their_images(data)


def test_a_test_file_alone_leaves_validation_to_be_held_out(own):
    captions_file(own / "train.json", range(7))
    captions_file(own / "test.json", range(7, 10))
    data = prepared(CaptionJsonDataModule, own, annotations="train.json", test_annotations="test.json")
    assert {split: len(found) for split, found in ids(data).items()} == {"train": 6, "validation": 1, "test": 3}


def spoil(folder):
    """Pictures that cannot be read, each in its own way."""
    noise = np.random.default_rng(0).integers(0, 256, (60, 60, 3), dtype=np.uint8)
    Image.fromarray(noise).save(folder / f"{1:012}.jpg")
    (folder / f"{1:012}.jpg").write_bytes((folder / f"{1:012}.jpg").read_bytes()[:2000])
    (folder / f"{3:012}.jpg").write_bytes(b"")
    (folder / f"{4:012}.jpg").unlink()


@pytest.mark.parametrize("memory", [4.0, 0])
def test_what_cannot_be_used_is_skipped_counted_and_reported(own, memory):
    spoil(own / "images")
    content = json.loads((own / "captions.json").read_text())
    content["annotations"] = [entry for entry in content["annotations"] if entry["image_id"] != 6]
    content["annotations"][0]["caption"] = ""
    (own / "captions.json").write_text(json.dumps(content))
    message = r"5 pictures or captions are left out: .*annotation 0: .*; .*image 6 \(0+6\.jpg\) has .*; .*0+1\.jpg: "
    with pytest.warns(UserWarning, match=message) as said:
        data = prepared(CaptionJsonDataModule, own, memory=memory, on_error="skip")
    assert len(said) == 1
    assert sorted(image for part in ids(data).values() for image in part) == [0, 2, 5, 7, 8, 9]
    references = {image: len(found) for split in data.splits for image, found in data.references(split).items()}
    assert references == {0: 1, 2: 2, 5: 2, 7: 2, 8: 2, 9: 2}
    assert_captions_are_of_their_images(data)


@pytest.mark.parametrize("memory", [4.0, 0])
@pytest.mark.parametrize("kept", [1, 3, 4])
def test_a_picture_that_cannot_be_used_is_an_error_with_its_path(own, memory, kept):
    spoil(own / "images")
    for number in {1, 3, 4} - {kept}:
        save(own / "images" / f"{number:012}.jpg", number)
    with pytest.raises(ImageFileError, match=rf"images/0+{kept}\.jpg: "):
        prepared(CaptionJsonDataModule, own, memory=memory)


def test_nothing_left_of_a_split_is_an_error(own):
    for path in (own / "images").iterdir():
        path.write_bytes(b"")
    with pytest.raises(ValueError, match="no picture with captions is left for train"):
        prepared(CaptionJsonDataModule, own, on_error="skip")
    for path in (own / "images").iterdir():
        path.unlink()
    with pytest.raises(ValueError, match="0 pictures with captions are left; none can be held out"):
        prepared(CaptionJsonDataModule, own, on_error="skip")


def test_pictures_of_every_mode_come_in_upright_and_in_rgb(tmp_path):
    rows = np.repeat(np.linspace(0, 255, 32).astype(np.uint8)[:, None], 32, 1)  # black above, white below
    grey = Image.fromarray(rows)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees to the right
    (tmp_path / "images").mkdir()
    saved = {
        "grey.png": grey,
        "grey_alpha.png": grey.convert("LA"),
        "cmyk.jpg": grey.convert("RGB").convert("CMYK"),
        "palette.png": grey.convert("P"),
        "palette.gif": grey.convert("P"),
        "deep.png": Image.fromarray(rows.astype(np.uint16) * 257),
        "deep.tif": Image.fromarray(rows.astype(np.uint16) * 257),
        "turned.jpg": grey.transpose(Image.Transpose.ROTATE_90),
    }
    for name, picture in saved.items():
        picture.save(tmp_path / "images" / name, **({"exif": exif} if name == "turned.jpg" else {}))
    images = [{"id": name, "file_name": name} for name in saved]
    annotations = [{"image_id": name, "caption": "a ramp"} for name in saved]
    (tmp_path / "captions.json").write_text(json.dumps({"images": images, "annotations": annotations}))
    data = prepared(CaptionJsonDataModule, tmp_path)
    ramp = torch.linspace(0, 255, 16)[None, :, None].expand(3, 16, 16)
    for part in data.splits.values():
        for name, pixels in zip(part.image_ids, part.images, strict=True):
            torch.testing.assert_close(
                pixels.float(), ramp, rtol=0, atol=9, msg=lambda text, name=name: f"{name}: {text}"
            )


@pytest.mark.parametrize(("fit", "seen"), [("stretch", True), ("cover", False)])
def test_the_whole_picture_is_shown_unless_asked_otherwise(own, fit, seen):
    for path in (own / "images").iterdir():
        picture = Image.new("RGB", (48, 16), "white")
        picture.paste("black", (0, 0, 6, 16))  # at the left edge
        picture.save(path, quality=95)
    images = prepared(CaptionJsonDataModule, own, fit=fit).splits["train"].images
    assert bool((images[:, :, :, 0] < 50).all()) is seen


def test_batches_from_files_equal_batches_from_memory(own):
    rng = np.random.default_rng(0)
    for path in (own / "images").iterdir():
        Image.fromarray(rng.integers(0, 256, (40, 30, 3), dtype=np.uint8)).save(path)
    options = {"augmentation": {"crop_padding": 2, "flip": 0.5}, "memory": 0}
    loaded, files = (
        prepared(CaptionJsonDataModule, own, **options | {"memory": 4}),
        prepared(CaptionJsonDataModule, own, **options),
    )
    assert isinstance(loaded.splits["train"].images, torch.Tensor)
    assert not isinstance(files.splits["train"].images, torch.Tensor)
    for first, second in zip(loaded.train_dataloader(), files.train_dataloader(), strict=True):
        assert all(torch.equal(ours, theirs) for ours, theirs in zip(first, second, strict=True))


def test_what_is_missing_is_named(own, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere: there is no such folder; set dataset\.root"):
        prepared(CaptionJsonDataModule, own / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"photos: there is no such folder; set dataset\.images"):
        prepared(CaptionJsonDataModule, own, images="photos")
    with pytest.raises(FileNotFoundError, match=r"mine\.json: there is no such file of captions"):
        prepared(CaptionJsonDataModule, own, annotations="mine.json")
    with pytest.raises(FileNotFoundError, match=r"has no captions: captions_train\.json, Flickr8k\.token\.txt or"):
        prepared(Flickr8kDataModule, own)
    with pytest.raises(FileNotFoundError, match=r"has none of the folders of pictures images, Flicker8k_Dataset"):
        prepared(Flickr8kDataModule, own / "images")
    with pytest.raises(FileNotFoundError, match=r"annotations/captions_train2017\.json: there is no such file"):
        prepared(CocoCaptionsDataModule, own)
    with pytest.raises(FileNotFoundError, match=r"dataset_coco\.json: there is no such file"):
        prepared(CocoCaptionsDataModule, own, split="karpathy")


def test_options_that_are_unknown_are_errors(tmp_path):
    with pytest.raises(ValueError, match="on_error 'ignore' is unknown; choose raise or skip"):
        Flickr8kDataModule(tmp_path, on_error="ignore")
    with pytest.raises(ValueError, match="split 'mine' is unknown; choose official or karpathy"):
        CocoCaptionsDataModule(tmp_path, split="mine")
    with pytest.raises(TypeError, match="colour"):
        CaptionJsonDataModule(tmp_path, colour=True)


def test_a_cut_off_file_is_an_error_even_when_errors_are_skipped(own):
    (own / "captions.json").write_text((own / "captions.json").read_text()[:-20])
    with pytest.raises(CaptionFileError, match=r"captions\.json: no JSON, or cut off"):
        prepared(CaptionJsonDataModule, own, on_error="skip")


@pytest.mark.parametrize("year", [2017, 2014])
def test_official_coco_is_tested_on_val_and_validated_on_a_part_of_train(tmp_path, year):
    prefix = {2017: "", 2014: "COCO_{}2014_"}[year]
    for part, numbers in (("train", range(12)), ("val", range(12, 15))):
        name = prefix.format(part) + "{:012}.jpg"
        captions_file(tmp_path / "annotations" / f"captions_{part}{year}.json", numbers, name)
        for number in numbers:
            save(tmp_path / f"{part}{year}" / name.format(number), number)
    data = prepared(CocoCaptionsDataModule, tmp_path, year=year, validation_fraction=0.25)
    assert ids(data)["test"] == [12, 13, 14]
    assert len(ids(data)["validation"]) == 3
    assert sorted(ids(data)["train"] + ids(data)["validation"]) == list(range(12))
    assert_captions_are_of_their_images(data)


@pytest.mark.parametrize("year", [2014, 2017])
@pytest.mark.parametrize("folder", ["", "annotations"])
def test_karpathys_split_finds_its_pictures_in_the_folders_of_either_year(tmp_path, year, folder):
    images = []
    for number, (split, part) in enumerate(
        [("train", "train"), ("restval", "val"), ("val", "val"), ("test", "val")] * 2
    ):
        name = f"COCO_{part}2014_{number:012}.jpg"
        save(tmp_path / (f"{part}2014/{name}" if year == 2014 else f"train2017/{number:012}.jpg"), number)
        images.append(
            {
                "filepath": f"{part}2014",
                "filename": name,
                "imgid": 100 + number,
                "cocoid": number,
                "split": split,
                "sentences": [{"raw": f"picture number {number}"}],
            }
        )
    (tmp_path / folder).mkdir(exist_ok=True)
    (tmp_path / folder / "dataset_coco.json").write_text(json.dumps({"images": images, "dataset": "coco"}))
    data = prepared(CocoCaptionsDataModule, tmp_path, split="karpathy")
    assert ids(data) == {"train": [0, 1, 4, 5], "validation": [2, 6], "test": [3, 7]}
    assert_captions_are_of_their_images(data)
    (tmp_path / (f"val2014/COCO_val2014_{5:012}.jpg" if year == 2014 else f"train2017/{5:012}.jpg")).unlink()
    with pytest.raises(ImageFileError, match=r"val2014/COCO_val2014_0+5\.jpg: there is no such file"):
        prepared(CocoCaptionsDataModule, tmp_path, split="karpathy")


@pytest.mark.parametrize("layout", ["coco", "text", "text in a folder", "karpathy"])
def test_flickr8k_is_read_in_every_layout_it_is_found_in(tmp_path, layout):
    parts = {"train": range(5), "val": range(5, 7), "test": range(7, 9)}
    images = tmp_path / ("images" if layout == "coco" else "Flicker8k_Dataset")
    for number in range(9):
        save(images / f"{number:012}.jpg", number)
    text = tmp_path / ("Flickr8k_text" if layout == "text in a folder" else ".")
    text.mkdir(exist_ok=True)
    if layout == "coco":
        for part, numbers in parts.items():
            captions_file(tmp_path / f"captions_{part}.json", numbers)
    elif layout == "karpathy":
        entries = [
            {
                "filename": f"{number:012}.jpg",
                "imgid": number,
                "split": part,
                "sentences": [{"raw": f"picture {number}"}],
            }
            for part, numbers in parts.items()
            for number in numbers
        ]
        (tmp_path / "dataset_flickr8k.json").write_text(json.dumps({"images": entries}))
    else:
        lines = [f"{number:012}.jpg#{k}\tpicture {number}\n" for number in range(9) for k in range(5)]
        (text / "Flickr8k.token.txt").write_text("".join(lines))
        for part, name in (("train", "train"), ("val", "dev"), ("test", "test")):
            names = "".join(f"{number:012}.jpg\n" for number in parts[part])
            (text / f"Flickr_8k.{name}Images.txt").write_text(names)
    data = prepared(Flickr8kDataModule, tmp_path)
    for part in data.splits.values():  # where the name is the id
        part.image_ids[:] = [int(str(image).removesuffix(".jpg")) for image in part.image_ids]
    assert ids(data) == {"train": [0, 1, 2, 3, 4], "validation": [5, 6], "test": [7, 8]}
    assert_captions_are_of_their_images(data)


@pytest.mark.skipif(not (real / "coco_mini").is_dir(), reason="needs ../shared/data/coco_mini")
def test_real_files_of_coco():
    data = prepared(CocoCaptionsDataModule, real / "coco_mini", min_count=5)
    assert {split: len(part.captions) for split, part in data.splits.items()} == {
        "train": 77,
        "validation": 3,
        "test": 188,
    }
    assert sum(map(len, data.references("test").values())) == 940
    images, token_ids, _ = next(iter(data.train_dataloader()))
    assert images.shape == (2, 3, 16, 16)
    assert token_ids.max() < data.tokenizer.vocabulary_size


@pytest.mark.skipif(not (real / "flickr8k").is_dir(), reason="needs ../shared/data/flickr8k")
def test_real_files_of_flickr8k(tmp_path):
    """Its captions with a few of its pictures, as all of them take a minute to read."""
    few = {}
    for part in ("train", "val", "test"):
        content = json.loads((real / "flickr8k" / f"captions_{part}.json").read_text())
        few[part] = [entry["id"] for entry in content["images"][:4]]
        content["images"] = content["images"][:4]
        content["annotations"] = [entry for entry in content["annotations"] if entry["image_id"] in few[part]]
        (tmp_path / f"captions_{part}.json").write_text(json.dumps(content))
    (tmp_path / "images").symlink_to(real / "flickr8k" / "images")
    data = prepared(Flickr8kDataModule, tmp_path)
    assert {split: list(part.image_ids) for split, part in data.splits.items()} == {
        "train": few["train"],
        "validation": few["val"],
        "test": few["test"],
    }
    assert len(data.train_dataloader()) == 4 * 5 // 2
    assert "A black dog is running after a white dog in the snow ." in data.references("train")[few["train"][0]]
