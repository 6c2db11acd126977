import json
import shutil

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as run_lengths

from tests.interpret.small_detectors import classes, detector_of, kinds, set_kinds
from visattn.checkpoints import load_pretrained, save_pretrained


@pytest.fixture(scope="module")
def detectors(tmp_path_factory):
    """Name of a kind to a model folder."""
    root = tmp_path_factory.mktemp("detectors")
    for kind in kinds:
        save_pretrained(detector_of(kind), root / kind)
    return {kind: root / kind for kind in kinds}


def middle(model, path):
    """A threshold that some of a picture's objects pass."""
    (found,) = model.detect(path, threshold=0.0)
    return float(found.scores[3])


@pytest.mark.parametrize("kind", kinds)
def test_json_is_what_the_model_finds_in_each_picture(kind, detectors, pictures, run):
    model = load_pretrained(detectors[kind])
    threshold = middle(model, pictures / "plain.png")
    options = ["-c", detectors[kind], "--json", "--threshold", threshold, "--batch-size", 1]
    code, output, errors = run("detect", pictures, *options)
    assert code == 0, errors
    rows = json.loads(output)
    names = [row["image"].removeprefix(f"{pictures}/") for row in rows]
    assert names == sorted(names)
    assert len(names) == 8
    assert sum(len(row["detections"]) for row in rows) > 0
    for row in rows:
        (expected,) = model.detect(row["image"], threshold)
        with Image.open(row["image"]) as picture:
            sides = {picture.width, picture.height}
        assert {row["width"], row["height"]} == sides
        assert [thing["label"] for thing in row["detections"]] == expected.labels.tolist()
        assert [thing["class"] for thing in row["detections"]] == [classes[label] for label in expected.labels]
        for thing, box, score in zip(row["detections"], expected.boxes.tolist(), expected.scores, strict=True):
            assert thing["box"] == pytest.approx(box, abs=1e-3)
            assert thing["score"] == pytest.approx(float(score), abs=1e-5)


def test_the_table_shows_every_object(detectors, pictures, run):
    model = load_pretrained(detectors["detr"])
    threshold = middle(model, pictures / "plain.png")
    code, output, errors = run("detect", pictures / "plain.png", "-c", detectors["detr"], "--threshold", threshold)
    assert code == 0, errors
    (found,) = model.detect(pictures / "plain.png", threshold)
    assert 0 < len(found.labels) <= 3
    for label, score in zip(found.labels, found.scores, strict=True):
        assert classes[label] in output
        assert f"{float(score):.1%}" in output
    code, output, _ = run("detect", pictures / "plain.png", "-c", detectors["detr"], "--threshold", 1)
    assert (code, "none above 1" in output) == (0, True)


def test_at_most_so_many_are_shown(detectors, pictures, run):
    options = ["-c", detectors["deformable"], "--threshold", 0, "--max-detections", 2, "--json"]
    code, output, errors = run("detect", pictures / "plain.png", *options)
    assert code == 0, errors
    assert len(json.loads(output)[0]["detections"]) == 2


def test_objects_are_drawn_over_the_picture(detectors, pictures, tmp_path, run):
    output = tmp_path / "new" / "found.png"
    options = ["-c", detectors["dense"], "--threshold", 0, "--max-detections", 3, "--output", output, "--json"]
    code, printed, errors = run("detect", pictures / "below" / "turned.png", *options)
    assert code == 0, errors
    assert json.loads(printed)[0]["output"] == str(output)
    with Image.open(output) as drawn:
        assert max(drawn.size) == 480  # enlarged, so that names can be read
        assert drawn.width / drawn.height == pytest.approx(50 / 40, rel=0.01)
        with Image.open(pictures / "plain.png") as picture:
            plain = np.asarray(picture.resize(drawn.size).convert("RGB"), dtype=float)
        assert np.abs(np.asarray(drawn) - plain).max() > 100
    assert [path.name for path in output.parent.iterdir()] == ["found.png"]


