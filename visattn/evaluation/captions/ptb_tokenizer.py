"""The tokenizer of the official caption evaluation: Stanford PTBTokenizer 3.4.1, lower-cased, without punctuation.

All captions go through as one text with a caption a line, as in the original, since what follows a caption can change
it: "plan B." is `b.` before "Two", where a sentence may continue, and `b .` before "The", where a new one begins.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence
from functools import cache

from visattn.evaluation.captions.longest_match import Scanner
from visattn.evaluation.captions.ptb_grammar import CLASSES, DEFINITIONS, RULES

# What the official wrapper removes. Its bracket names are in upper case, the tokens in lower: brackets stay.
PUNCTUATION = frozenset(
    ["''", "'", "``", "`", "-LRB-", "-RRB-", "-LCB-", "-RCB-", ".", "?", "!", ",", ":", "-", "--", "...", ";"]
)

# Line separators other than the newline: the original starts a new line there, and shifts all captions that follow.
LINE_SEPARATORS = re.compile("[\r\x0b\x0c\u2028\u2029]")

# Captions of letters, spaces and commas with a period at the end need no grammar, unless a word is cut in two or the
# period belongs to an abbreviation.
_plain = re.compile(r"[A-Za-z, ]*(?: \.|\b([A-Za-z]{2,})\.)? *").fullmatch
_is_cut = re.compile("cannot|g(?:onna|otta|imme)|lemme|wanna", re.IGNORECASE).search

_QUOTES = {"\x91": "`", "\u2018": "`", "\u201b": "`", "\u2039": "`", "\x92": "'", "\u2019": "'", "\u203a": "'"}
_QUOTES |= {"\x93": "``", "\u201c": "``", "\u00ab": "``", "\x94": "''", "\u201d": "''", "\u00bb": "''"}
_CURRENCIES = {"\u00a2": "cents", "\u00a3": "#", "\x80": "$", "\u00a4": "$", "\u20a0": "$", "\u20ac": "$"}
_FRACTIONS = {"\u00bc": "1/4", "\u00bd": "1/2", "\u00be": "3/4", "\u2153": "1/3", "\u2154": "2/3"}
_PARENTHESES = {"(": "-LRB-", ")": "-RRB-"}
_NO_BREAK = {" ": "\u00a0"}
_translations = {
    "quotes": str.maketrans(_QUOTES),
    "currency": str.maketrans(_CURRENCIES),
    "fraction": str.maketrans(_FRACTIONS),
    "parentheses": str.maketrans(_PARENTHESES),
    "phone": str.maketrans(_PARENTHESES | _NO_BREAK),
    "spaced": str.maketrans(_NO_BREAK),
    "tag": str.maketrans(_NO_BREAK),
}


def tokenize(captions: Sequence[str]) -> list[str]:
    """Tokenizes captions as the official evaluation does, in the order given.

    Args:
        captions: the captions of a file in its order; a newline within one counts as a space.
    Returns:
        For each caption its tokens, in lower case, without punctuation, joined by spaces.
    Raises:
        ValueError: a caption holds a line separator other than the newline, or half of a surrogate pair.
    """
    captions = [caption.replace("\n", " ") for caption in captions]
    for index, caption in enumerate(captions):
        if not caption.isascii() or "\r" in caption or "\x0b" in caption or "\x0c" in caption:
            _check(index, caption)
    lines = []
    stream = _Stream(captions)
    index = 0
    while index < len(captions):
        plain = _plain(captions[index])
        if plain and not (plain[1] and _is_abbreviation(plain[1].lower())) and not _is_cut(captions[index]):
            words = captions[index].lower().replace(",", " ").replace(".", " ").split()
            lines.append(" ".join(words))
            index += 1
        else:
            found = list(stream.lines(index))
            lines += found
            index += len(found)
    return lines


def split(text: str) -> list[str]:
    """The tokens of a text with their punctuation, in lower case, as PTBTokenizer makes them; "\\n" for a new line."""
    return [token for token, _ in _tokens(_utf16_units(text), 0)]


def _check(index: int, caption: str) -> None:
    if separator := LINE_SEPARATORS.search(caption):
        raise ValueError(
            f"caption {index} holds the line separator U+{ord(separator[0]):04X} at {separator.start()}: the official "
            f"tokenizer would take what follows for the next caption; replace it by a space: {caption!r}"
        )
    try:
        caption.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"caption {index} is no valid Unicode (a lone surrogate at {error.start}): {caption!r}"
        ) from None


class _Stream:
    """All captions as one text, a line each, in UTF-16 code units as Java reads them."""

    def __init__(self, captions: list[str]) -> None:
        self.captions = captions
        self.ascii = all(map(str.isascii, captions))
        units = captions if self.ascii else [_utf16_units(caption) for caption in captions]
        self.text = "\n".join(units)
        self.starts = [0]
        for unit in units:
            self.starts.append(self.starts[-1] + len(unit) + 1)

    def lines(self, index: int) -> Iterator[str]:
        """The caption at `index` and all that its last token reaches into, each as tokens without punctuation."""
        for tokens in self.token_lines(index):
            # The wrapper splits the printed line at spaces again, after cutting white space off its end.
            words = " ".join(tokens).rstrip().split(" ")
            yield " ".join(word for word in words if word not in PUNCTUATION)

    def token_lines(self, index: int) -> Iterator[list[str]]:
        """The tokens of the caption at `index`; of the next ones too, as long as a token spans the line's end."""
        position = self.starts[index]
        line: list[str] = []
        for token, position in _tokens(self.text, position):  # noqa: B020 (the position moves on)
            if token == "\n":
                yield line
                line = []
                if position == self.starts[index + 1]:
                    return
                index += 1
                continue
            first, *rest = token.split("\n")  # a tag with a newline in an attribute
            line.append(first)
            for part in rest:
                yield line
                line = [part]
                index += 1
        yield line


