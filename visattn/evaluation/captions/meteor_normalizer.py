r"""METEOR's own tokenizer (`-norm`), which sees captions that the caption tokenizer has cut already.

It takes hyphenated words apart, cuts off clitics, and decides by a list of abbreviations whether a period belongs to
its word.

Source: the behaviour of METEOR 1.5; its rules go back to the tokenizer of Moses (Koehn et al., "Moses: open source
toolkit for statistical machine translation", ACL 2007).
"""

from __future__ import annotations

import re

from visattn.evaluation.captions.meteor_index import MeteorIndex

# Latin and Cyrillic letters
_LETTER = (
    r"A-Za-z\u0160\u017d\u0161\u017e\u0178\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u017e\u0400-\u0527\ua640-\ua66e\ua67e-\ua697"
    r"\u1d00-\u1d7f"
)
_SPACE = re.compile("[ \u00a0\u2000-\u200a\u202f\u205f\u3000]+")
_SEPARATOR = re.compile("[ \t\n\r\f]+")
_TRIMMED = "".join(map(chr, range(33)))  # what Java cuts off the ends of a string

# Letters, digits and spaces: no rule changes such a caption.
_is_plain = re.compile("[A-Za-z0-9 ]*").fullmatch
_has_letter = re.compile(f"[{_LETTER}]").search

# Applied in this order. The characters around a mark are part of the match, so that of two marks with one character
# between them a rule only finds the first.
_RULES = [
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (rf"([^0-9{_LETTER} \t\n\x0b\f\r.'`,\-\u2018\u2019])", r" \1 "),  # symbols
        (r"(\.{2,})", r" \1 "),
        (r"([^0-9]),([^0-9])", r"\1 , \2"),
        (r"([0-9]),([^0-9])", r"\1 , \2"),
        (r"([^0-9]),([0-9])", r"\1 , \2"),
        (r"[`\u2018\u2019]", "'"),
        (r"[\u201c\u201d]|''", ' " '),
        (r"\u2013|--", "-"),
        (rf"([0-9{_LETTER}.])-([0-9{_LETTER}])", r"\1 \2"),
        (rf"([^{_LETTER}])'([^{_LETTER}])", r"\1 ' \2"),
        (rf"([^0-9{_LETTER}])'([{_LETTER}])", r"\1 ' \2"),
        (rf"([{_LETTER}])'([^{_LETTER}])", r"\1 ' \2"),
        (rf"([{_LETTER}])'([{_LETTER}])", r"\1 '\2"),
        (r"([0-9])'(s)", r"\1 '\2"),
    )
]


def normalize(caption: str, index: MeteorIndex) -> list[str]:
    """The words of a caption as METEOR compares them, in lower case."""
    if _is_plain(caption):
        return caption.lower().split()
    text = f" {caption.strip(_TRIMMED)} "
    for pattern, replacement in _RULES:
        text = pattern.sub(replacement, text)
    tokens = [token for token in _SEPARATOR.split(text) if token]
    pieces = [
        _split_period(token, following, index) for token, following in zip(tokens, [*tokens[1:], ""], strict=True)
    ]
    text = _SPACE.sub(" ", " ".join(pieces)).strip(_TRIMMED).lower()
    return [token for token in _SEPARATOR.split(text) if token]


def _split_period(token: str, following: str, index: MeteorIndex) -> str:
    """The token with a period at its end set apart, unless that belongs to an abbreviation."""
    word = token[:-1]
    if not token.endswith(".") or not word.strip("."):
        return token
    if "." in word and _has_letter(word):
        return token.replace(".", "")  # U.S.
    if word in index.abbreviations or ("a" <= following[:1] <= "z"):
        return token
    if word in index.abbreviations_before_numbers and "0" <= following[:1] <= "9":
        return token
    return f"{word} ."