@pytest.mark.parametrize("kind", set_kinds)
def test_several_pictures_are_drawn_and_explained_in_folders(kind, detectors, pictures, tmp_path, run):
    shutil.copy(pictures / "grey.png", pictures / "below" / "plain.png")
    chosen = [pictures / "plain.png", pictures / "below" / "plain.png"]
    options = ["-c", detectors[kind], "--threshold", 0, "--max-detections", 2, "--json"]
    folder = tmp_path / "drawn"
    code, printed, errors = run("detect", *chosen, *options, "--output", folder, "--explain", folder)
    assert code == 0, errors
    rows = json.loads(printed)
    names = {row["output"].rpartition("/")[2] for row in rows} | {row["explanation"].rpartition("/")[2] for row in rows}
    assert names == {path.name for path in folder.iterdir()}
    assert names == {"plain-objects.png", "plain-objects-2.png", "plain-attention.png", "plain-attention-2.png"}
    with Image.open(folder / "plain-attention.png") as figure:
        assert min(figure.size) > 300
        assert np.asarray(figure.convert("RGB"), dtype=float).std() > 20


def test_unreadable_pictures_are_named_and_the_others_searched(detectors, pictures, run):
    whole = (pictures / "plain.png").read_bytes()
    (pictures / "truncated.png").write_bytes(whole[: len(whole) // 2])
    (pictures / "empty.jpg").touch()
    code, output, errors = run("detect", pictures, pictures / "missing.png", "-c", detectors["detr"], "--json")
    assert code == 1
    rows = json.loads(output)
    broken = {row["image"].rpartition("/")[2]: row["error"] for row in rows if "error" in row}
    assert set(broken) == {"truncated.png", "empty.jpg", "missing.png"}
    assert len([row for row in rows if "detections" in row]) == 8
    assert all(name in errors for name in broken)
    assert "Traceback" not in errors


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--explain", "words.txt"], "--explain words.txt: write to a .png"),
        (["--output", "found.svg"], "--output found.svg: write to a .png"),
        (["--output", "a.png", "--explain", "a.png"], "--output and --explain would both be written to"),
        (["-c", "no/where/near"], "there is no such file or folder"),
        (["--device", "nothing"], "--device nothing is not to be had here"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_cannot_be_had_is_said_without_traceback(options, message, detectors, pictures, run):
    options = options if "-c" in options else ["-c", detectors["detr"], *options]
    code, output, errors = run("detect", pictures / "plain.png", *options)
    assert (code, output) == (1, "")
    assert message in errors
    assert "Traceback" not in errors


def test_dense_heads_are_not_explained(detectors, pictures, tmp_path, run):
    options = ["-c", detectors["dense"], "--explain", tmp_path / "why.png"]
    code, _, errors = run("detect", pictures / "plain.png", *options)
    assert code == 1
    assert "FcosHead has no decoder that looks for objects" in errors


def test_a_drawing_is_never_written_over_the_pictures(detectors, pictures, run):
    before = {path: path.read_bytes() for path in pictures.rglob("*") if path.is_file()}
    common = ["-c", detectors["detr"]]
    for option in ("--output", "--explain"):
        code, _, errors = run("detect", pictures / "plain.png", *common, option, pictures / "plain.png")
        assert code == 1
        assert "is a picture to be searched" in errors
        code, _, errors = run("detect", pictures, *common, option, pictures / "all.png")
        assert code == 1
        assert "a file shows one picture; for 8 name a folder" in errors
    assert {path: path.read_bytes() for path in pictures.rglob("*") if path.is_file()} == before


def test_models_of_another_kind_are_refused_with_what_they_are_for(checkpoints, detectors, pictures, run):
    code, output, errors = run("detect", pictures / "plain.png", "-c", checkpoints["vit"])
    assert (code, output) == (1, "")
    assert "vit: finds no objects, it is a classifier: visattn classify, visattn attend" in errors
    code, output, errors = run("classify", pictures / "plain.png", "-c", detectors["detr"])
    assert (code, output) == (1, "")
    assert "detr: has no classes, it finds objects: visattn detect" in errors


def test_masks_come_as_run_lengths(pictures, tmp_path, run):
    save_pretrained(detector_of("masks"), tmp_path / "masks")
    options = ["-c", tmp_path / "masks", "--threshold", 0, "--max-detections", 2, "--json"]
    code, printed, errors = run("detect", pictures / "plain.png", *options)
    assert code == 0, errors
    (row,) = json.loads(printed)
    (found,) = load_pretrained(tmp_path / "masks").detect(pictures / "plain.png", 0.0, max_detections=2)
    assert len(found.labels) == 2
    for thing, mask in zip(row["detections"], found.masks, strict=True):
        np.testing.assert_array_equal(run_lengths.decode(thing["segmentation"]), mask.numpy())