def _tokens(text: str, position: int) -> Iterator[tuple[str, int]]:
    """The tokens from `position` on, in lower case, each with the position after it; a newline is the token "\\n"."""
    scanner = _scanner()
    end_of_text = len(text)
    while position < end_of_text:
        number, end = scanner.match(text, position)
        rule = RULES[number]
        if rule.before is not None:
            end = position + _length_before(number, text[position:end])
        action = rule.action
        token = text[position:end]
        if action == "skip":
            position = end
            continue
        if action.startswith("split"):
            end -= int(action[-1])
            token = text[position:end]
        elif action == "acronym":  # "B." is a word and a period, "U.S." keeps its period and gives another one
            end -= 1
            token = token if len(token) > 2 else token[:-1]
        elif action == "period again":
            end -= 1
        elif action != "token":
            token = _rewrite(token, action)
        position = end
        yield _lower(_from_utf16_units(token)), position


def _rewrite(token: str, action: str) -> str:
    """What PTBTokenizer prints for a token."""
    if action == "word":
        return token.replace("\u00ad", "") or "-"
    if action == "ampersand":
        return re.sub("&amp;", "&", token, flags=re.IGNORECASE | re.ASCII)
    if action in ("left quote", "right quote"):
        mark = "`" if action == "left quote" else "'"
        token = re.sub("&apos;|'", mark, token)
        token = re.sub('&quot;|"', 2 * mark, token)
        return token.translate(_translations["quotes"])
    if action in _translations:
        return token.translate(_translations[action])
    constants = {"dash": "--", "ellipsis": "...", "newline": "\n"}
    if action == "hyphens":
        return "--" if 3 <= len(token) <= 4 else token
    return constants.get(action, action)


@cache
def _scanner() -> Scanner:
    patterns = [rule.pattern if rule.before is None else f"{rule.pattern}({rule.before})" for rule in RULES]
    return Scanner(patterns, DEFINITIONS, CLASSES)


@cache
def _parts(number: int) -> tuple[Scanner, Scanner]:
    rule = RULES[number]
    assert rule.before is not None
    return Scanner([rule.pattern], DEFINITIONS, CLASSES), Scanner([rule.before], DEFINITIONS, CLASSES)


def _length_before(number: int, text: str) -> int:
    """The length of the longest beginning of `text` that the rule matches and whose rest is what must follow."""
    pattern, before = _parts(number)
    for length in reversed(pattern.ends(text)):
        if before.match(text, length) == (0, len(text)):
            return length
    raise AssertionError(f"rule {number} does not match {text!r}")


@cache
def _is_abbreviation(word: str) -> bool:
    """Whether the period after a word may be part of it, whatever follows."""
    abbreviations = ("{USUALLY_LAST}", "{NEVER_LAST}\\.", "{BEFORE_NUMBER}", "co\\.")
    scanner = _abbreviation_scanner(abbreviations)
    text = word + "."
    return any(scanner.match(case) != (-1, 0) for case in (text, text.capitalize(), text.upper()))


@cache
def _abbreviation_scanner(patterns: tuple[str, ...]) -> Scanner:
    return Scanner(patterns, DEFINITIONS, CLASSES)


def _utf16_units(text: str) -> str:
    if not text or max(text) <= "\uffff":
        return text
    data = text.encode("utf-16-le")
    return "".join(chr(data[i] | data[i + 1] << 8) for i in range(0, len(data), 2))


def _from_utf16_units(token: str) -> str:
    if token.isascii() or not any("\ud800" <= unit <= "\udfff" for unit in token):
        return token
    return token.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace").replace("\ufffd", "?")


def _lower(token: str) -> str:
    """Lower case as in Java, which differs from Python's for the Greek sigma at the end of a word."""
    if "\u03a3" not in token:
        return token.lower()
    kinds = "".join(map(_kind, token))
    pieces, end = [], 0
    for word in _find_words(kinds):
        pieces += [token[end : word.start()], _lower_sigma(token[word.start() : word.end()])]
        end = word.end()
    return "".join([*pieces, token[end:]]).lower()


# Java's words: letters (l), marks (m) and digits (d), and what joins two letters (-) or two digits (, or .).
_find_words = re.compile("(?:[lmd]|(?<=[lm])[-.](?=l)|(?<=d)[,.](?=d))+").finditer


def _kind(character: str) -> str:
    category = unicodedata.category(character)
    if "\u3005" <= character <= "\u9fff" or "\uf900" <= character <= "\ufaff":  # Chinese and Japanese stand apart
        return " "
    if character in "\"'\u00ad\u2027" or category in ("Pd", "Pc"):
        return "-"
    if character in ",.":
        return character
    return {"L": "l", "M": "m", "N": "d"}.get(category[0], "m" if category == "Cf" else " ")


def _lower_sigma(word: str) -> str:
    cased = [place for place, character in enumerate(word) if _is_cased(character)]
    if len(cased) > 1 and word[cased[-1]] == "\u03a3":
        word = word[: cased[-1]] + "\u03c2" + word[cased[-1] + 1 :]
    return word.replace("\u03a3", "\u03c3")


def _is_cased(character: str) -> bool:
    if unicodedata.category(character) in ("Lu", "Ll", "Lt"):
        return True
    return (
        re.match(
            "[\u02b0-\u02b8\u02c0\u02c1\u02e0-\u02e4\u0345\u037a\u1d2c-\u1d61\u2160-\u217f\u24b6-\u24e9]", character
        )
        is not None
    )
