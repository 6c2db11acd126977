"""Expected values are what the official evaluation code of VQA v2 gives."""

import pytest

from visattn.text.answers import normalize_answer


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("Yes", "yes"),
        ("  yes\n", "yes"),
        ("A dog", "dog"),
        ("the", ""),
        ("", ""),
        ("two dogs", "2 dogs"),
        ("none", "0"),
        ("Ten", "10"),
        ("eleven", "eleven"),
        ("3.5", "3.5"),
        ("3.5.", "3.5"),
        ("p.m.", "pm"),
        (".5", ".5"),
        (". . .", ""),
        ("1,000", "1000"),
        ("1,000 - 2", "1000 2"),
        ("red,blue", "red blue"),
        ("red, blue", "red blue"),
        ("red ,blue", "red blue"),
        ("red, blue,green", "red bluegreen"),  # one comma beside a space decides for all of them
        ("and/or", "and or"),
        ("t-shirt", "t shirt"),
        ("t-shirt -", "tshirt"),
        ("what?!", "what"),
        ("who's", "who's"),
        ("whos", "who's"),
        ("Im", "im"),
        ("dont", "don't"),
        ("couldnt've", "couldn't've"),
        ("yalld've", "yalld've"),
        ("y'alld've", "y'all'd've"),
        ("somebody'd", "somebodyd"),
        ("o'clock: 12:30", "o'clock: 12:30"),
        ("C\u0327a va\u00a0?", "c\u0327a va"),
        ("\u0663,\u0664 a/b", "\u0663\u0664 ab"),
        ("\U0001f642", "\U0001f642"),
        ("." * 40, "." * 8),
        ("on\ttable\n", "on table"),
    ],
)
def test_answers_are_normalized_as_officially(answer, expected):
    assert normalize_answer(answer) == expected
