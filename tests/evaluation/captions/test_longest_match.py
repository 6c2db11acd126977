import re

import pytest

from visattn.evaluation.captions.longest_match import Scanner


@pytest.mark.parametrize(
    ("patterns", "text", "expected"),
    [
        (["ab", "abc"], "abcd", (1, 3)),  # the longest
        (["a.", "[a-z]+", "ab"], "ab", (1, 2)),  # of equal length the first
        (["x"], "y", (-1, 0)),
        (["@+|#+"], "@@#", (0, 2)),
        (["[0-9]{2,4}"], "12345", (0, 4)),
        (["(ab){1,2}c?"], "ababab", (0, 4)),
        (["Kit"], "KIT", (0, 3)),  # literals in both cases
        (["[k]it"], "KIT", (-1, 0)),  # classes as written
        (["{NAME}!"], "bb!", (0, 3)),
        ([r"\d+\.\u0041"], "7.a", (0, 3)),
        (["[^a-c]*"], "xyza", (0, 3)),
    ],
)
def test_the_longest_match_of_the_first_rule_wins(patterns, text, expected):
    scanner = Scanner(patterns, {"NAME": "b+"}, {"d": str.isdigit})
    assert scanner.match(text) == expected


def test_ends_are_all_lengths_that_match():
    assert Scanner(["a*b?"], {}, {}).ends("aabx") == [0, 1, 2, 3]


@pytest.mark.parametrize("pattern", ["a*b|ab*", "(a|b)*abb", "a{0,2}b{1,3}", "(ab?|c)+", "[^b]+b*"])
def test_matches_agree_with_re_where_both_take_the_longest(pattern):
    scanner = Scanner([pattern], {}, {})
    for number in range(3**6):
        text = "".join("abc"[number // 3**i % 3] for i in range(6))
        ends = [end for end in range(7) if re.fullmatch(pattern, text[:end])]
        assert scanner.ends(text) == ends


def test_an_unbalanced_pattern_is_named():
    with pytest.raises(ValueError, match=r"unbalanced '\)'"):
        Scanner(["a)b"], {}, {})
