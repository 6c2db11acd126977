import json
import shutil

import numpy as np
import pytest
from PIL import Image

from tests.interpret.small_captioners import captioner_of, kinds
from visattn.checkpoints import load_pretrained, save_pretrained
from visattn.cli.checkpoint import default_weights


@pytest.fixture(scope="module")
def captioners(tmp_path_factory):
    """Name of a kind to a model folder."""
    root = tmp_path_factory.mktemp("captioners")
    for kind in kinds:
        save_pretrained(captioner_of(kind), root / kind)
    return {kind: root / kind for kind in kinds}


def flat(table):
    """The words of a table, whatever its line breaks."""
    return " ".join(table.replace("│", " ").split())


@pytest.mark.parametrize("kind", kinds)
def test_json_is_what_the_model_says_of_each_picture(kind, captioners, pictures, run):
    options = ["-c", captioners[kind], "--json", "--nbest", 2, "--beams", 3, "--max-words", 7, "--batch-size", 3]
    code, output, errors = run("caption", pictures, *options)
    assert code == 0, errors
    rows = json.loads(output)
    names = [row["image"].removeprefix(f"{pictures}/") for row in rows]
    assert names == sorted(names)
    assert len(names) == 8
    model = load_pretrained(captioners[kind])
    for row in rows:
        (expected,) = model.caption(row["image"], num_beams=3, max_new_tokens=7, num_return=2)
        assert [caption["text"] for caption in row["captions"]] == [caption.text for caption in expected]
        for caption, wanted in zip(row["captions"], expected, strict=True):
            assert caption["token_ids"] == wanted.token_ids
            assert caption["log_probability"] == pytest.approx(wanted.log_probability, abs=1e-3)


def test_the_table_shows_every_caption(captioners, pictures, run):
    options = ["-c", captioners["cross"], "--nbest", 3, "--max-words", 5]
    code, output, errors = run("caption", pictures / "plain.png", *options)
    assert code == 0, errors
    model = load_pretrained(captioners["cross"])
    ((*captions,),) = model.caption(pictures / "plain.png", max_new_tokens=5, num_return=3)
    assert len(captions) == 3
    for caption in captions:
        assert caption.text in flat(output)
        assert f"{caption.log_probability:.2f}" in output


