import numpy as np
import pytest
import torch
from PIL import Image

from visattn.data import ImageFileError, ImageFolderDataModule

colors = {"cat": (200, 30, 30), "dog": (30, 200, 30), "owl": (30, 30, 200)}


def fill(folder, classes=("cat", "dog", "owl"), number=10):
    for name in classes:
        (folder / name).mkdir(parents=True)
        for index in range(number):
            Image.new("RGB", (40 + index, 30), colors[name]).save(folder / name / f"{index}.png")
    return folder


def prepared(root, **options):
    data = ImageFolderDataModule(root, 16, batch_size=4, mean=(0, 0, 0), std=(1, 1, 1), **options)
    data.prepare_data()
    data.setup()
    return data


def counts(data):
    return {split: torch.bincount(labels, minlength=3).tolist() for split, (_, labels) in data.splits.items()}


def test_class_folders_are_split_into_the_same_fraction_of_every_class(tmp_path):
    data = prepared(fill(tmp_path), test_fraction=0.2, validation_fraction=0.25)
    assert data.classes == ("cat", "dog", "owl")
    assert counts(data) == {"train": [6] * 3, "test": [2] * 3, "validation": [2] * 3}
    images, labels = data.splits["train"]
    for image, label in zip(images, labels, strict=True):
        assert image[:, 8, 8].tolist() == list(colors[data.classes[label]])


@pytest.mark.parametrize("validation", ["val", "validation", "valid"])
def test_folders_of_splits_are_used_as_they_are(tmp_path, validation):
    for split, number in (("train", 5), (validation, 2), ("test", 3)):
        fill(tmp_path / split, number=number)
    assert counts(prepared(tmp_path)) == {"train": [5] * 3, "validation": [2] * 3, "test": [3] * 3}


def test_a_missing_split_is_held_out_of_the_training_images(tmp_path):
    fill(tmp_path / "train"), fill(tmp_path / "test", number=3)
    assert counts(prepared(tmp_path, validation_fraction=0.3)) == {
        "train": [7] * 3,
        "validation": [3] * 3,
        "test": [3] * 3,
    }


def test_a_class_may_be_called_like_a_split(tmp_path):
    fill(tmp_path)
    (tmp_path / "cat").rename(tmp_path / "train")
    assert prepared(tmp_path).classes == ("dog", "owl", "train")


def test_batches_from_files_equal_batches_from_memory(tmp_path):
    fill(tmp_path)
    rng = np.random.default_rng(0)
    for path in tmp_path.rglob("*.png"):
        Image.fromarray(rng.integers(0, 256, (40, 30, 3), dtype=np.uint8)).save(path)
    options = {"resize": 20, "augmentation": {"crop_padding": 2, "flip": 0.5, "randaugment": 1}}
    loaded = prepared(tmp_path, **options)
    assert isinstance(loaded.splits["train"][0], torch.Tensor)
    for num_workers in (0, 2):
        from_files = prepared(tmp_path, memory=0, num_workers=num_workers, **options)
        assert isinstance(from_files.splits["train"][0], list)
        for loader in ("train_dataloader", "val_dataloader", "test_dataloader"):
            pairs = zip(getattr(loaded, loader)(), getattr(from_files, loader)(), strict=True)
            for (images, labels), (others, other_labels) in pairs:
                assert torch.equal(images, others)
                assert torch.equal(labels, other_labels)


def spoil(folder):
    """Four pictures that cannot be read, each in its own way."""
    noise = np.random.default_rng(0).integers(0, 256, (60, 60, 3), dtype=np.uint8)
    Image.fromarray(noise).save(folder / "a.jpg")
    (folder / "a.jpg").write_bytes((folder / "a.jpg").read_bytes()[:2000])
    (folder / "b.png").write_bytes(b"")
    (folder / "c.png").write_text("no picture")
    Image.new("1", (20_000, 15_000)).save(folder / "d.png")


@pytest.mark.parametrize("memory", [4.0, 0])
@pytest.mark.parametrize("broken", ["a.jpg", "b.png", "c.png", "d.png"])
def test_a_broken_picture_is_an_error_with_its_path(tmp_path, memory, broken):
    spoil(fill(tmp_path) / "dog")
    for name in {"a.jpg", "b.png", "c.png", "d.png"} - {broken}:
        (tmp_path / "dog" / name).unlink()
    with pytest.raises(ImageFileError, match=rf"dog/{broken}: "):
        prepared(tmp_path, memory=memory)


