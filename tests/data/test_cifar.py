import hashlib
import pickle
import tarfile
from functools import partial
from http.server import HTTPServer, SimpleHTTPRequestHandler
from threading import Thread

import numpy as np
import pytest
import torch
from PIL import Image

from visattn.data import CIFAR10DataModule, CIFAR100DataModule

names = ["airplane", "cat", "truck"]
rng = np.random.default_rng(0)
pictures = {
    "train": (rng.integers(0, 256, (30, 3, 32, 32), dtype=np.uint8), [index % 3 for index in range(30)]),
    "test": (rng.integers(0, 256, (6, 3, 32, 32), dtype=np.uint8), [index % 3 for index in range(6)]),
}
nowhere = "http://127.0.0.1:9/cifar.tar.gz"  # a port that nothing listens on


def module_of(published, root):
    """The data module of an archive in the published layout with three classes, written to root."""
    original = published.archive
    fine = "fine_" if original.base_folder == "cifar-100-python" else ""
    folder = root / original.base_folder
    folder.mkdir(parents=True)

    def write(name, content):
        (folder / name).write_bytes(pickle.dumps(content))
        return [name, hashlib.md5((folder / name).read_bytes()).hexdigest()]

    def write_part(name, images, labels):
        return write(name, {"data": images.reshape(len(images), -1), f"{fine}labels": labels})

    parts = {"train_list": [], "test_list": []}
    images, labels = pictures["train"]
    step = len(images) // len(original.train_list)
    for index, (name, _) in enumerate(original.train_list):
        part = slice(index * step, (index + 1) * step)
        parts["train_list"].append(write_part(name, images[part], labels[part]))
    parts["test_list"].append(write_part(original.test_list[0][0], *pictures["test"]))
    name, md5 = write(original.meta["filename"], {f"{fine}label_names": names})
    meta = {"filename": name, "key": f"{fine}label_names", "md5": md5}
    archive = type(original.__name__, (original,), parts | {"meta": meta, "url": nowhere})
    return type(published.__name__, (published,), {"archive": archive})


def write_class_folders(root):
    for split, (images, labels) in pictures.items():
        for index, (image, label) in enumerate(zip(images, labels, strict=True)):
            folder = root / split / names[label]
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image.transpose(1, 2, 0)).save(folder / f"{index:04}.png")


def prepared(module, root, **options):
    data = module(root, **{"batch_size": 4, "validation_fraction": 0.2} | options)
    data.prepare_data()
    data.setup()
    return data


@pytest.fixture(params=[CIFAR10DataModule, CIFAR100DataModule])
def published(request):
    return request.param


@pytest.mark.parametrize("inside", [False, True])
def test_the_published_archive_is_read_from_its_folder_or_the_one_around_it(tmp_path, published, inside):
    module = module_of(published, tmp_path)
    data = prepared(module, tmp_path / module.archive.base_folder if inside else tmp_path)
    assert data.classes == tuple(names)
    images, labels = data.splits["test"]
    assert torch.equal(images, torch.from_numpy(pictures["test"][0]))
    assert labels.tolist() == pictures["test"][1]
    assert {split: len(labels) for split, (_, labels) in data.splits.items()} == {
        "train": 24,
        "validation": 6,
        "test": 6,
    }


def test_training_and_validation_images_are_those_of_the_archive_and_never_the_same(tmp_path, published):
    data = prepared(module_of(published, tmp_path), tmp_path)
    known = {image.tobytes(): label for image, label in zip(*pictures["train"], strict=True)}
    for split in ("train", "validation"):
        for image, label in zip(*data.splits[split], strict=True):
            assert known.pop(image.numpy().tobytes()) == label
    assert not known


def test_class_folders_hold_the_same_images_as_the_archive(tmp_path, published):
    module = module_of(published, tmp_path / "archive")
    write_class_folders(tmp_path / "folders")
    archive, folders = prepared(module, tmp_path / "archive"), prepared(module, tmp_path / "folders")
    assert archive.classes == folders.classes
    ours, theirs = ({image.numpy().tobytes(): int(label) for image, label in zip(*data.splits["test"], strict=True)}
                    for data in (archive, folders))  # fmt: skip
    assert ours == theirs


def test_other_sizes_are_made_when_a_batch_is(tmp_path, published):
    data = prepared(module_of(published, tmp_path), tmp_path, image_size=48)
    assert data.splits["train"][0].shape == (24, 3, 32, 32)
    assert next(iter(data.train_dataloader()))[0].shape == (4, 3, 48, 48)
    assert data.examples(3)[0].shape == (3, 3, 48, 48)


def test_a_missing_archive_without_a_network_is_an_error_that_says_what_to_do(tmp_path, published):
    module = module_of(published, tmp_path / "elsewhere")
    folder = module.archive.base_folder
    with pytest.raises(FileNotFoundError, match=rf"{folder}: is missing, .* could not be downloaded .*dataset\.root"):
        prepared(module, tmp_path / "data")


def test_a_damaged_archive_without_a_network_is_an_error_that_says_so(tmp_path, published):
    module = module_of(published, tmp_path)
    folder = module.archive.base_folder
    with (tmp_path / folder / module.archive.test_list[0][0]).open("ab") as file:
        file.write(b"more")
    with pytest.raises(FileNotFoundError, match=rf"{folder}: is damaged or not whole, and {nowhere}"):
        prepared(module, tmp_path)


def test_a_pickle_that_is_not_the_published_one_is_never_opened(tmp_path, published):
    module = module_of(published, tmp_path)
    (tmp_path / module.archive.base_folder / module.archive.test_list[0][0]).write_bytes(
        b"cos\nsystem\n(S'touch " + str(tmp_path / "harm").encode() + b"'\ntR."
    )
    data = module(tmp_path)
    with pytest.raises(RuntimeError, match="not found or corrupted"):
        data.setup()
    assert not (tmp_path / "harm").exists()


def test_the_archive_is_downloaded_where_it_is_missing(tmp_path, published):
    module = module_of(published, tmp_path / "server")
    packed = tmp_path / "packed.tar.gz"
    with tarfile.open(packed, "w:gz") as file:
        file.add(tmp_path / "server" / module.archive.base_folder, module.archive.base_folder)
    module.archive.filename = packed.name
    module.archive.tgz_md5 = hashlib.md5(packed.read_bytes()).hexdigest()
    with HTTPServer(("127.0.0.1", 0), partial(SimpleHTTPRequestHandler, directory=tmp_path)) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        module.archive.url = f"http://127.0.0.1:{server.server_port}/{packed.name}"
        data = prepared(module, tmp_path / "data")
        server.shutdown()
    assert len(data.splits["test"][1]) == 6


def test_normalised_colors_have_the_published_mean(published):
    data = published("data")
    assert len(data.mean) == len(data.std) == 3
    assert data.preprocess.mean == data.mean
    assert data.image_size == 32
