import json
import shutil

import pytest
import torch
from PIL import Image

from tests.interpret.small_captioners import captioner_of
from visattn.checkpoints import load_pretrained, save_pretrained, shipped_weights
from visattn.cli.checkpoint import default_of, default_weights
from visattn.data import open_image
from visattn.heads import ImageClassifier


def test_the_table_shows_the_most_probable_classes(checkpoints, pictures, run):
    code, output, errors = run("classify", pictures / "plain.png", "--checkpoint", checkpoints["local"], "--top", 2)
    assert code == 0, errors
    model = load_pretrained(checkpoints["local"])
    probabilities = model(model.preprocess(open_image(pictures / "plain.png"))[None]).softmax(dim=1)[0]
    values, indices = probabilities.topk(2)
    for value, index in zip(values.tolist(), indices.tolist(), strict=True):
        assert model.classes[index] in output
        assert f"{value:.1%}" in output
    assert sum(name in output for name in model.classes) == 2


@pytest.mark.parametrize("batch_size", [1, 3, 32])
def test_a_folder_of_all_modes_and_formats_equals_single_predictions(batch_size, checkpoints, pictures, run):
    code, output, errors = run(
        "classify", pictures, "-c", checkpoints["swin"], "--json", "--batch-size", batch_size, "--top", 9
    )
    assert code == 0, errors
    rows = json.loads(output)
    names = [row["image"].removeprefix(f"{pictures}/") for row in rows]
    assert names == sorted(names)
    assert len(names) == 8
    assert "notes.txt" not in names
    model = load_pretrained(checkpoints["swin"])
    for row in rows:
        with torch.no_grad():
            expected = model(model.preprocess(open_image(row["image"]))[None]).softmax(dim=1)[0]
        assert len(row["predictions"]) == 6  # all classes: fewer than asked for
        probabilities = [prediction["probability"] for prediction in row["predictions"]]
        assert probabilities == sorted(probabilities, reverse=True)
        for prediction in row["predictions"]:
            assert prediction["class"] == model.classes[prediction["index"]]
            assert prediction["probability"] == pytest.approx(float(expected[prediction["index"]]), abs=1e-5)


def test_a_picture_turned_by_exif_is_classified_upright(checkpoints, pictures, run):
    _, output, _ = run("classify", pictures, "-c", checkpoints["vit"], "--json")
    rows = {row["image"].rpartition("/")[2]: row["predictions"] for row in json.loads(output)}
    for turned, plain in zip(rows["turned.png"], rows["plain.png"], strict=True):
        assert turned["class"] == plain["class"]
        assert turned["probability"] == pytest.approx(plain["probability"], abs=1e-5)


def test_unreadable_pictures_are_named_and_the_others_classified(checkpoints, pictures, run):
    whole = (pictures / "plain.png").read_bytes()
    (pictures / "truncated.png").write_bytes(whole[: len(whole) // 2])
    (pictures / "empty.jpg").touch()
    (pictures / "text.jpg").write_text("no picture")
    code, output, errors = run("classify", pictures, pictures / "missing.png", "-c", checkpoints["local"], "--json")
    assert code == 1
    rows = json.loads(output)
    broken = [row for row in rows if "error" in row]
    assert {row["image"].rpartition("/")[2] for row in broken} == {
        "truncated.png",
        "empty.jpg",
        "text.jpg",
        "missing.png",
    }
    assert len([row for row in rows if "predictions" in row]) == 8
    for row in broken:
        assert row["error"].startswith(row["image"])
        assert row["image"].rpartition("/")[2] in errors
    assert "Traceback" not in errors


def test_a_folder_without_pictures_is_an_error(checkpoints, tmp_path, run):
    (tmp_path / "empty").mkdir()
    code, _, errors = run("classify", tmp_path / "empty", "-c", checkpoints["local"])
    assert code == 1
    assert "empty: holds no pictures" in errors


def test_names_are_shown_as_they_are(checkpoints, pictures, run):
    shutil.copy(pictures / "plain.png", pictures / "[red]a.png")
    code, output, _ = run("classify", pictures / "[red]a.png", "-c", checkpoints["local"])
    assert code == 0
    assert "[red]a.png" in "".join(output.split("│")).replace("\n", "").replace(" ", "")


def test_classes_without_names_are_numbers_and_missing_preprocessing_is_said(checkpoints, pictures, tmp_path, run):
    model = load_pretrained(checkpoints["vit"])
    model.classes, model.preprocess = None, None
    save_pretrained(model, tmp_path / "bare")
    code, output, errors = run("classify", pictures / "plain.png", "-c", tmp_path / "bare", "--json")
    assert code == 0
    assert "doesn't say how pictures are prepared" in errors
    assert all(row["class"] == str(row["index"]) for row in json.loads(output)[0]["predictions"])


def test_a_model_without_classifier_is_refused(checkpoints, pictures, tmp_path, run):
    save_pretrained(ImageClassifier(load_pretrained(checkpoints["vit"]).backbone, None), tmp_path / "headless")
    code, _, errors = run("classify", pictures / "plain.png", "-c", tmp_path / "headless")
    assert code == 1
    assert "has no classifier" in errors


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["-c", "nowhere/at/all"], "there is no such file or folder"),
        (["-c", "weights.pth"], "there is no such file or folder"),
        (["--device", "nothing"], "--device nothing is not to be had here"),
    ],
)
def test_what_cannot_be_had_is_said_without_traceback(options, message, checkpoints, pictures, run):
    options = options if "-c" in options else ["-c", checkpoints["vit"], *options]
    code, output, errors = run("classify", pictures / "plain.png", *options)
    assert (code, output) == (1, "")
    assert message in errors
    assert "Traceback" not in errors


def test_without_a_checkpoint_the_shipped_weights_are_used(pictures, run):
    code, output, errors = run("classify", pictures / "plain.png", "--json")
    if shipped_weights("classification"):
        assert code == 0, errors
        assert len(json.loads(output)[0]["predictions"]) == 5
    else:
        assert code == 1
        assert "no weights for classification are shipped with this installation; say --checkpoint" in errors


@pytest.mark.parametrize("kind", ["classification", "captioning"])
def test_the_default_among_shipped_weights_is_the_documented_one(kind):
    assert default_of(kind, ["other", default_weights[kind]]) == default_weights[kind]
    assert default_of(kind, ["other"]) == "other"
    with pytest.raises(ValueError, match="several weights are shipped, say which by --checkpoint: one, other"):
        default_of(kind, ["other", "one"])
    with pytest.raises(ValueError, match=f"no weights for {kind} are shipped"):
        default_of(kind, [])


@pytest.mark.parametrize("command", ["classify", "attend"])
def test_a_captioner_is_refused(command, pictures, tmp_path, run):
    save_pretrained(captioner_of("cross"), tmp_path / "captioner")
    code, output, errors = run(command, pictures / "plain.png", "-c", tmp_path / "captioner")
    assert (code, output) == (1, "")
    assert "captioner: has no classes, it is a captioner: visattn caption, visattn demo" in errors


def test_a_huge_picture_is_refused(checkpoints, tmp_path, run):
    Image.new("1", (12000, 12000)).save(tmp_path / "bomb.png")
    code, _, errors = run("classify", tmp_path / "bomb.png", "-c", checkpoints["local"])
    assert code == 1
    assert "bomb.png: 12000x12000 pixels are more than" in errors