@pytest.mark.parametrize("memory", [4.0, 0])
def test_broken_pictures_are_skipped_counted_and_reported(tmp_path, memory):
    spoil(fill(tmp_path) / "dog")
    with pytest.warns(UserWarning, match=r"4 pictures or classes are left out: .*dog/a\.jpg: .*dog/b\.png: "):
        data = prepared(tmp_path, memory=memory, on_error="skip")
    assert torch.tensor(list(counts(data).values())).sum(0).tolist() == [10, 10, 10]
    for loader in (data.train_dataloader(), data.val_dataloader(), data.test_dataloader()):
        assert all(images.isfinite().all() for images, _ in loader)


def test_an_empty_class_is_an_error_with_its_path(tmp_path):
    (fill(tmp_path) / "bat").mkdir()
    (tmp_path / "bat" / "notes.txt").write_text("later")
    with pytest.raises(ImageFileError, match=r"bat: the class has no pictures \(\.jpg"):
        prepared(tmp_path)


def test_empty_and_unreadable_classes_are_skipped_and_reported(tmp_path):
    (fill(tmp_path) / "bat").mkdir()
    (tmp_path / "cow").mkdir()
    (tmp_path / "cow" / "1.png").write_bytes(b"")
    (tmp_path / "cow" / "2.png").write_bytes(b"")
    with pytest.warns(UserWarning, match="3 pictures or classes"):
        data = prepared(tmp_path, on_error="skip")
    assert data.classes == ("cat", "dog", "owl")
    assert counts(data)["train"] == [8] * 3
    images, labels = data.splits["train"]
    assert images[labels == 2][0, :, 8, 8].tolist() == list(colors["owl"])


def test_a_test_class_without_pictures_is_an_error_or_skipped(tmp_path):
    fill(tmp_path / "train"), fill(tmp_path / "test", classes=("cat", "dog"))
    with pytest.raises(ImageFileError, match="test/owl"):
        prepared(tmp_path)
    with pytest.warns(UserWarning, match="test/owl"):
        assert counts(prepared(tmp_path, on_error="skip"))["test"] == [10, 10, 0]


def test_a_missing_or_useless_root_is_an_error_with_its_path(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere: there is no such folder; set dataset"):
        prepared(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="holds 0 class folders; at least two"):
        prepared(tmp_path)
    fill(tmp_path, classes=("cat",))
    with pytest.raises(ValueError, match="holds 1 class folders; at least two"):
        prepared(tmp_path)


def test_a_test_class_that_is_not_trained_is_an_error(tmp_path):
    fill(tmp_path / "train", classes=("cat", "dog")), fill(tmp_path / "test")
    with pytest.raises(ValueError, match="test: has classes that the training images don't: owl"):
        prepared(tmp_path)


def test_a_test_folder_alone_is_an_error(tmp_path):
    fill(tmp_path / "test")
    with pytest.raises(FileNotFoundError, match="train: there are no class folders, though there is"):
        prepared(tmp_path)


def test_a_folder_without_any_readable_picture_is_an_error(tmp_path):
    for path in fill(tmp_path, number=4).rglob("*.png"):
        path.write_bytes(b"")
    with pytest.raises(ValueError, match="0 classes have pictures that can be read"):
        prepared(tmp_path, on_error="skip")


def test_notes_of_the_system_beside_pictures_are_no_pictures(tmp_path):
    fill(tmp_path)
    (tmp_path / ".cache").mkdir()
    (tmp_path / "cat" / "._0.png").write_bytes(b"Mac OS X")
    assert sum(map(sum, counts(prepared(tmp_path)).values())) == 30


def test_pictures_in_folders_within_a_class_belong_to_it(tmp_path):
    fill(tmp_path)
    (tmp_path / "cat" / "more").mkdir()
    Image.new("RGB", (20, 20)).save(tmp_path / "cat" / "more" / "x.JPG")
    assert sum(each[0] for each in counts(prepared(tmp_path)).values()) == 11


def test_an_unknown_way_with_errors_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="on_error 'ignore' is unknown; choose raise or skip"):
        ImageFolderDataModule(tmp_path, on_error="ignore")
