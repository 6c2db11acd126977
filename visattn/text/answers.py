"""The form in which answers to questions about images are compared: that of the official VQA evaluation."""

from __future__ import annotations

import re
from functools import lru_cache

_punctuation = ';/[]"{}()=+\\_-><@`,?!'
_comma_in_number = re.compile(r"\d,\d")
_period = re.compile(r"\.(?!\d)")
_most_periods = 32  # the original passes a flag of `re` where the greatest number of replacements belongs
_articles = {"a", "an", "the"}
_number_words = "zero one two three four five six seven eight nine ten"
_numbers = {word: str(number) for number, word in enumerate(_number_words.split())} | {"none": "0"}
_contracted = """
    ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd
    he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've
    needn't not've o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've
    somebody'll somebody's someone'd someone'd've someone'll someone's something'd something'd've something'll
    that's there'd there'd've there're there's they'd they'd've they'll they're they've 'twas wasn't we'd've we've
    weren't what'll what're what's what've when's where'd where's where've who'd who'd've who'll who's who've why'll
    why're why's won't would've wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're you've
"""
_contractions = {  # each word by how it looks when one of its apostrophes is forgotten
    word[:place] + word[place + 1 :]: word
    for word in _contracted.split()
    for place, letter in enumerate(word)
    if letter == "'"
}
_contractions["somebody'd"] = "somebodyd"  # the wrong way round, as in the original


@lru_cache(maxsize=2**17)
def normalize_answer(answer: str) -> str:
    """Lower case, without punctuation and articles, number words as digits, contractions with their apostrophes.

    Punctuation between letters becomes a space, that beside a space goes without one; periods stay only in front of
    digits. Apostrophes and colons stay.

    Source: the evaluation code of VQA v2 (Goyal et al. 2017, https://arxiv.org/abs/1612.00837), which
        https://visualqa.org/evaluation.html describes; with its oddities, so that the numbers are the same.
    """
    answer = plain_answer(answer)
    thousands = _comma_in_number.search(answer) is not None
    text = answer
    for mark in _punctuation:
        if mark in text:
            text = text.replace(mark, "" if thousands or f"{mark} " in answer or f" {mark}" in answer else " ")
    words = [_numbers.get(word, word) for word in _period.sub("", text, count=_most_periods).lower().split()]
    return " ".join(_contractions.get(word, word) for word in words if word not in _articles)


def plain_answer(answer: str) -> str:
    """An answer on one line without spaces around it, otherwise as it was given."""
    return answer.replace("\n", " ").replace("\t", " ").strip()
