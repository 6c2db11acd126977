"""The tokenizer against stored output of the Java original, and against the original itself where Java is."""

import json
import random
import shutil
from pathlib import Path

import pytest

from visattn.evaluation.captions.ptb_tokenizer import _lower, split, tokenize

TOKENS = json.loads(Path(__file__).with_name("ptb_tokens.json").read_text())


def test_every_stored_text_is_cut_as_the_original_cuts_it():
    wrong = [(text, split(text), tokens) for text, tokens in TOKENS if split(text) != tokens]
    assert not wrong


@pytest.mark.parametrize(
    ("captions", "tokens"),
    [
        (["A man rides.", "Two dogs"], ["a man rides", "two dogs"]),
        (["Vitamin C.", "A man"], ["vitamin c", "a man"]),
        (["plan B.", "Two"], ["plan b.", "two"]),
        (["fig.", "3 dogs"], ["fig.", "3 dogs"]),
        (["fig.", "three dogs"], ["fig", "three dogs"]),
        (["They cannot go.", "gonna"], ["they can not go", "gon na"]),
        (["a (red) ball", ""], ["a -lrb- red -rrb- ball", ""]),
        (["", "", "x"], ["", "", "x"]),
        (["5 1/2 cups, 1,000"], ["5\u00a01/2 cups 1,000"]),
        (["two\nlines"], ["two lines"]),
        (["\U0001f600 smile"], ["smile"]),
    ],
)
def test_captions_follow_each_other_in_one_text(captions, tokens):
    assert tokenize(captions) == tokens


@pytest.mark.parametrize(
    ("text", "lower"),
    [
        ("\u03a3\u03a3_3Gen.", "\u03c3\u03c2_3gen."),
        ("\u03a3\u03a3_G", "\u03c3\u03c3_g"),
        ("A\u03a3-3G", "a\u03c2-3g"),
        ("A\u03a3.G", "a\u03c3.g"),
        ("a\u03a3/b", "a\u03c2/b"),
        ("a\u0301\u03a3", "a\u0301\u03c2"),
        ("3\u03a3", "3\u03c3"),
    ],
)
def test_a_sigma_that_ends_a_word_is_lowered_as_java_does(text, lower):
    assert _lower(text) == lower


def test_plain_captions_take_the_same_way_as_the_grammar():
    words = ["a", "dog", "Dog", "etc", "Mr", "co", "no", "cannot", "Gonna", "fig", "art", "U", "ill", ",", "ALA", "Pt"]
    generator = random.Random(5)
    captions = [" ".join(generator.choices(words, k=4)) + generator.choice(["", ".", " .", ". "]) for _ in range(2000)]
    removed = {",", "."}
    lines, line = [], []
    for token in [*split("\n".join(captions)), "\n"]:
        if token == "\n":
            lines.append(" ".join(line))
            line = []
        elif token not in removed:
            line.append(token)
    assert tokenize(captions) == lines


@pytest.mark.parametrize("separator", ["\r", "\x0b", "\x0c", "\u2028", "\u2029"])
def test_a_line_separator_is_reported_with_its_caption(separator):
    with pytest.raises(ValueError, match="caption 1 holds the line separator"):
        tokenize(["good", f"bad{separator}caption"])


def test_a_lone_surrogate_is_reported():
    with pytest.raises(ValueError, match="no valid Unicode"):
        tokenize(["\ud800"])


@pytest.mark.skipif(shutil.which("java") is None, reason="the original needs java")
def test_shuffled_texts_equal_the_java_original():
    tokenizer = pytest.importorskip("pycocoevalcap.tokenizer.ptbtokenizer").PTBTokenizer()
    generator = random.Random(3)
    pieces = [text for text, _ in TOKENS if "\n" not in text and "\u0085" not in text]
    captions = [" ".join(generator.choices(pieces, k=3)) for _ in range(3000)]
    official = tokenizer.tokenize({number: [{"caption": caption}] for number, caption in enumerate(captions)})
    assert tokenize(captions) == [line for (line,) in official.values()]
