import numpy as np
import pytest
from PIL import Image


@pytest.mark.parametrize("kind", ["local", "vit", "swin"])
@pytest.mark.parametrize(
    "options",
    [
        [],
        ["--method", "relevance"],
        ["--class", "dog"],
        ["--layer", "-1", "--head", "1"],
        ["--layer", "0", "--query", "2,3"],
        ["--query", "mean", "--head", "mean"],
    ],
    ids=" ".join,
)
def test_every_method_writes_a_picture(kind, options, checkpoints, pictures, tmp_path, run):
    output = tmp_path / "new" / "map.png"
    code, printed, errors = run(
        "attend", pictures / "plain.png", "--checkpoint", checkpoints[kind], "--output", output, *options
    )
    assert code == 0, errors
    assert printed.strip() == str(output)
    with Image.open(output) as picture:
        assert picture.width > 1000
        assert np.asarray(picture).std() > 20
    assert [path.name for path in output.parent.iterdir()] == ["map.png"]


@pytest.mark.parametrize("name", ["grey.png", "cmyk.jpg", "palette.gif", "transparent.webp", "deep.png"])
def test_every_mode_of_a_picture_is_drawn(name, checkpoints, pictures, tmp_path, run):
    code, _, errors = run("attend", pictures / name, "-c", checkpoints["vit"], "-o", tmp_path / "map.jpg")
    assert code == 0, errors
    assert (tmp_path / "map.jpg").stat().st_size > 10_000


def test_options_change_what_is_drawn(checkpoints, pictures, tmp_path, run):
    drawn = []
    for options in ([], ["--layer", "0"], ["--layer", "1"], ["--layer", "1", "--head", "0"], ["--query", "0,0"]):
        run("attend", pictures / "plain.png", "-c", checkpoints["vit"], "-o", tmp_path / "map.png", *options)
        drawn.append((tmp_path / "map.png").read_bytes())
    assert len(set(drawn)) == len(drawn)


def test_the_query_defaults_to_the_class_token(checkpoints, pictures, tmp_path, run):
    for name, options in {"default": [], "class": ["--query", "class"], "mean": ["--query", "mean"]}.items():
        options = ["--layer", "1", *options, "-o", tmp_path / f"{name}.png"]
        assert run("attend", pictures / "plain.png", "-c", checkpoints["vit"], *options)[0] == 0
    pixels = {name: (tmp_path / f"{name}.png").read_bytes() for name in ("default", "class", "mean")}
    assert pixels["default"] == pixels["class"] != pixels["mean"]


def test_layers_are_listed(checkpoints, run):
    code, output, _ = run("attend", "--list", "-c", checkpoints["local"])
    assert code == 0
    assert "blocks.0.attention" in output
    assert "neighborhood 3x3" in output
    assert "8x8" in output


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--layer", "7"], "there is no layer 7; the 2 attention layers are counted from 0"),
        (["--layer", "norm"], "no attention layer is called 'norm'; there are: blocks.0.attention"),
        (["--head", "2"], "has no head 2"),
        (["--head", "first"], "--head first is neither a number from 0 nor mean"),
        (["--query", "8,0"], "no token at row 8, column 0 of its 8x8 grid"),
        (["--query", "3"], "--query 3 is neither ROW,COLUMN"),
        (["--query", "class"], "has no class token"),
        (["--method", "rollout", "--head", "1"], "--method rollout goes through all layers; leave out --head"),
        (["--method", "rollout", "--class", "dog"], "--class is for --method relevance"),
        (["--class", "gnu"], "--class gnu: there is no such class; there are 6, counted from 0, such as ant, bee"),
        (["--output", "map.txt"], "--output map.txt: write to a .png"),
        (["--checkpoint", "no/where/near"], "there is no such file or folder"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_is_not_there_is_an_error_that_says_what_is(options, message, checkpoints, pictures, tmp_path, run):
    arguments = ["-c", checkpoints["local"], "-o", tmp_path / "map.png", *options]
    code, output, errors = run("attend", pictures / "plain.png", *arguments)
    assert (code, output) == (1, "")
    assert message in errors
    assert "Traceback" not in errors
    assert not (tmp_path / "map.png").exists()


def test_unreadable_pictures_are_named(checkpoints, pictures, run):
    (pictures / "empty.png").touch()
    for name in ("empty.png", "missing.png", "notes.txt"):
        code, _, errors = run("attend", pictures / name, "-c", checkpoints["vit"])
        assert code == 1
        assert name in errors
    code, _, errors = run("attend", "-c", checkpoints["vit"])
    assert code == 1
    assert "which picture?" in errors
