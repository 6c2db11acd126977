"""The English Snowball stemmer ("Porter 2") in the version that METEOR 1.5 carries.

Today's releases stem some words otherwise ("evening", "past"), which would change METEOR's numbers.

Source: Porter, "The English (Porter2) stemming algorithm", https://snowballstem.org, as of 2010.
"""

from __future__ import annotations

import re

_SPECIAL = {
    "skis": "ski", "skies": "sky", "dying": "die", "lying": "lie", "tying": "tie", "idly": "idl", "gently": "gentl",
    "ugly": "ugli", "early": "earli", "only": "onli", "singly": "singl",
} | dict.fromkeys(("sky", "news", "howe", "atlas", "cosmos", "bias", "andes"))  # fmt: skip
_FINISHED_AFTER_PLURALS = frozenset(
    ["inning", "outing", "canning", "herring", "earring", "proceed", "exceed", "succeed"]
)

_STEP_2 = {
    "tional": "tion", "enci": "ence", "anci": "ance", "abli": "able", "entli": "ent", "izer": "ize",
    "ization": "ize", "ational": "ate", "ation": "ate", "ator": "ate", "alism": "al", "aliti": "al", "alli": "al",
    "fulness": "ful", "ousli": "ous", "ousness": "ous", "iveness": "ive", "iviti": "ive", "biliti": "ble",
    "bli": "ble", "fulli": "ful", "lessli": "less", "ogi": "og", "li": "",
}  # fmt: skip
_STEP_3 = {
    "tional": "tion", "ational": "ate", "alize": "al", "icate": "ic", "iciti": "ic", "ical": "ic", "ful": "",
    "ness": "", "ative": "",
}  # fmt: skip
_STEP_4 = (
    "al", "ance", "ence", "er", "ic", "able", "ible", "ant", "ement", "ment", "ent", "ism", "ate", "iti", "ous",
    "ive", "ize", "ion",
)  # fmt: skip

# A vowel, then the first consonant: what follows is the first region; the same again within it is the second.
_region = re.compile("[^aeiouy]*[aeiouy]+[^aeiouy]").match
_special_region = re.compile("gener|commun|arsen").match
_has_vowel = re.compile("[aeiouy]").search
# A vowel between consonants, the last of which is not w, x or Y; or a vowel that begins the word.
_ends_in_short_syllable = re.compile("(?:[^aeiouy][aeiouy][^aeiouywxY]|^[aeiouy][^aeiouy])$").search


def stem(word: str) -> str:
    """The stem of a lower-case English word; words of one or two letters stay as they are."""
    if len(word) <= 2:
        return word
    if word in _SPECIAL:
        return _SPECIAL[word] or word
    word = _mark_consonant_y(word.removeprefix("'"))
    first, second = _regions(word)
    word = _remove_plural(_remove_possessive(word))
    if word not in _FINISHED_AFTER_PLURALS:
        word = _remove_past_and_gerund(word, first)
        if len(word) > 2 and word[-1] in "yY" and word[-2] not in "aeiouy":
            word = word[:-1] + "i"
        word = _shorten_derivation(word, first)
        word = _shorten_adjective(word, first, second)
        word = _remove_residual_suffix(word, second)
        word = _remove_final_letter(word, first, second)
    return word.replace("Y", "y")


def _mark_consonant_y(word: str) -> str:
    """Writes Y for each y that is a consonant: at the beginning of the word and after a vowel."""
    if "y" not in word:
        return word
    if word[0] == "y":
        word = "Y" + word[1:]
    letters = list(word)
    for place in range(1, len(letters)):
        if letters[place] == "y" and letters[place - 1] in "aeiouy":
            letters[place] = "Y"
    return "".join(letters)


def _regions(word: str) -> tuple[int, int]:
    """Where the two regions begin in which most suffixes may be removed."""
    match = _special_region(word) or _region(word)
    if match is None:
        return len(word), len(word)
    first = match.end()
    within = _region(word[first:])
    return first, first + within.end() if within else len(word)


def _longest_suffix(word: str, suffixes) -> str | None:
    return max((suffix for suffix in suffixes if word.endswith(suffix)), key=len, default=None)


def _remove_possessive(word: str) -> str:
    for suffix in ("'s'", "'s", "'"):
        if word.endswith(suffix):
            return word[: -len(suffix)]
    return word


def _remove_plural(word: str) -> str:
    if word.endswith("sses"):
        return word[:-2]
    if word.endswith(("ied", "ies")):
        return word[:-2] if len(word) > 4 else word[:-1]
    if word.endswith("s") and not word.endswith(("us", "ss")) and _has_vowel(word[:-2]):
        return word[:-1]
    return word


def _remove_past_and_gerund(word: str, first: int) -> str:
    suffix = _longest_suffix(word, ("eed", "eedly", "ed", "edly", "ing", "ingly"))
    if suffix is None:
        return word
    rest = word[: -len(suffix)]
    if suffix.startswith("ee"):
        return rest + "ee" if len(rest) >= first else word
    if not _has_vowel(rest):
        return word
    if rest.endswith(("at", "bl", "iz")):
        return rest + "e"
    if rest.endswith(("bb", "dd", "ff", "gg", "mm", "nn", "pp", "rr", "tt")):
        return rest[:-1]
    return rest + "e" if len(rest) <= first and _ends_in_short_syllable(rest) else rest


def _shorten_derivation(word: str, first: int) -> str:
    suffix = _longest_suffix(word, _STEP_2)
    if suffix is None or len(word) - len(suffix) < first:
        return word
    rest = word[: -len(suffix)]
    if (suffix == "ogi" and not rest.endswith("l")) or (suffix == "li" and not rest.endswith(tuple("cdeghkmnrt"))):
        return word
    return rest + _STEP_2[suffix]


def _shorten_adjective(word: str, first: int, second: int) -> str:
    suffix = _longest_suffix(word, _STEP_3)
    if suffix is None or len(word) - len(suffix) < (second if suffix == "ative" else first):
        return word
    return word[: -len(suffix)] + _STEP_3[suffix]


def _remove_residual_suffix(word: str, second: int) -> str:
    suffix = _longest_suffix(word, _STEP_4)
    if suffix is None or len(word) - len(suffix) < second:
        return word
    rest = word[: -len(suffix)]
    return word if suffix == "ion" and not rest.endswith(("s", "t")) else rest


def _remove_final_letter(word: str, first: int, second: int) -> str:
    rest = word[:-1]
    if word.endswith("e") and (len(rest) >= second or (len(rest) >= first and not _ends_in_short_syllable(rest))):
        return rest
    if word.endswith("ll") and len(rest) >= second:
        return rest
    return word
