import json

import numpy as np
import pytest
from PIL import Image

from tests.interpret.small_answerers import answerer_of, questions
from visattn.checkpoints import load_pretrained, save_pretrained


@pytest.fixture(scope="module")
def answerers(tmp_path_factory):
    """Name of a kind to a model folder."""
    root = tmp_path_factory.mktemp("answerers")
    for kind in ("class token", "byte pairs"):
        save_pretrained(answerer_of(kind), root / kind)
    return {kind: root / kind for kind in ("class token", "byte pairs")}


@pytest.mark.parametrize("kind", ["class token", "byte pairs"])
@pytest.mark.parametrize("name", ["grey.png", "cmyk.jpg", "palette.gif", "transparent.webp", "deep.png"])
def test_json_is_what_the_model_answers(kind, name, answerers, pictures, run):
    code, output, errors = run("ask", pictures / name, *questions, "-c", answerers[kind], "--json", "--top", 2)
    assert code == 0, errors
    rows = json.loads(output)
    assert [row["question"] for row in rows] == list(questions)
    expected = load_pretrained(answerers[kind]).answer(pictures / name, questions, num_return=2)
    for row, answers in zip(rows, expected, strict=True):
        assert [answer["text"] for answer in row["answers"]] == [answer.text for answer in answers]
        for answer, wanted in zip(row["answers"], answers, strict=True):
            assert answer["probability"] == pytest.approx(wanted.probability, abs=1e-5)


def test_the_table_shows_each_question_with_its_answers(answerers, pictures, run):
    code, output, errors = run("ask", pictures / "plain.png", *questions[:2], "-c", answerers["class token"])
    assert (code, errors) == (0, "")
    found = load_pretrained(answerers["class token"]).answer(pictures / "plain.png", questions[:2], num_return=3)
    for question, answers in zip(questions, found, strict=False):
        assert question.split()[0] in output
        for answer in answers:
            assert answer.text in output
            assert f"{answer.probability:.1%}" in output


def test_an_answer_is_explained_in_a_picture(answerers, pictures, tmp_path, run):
    output = tmp_path / "new" / "why.png"
    options = ["-c", answerers["class token"], "--explain", output]
    code, _, errors = run("ask", pictures / "below" / "turned.png", questions[0], *options)
    assert code == 0, errors
    with Image.open(output) as picture:
        pixels = np.asarray(picture.convert("RGB"), dtype=float)
    assert min(pixels.shape[:2]) > 300
    assert pixels.std() > 30
    longer = tmp_path / "longer.png"
    run("ask", pictures / "plain.png", questions[1], "-c", answerers["class token"], "--explain", longer)
    with Image.open(longer) as picture:
        assert picture.height > pixels.shape[0]  # a panel for each word


def test_words_that_the_model_has_not_learned_are_named(answerers, pictures, run):
    code, output, errors = run("ask", pictures / "plain.png", "Is the zebra (large)?", "-c", answerers["class token"])
    assert code == 0
    assert "warning: Is the zebra (large)?: the model has not learned zebra" in errors
    assert "Is the zebra" in output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["missing.png", "what is red?"], "missing.png: there is no such file"),
        (["truncated.png", "what is red?"], "truncated.png: truncated or damaged"),
        (["plain.png", " "], "' ' is no question"),
        (
            ["plain.png", "what is red?", "--explain", "why.txt"],
            "--explain why.txt: write to a .png, .jpg or .webp file",
        ),
        (["plain.png", "what?", "who?", "--explain", "why.png"], "why.png: shows one question; ask 2 one by one"),
        (["plain.png", "what is red?", "--device", "nothing"], "--device nothing is not to be had here"),
    ],
)
def test_what_cannot_be_is_said_without_traceback(arguments, message, answerers, pictures, run):
    whole = (pictures / "plain.png").read_bytes()
    (pictures / "truncated.png").write_bytes(whole[: len(whole) // 2])
    code, output, errors = run("ask", pictures / arguments[0], *arguments[1:], "-c", answerers["class token"])
    assert (code, output) == (1, "")
    assert message in errors
    assert "Traceback" not in errors


def test_the_picture_itself_is_not_overwritten(answerers, pictures, run):
    before = (pictures / "plain.png").read_bytes()
    options = ["-c", answerers["class token"], "--explain", pictures / "below" / ".." / "plain.png"]
    code, _, errors = run("ask", pictures / "plain.png", questions[0], *options)
    assert code == 1
    assert "is the picture itself; choose another name" in errors
    assert (pictures / "plain.png").read_bytes() == before


def test_a_model_of_another_kind_is_refused_with_what_it_is_for(checkpoints, answerers, pictures, run):
    code, _, errors = run("ask", pictures / "plain.png", "what is red?", "-c", checkpoints["vit"])
    assert code == 1
    assert "answers no questions, it is a classifier: visattn classify" in errors
    code, _, errors = run("classify", pictures / "plain.png", "-c", answerers["class token"])
    assert code == 1
    assert "has no classes, it answers questions: visattn ask" in errors


def test_without_shipped_weights_a_checkpoint_is_asked_for(pictures, run):
    code, _, errors = run("ask", pictures / "plain.png", "what is red?")
    assert code == 1
    assert "no weights for question answering are shipped with this installation; say --checkpoint" in errors