def test_unreadable_pictures_are_named_and_the_others_described(captioners, pictures, run):
    whole = (pictures / "plain.png").read_bytes()
    (pictures / "truncated.png").write_bytes(whole[: len(whole) // 2])
    (pictures / "empty.jpg").touch()
    code, output, errors = run("caption", pictures, pictures / "missing.png", "-c", captioners["prefix"], "--json")
    assert code == 1
    rows = json.loads(output)
    broken = {row["image"].rpartition("/")[2]: row["error"] for row in rows if "error" in row}
    assert set(broken) == {"truncated.png", "empty.jpg", "missing.png"}
    assert len([row for row in rows if "captions" in row]) == 8
    assert all(name in errors for name in broken)
    assert "Traceback" not in errors


@pytest.mark.parametrize("kind", kinds)
def test_words_are_explained_in_a_picture(kind, captioners, pictures, tmp_path, run):
    output = tmp_path / "new" / "words.png"
    options = ["-c", captioners[kind], "--explain", output, "--max-words", 7, "--json"]
    code, printed, errors = run("caption", pictures / "below" / "turned.png", *options)
    assert code == 0, errors
    (row,) = json.loads(printed)
    assert row["explanation"] == str(output)
    with Image.open(output) as picture:
        pixels = np.asarray(picture, dtype=float)
    assert pixels.shape[0] > 300
    assert pixels.shape[1] > 500
    assert pixels.std() > 20
    assert [path.name for path in output.parent.iterdir()] == ["words.png"]


def test_several_pictures_are_explained_in_a_folder(captioners, pictures, tmp_path, run):
    shutil.copy(pictures / "grey.png", pictures / "below" / "plain.png")
    (pictures / "empty.jpg").touch()
    chosen = [pictures / "plain.png", pictures / "below" / "plain.png", pictures / "empty.jpg", pictures / "plain.png"]
    options = ["-c", captioners["cross"], "--explain", tmp_path / "drawn", "--max-words", 3, "--json"]
    code, printed, _ = run("caption", *chosen, *options)
    assert code == 1  # for the empty one
    assert sorted(path.name for path in (tmp_path / "drawn").iterdir()) == ["plain-words-2.png", "plain-words.png"]
    drawn = {row["image"]: row.get("explanation") for row in json.loads(printed)}
    assert drawn[str(chosen[0])].endswith("plain-words.png")
    assert drawn[str(chosen[1])].endswith("plain-words-2.png")
    assert drawn[str(chosen[2])] is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--nbest", "4", "--beams", "3"], "--nbest 4 of --beams 3"),
        (["--explain", "words.txt"], "--explain words.txt: write to a .png"),
        (["--max-words", "99"], "99 words, start included, exceed the 30 positions"),
        (["-c", "no/where/near"], "there is no such file or folder"),
        (["--device", "nothing"], "--device nothing is not to be had here"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_cannot_be_had_is_said_without_traceback(options, message, captioners, pictures, run):
    options = options if "-c" in options else ["-c", captioners["cross"], *options]
    code, output, errors = run("caption", pictures / "plain.png", *options)
    assert (code, output) == (1, "")
    assert message in errors
    assert "Traceback" not in errors


def test_a_drawing_is_never_written_over_the_pictures(captioners, pictures, run):
    before = {path: path.read_bytes() for path in pictures.rglob("*") if path.is_file()}
    common = ["-c", captioners["cross"]]
    code, _, errors = run("caption", pictures / "plain.png", *common, "--explain", pictures / "plain.png")
    assert code == 1
    assert "is a picture to be described" in errors
    code, _, errors = run("caption", pictures, *common, "--explain", pictures / "all.png")
    assert code == 1
    assert "a file shows one picture; for 8 name a folder" in errors
    assert {path: path.read_bytes() for path in pictures.rglob("*") if path.is_file()} == before


def test_a_classifier_is_refused(checkpoints, pictures, run):
    code, output, errors = run("caption", pictures / "plain.png", "-c", checkpoints["vit"])
    assert (code, output) == (1, "")
    assert "vit: writes no captions, it is a classifier: visattn classify, visattn attend" in errors


def test_without_a_checkpoint_the_shipped_captioner_is_used(captioners, pictures, tmp_path, monkeypatch, run):
    monkeypatch.setattr("visattn.checkpoints.shipped._asset_folders", (tmp_path / "assets",))
    code, _, errors = run("caption", pictures / "plain.png")
    assert code == 1
    assert "no weights for captioning are shipped with this installation; say --checkpoint" in errors
    shutil.copytree(captioners["cross"], tmp_path / "assets" / "another")
    shutil.copytree(captioners["swin"], tmp_path / "assets" / default_weights["captioning"])
    code, output, errors = run("caption", pictures / "plain.png", "--json")
    assert code == 0, errors
    ((expected,),) = load_pretrained(captioners["swin"]).caption(pictures / "plain.png")
    assert json.loads(output)[0]["captions"][0]["token_ids"] == expected.token_ids
    assert run("caption", pictures / "plain.png", "-c", "another")[0] == 0


def test_names_and_captions_are_shown_as_they_are(captioners, pictures, run):
    shutil.copy(pictures / "plain.png", pictures / "[red]ä.png")
    code, output, errors = run("caption", pictures / "[red]ä.png", "-c", captioners["byte pairs"], "--max-words", 4)
    assert code == 0, errors
    assert "[red]ä.png" in "".join(output.split("│")).replace("\n", "").replace(" ", "")
