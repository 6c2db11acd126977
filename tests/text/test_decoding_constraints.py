"""Captions with forced words are the best of those that contain them."""

import pytest

from tests.text.plain_decoding import (
    END,
    PADDING,
    START,
    all_captions,
    contains,
    image_tokens,
    plain_grid_search,
    probabilities_of,
    small_decoder,
    total,
)
from visattn.text import generate
from visattn.text.constrained_beam_search import ForcedWords

ids = {"start_ids": [START], "end_id": END, "padding_id": PADDING}


@pytest.mark.parametrize(
    "forced_words", [[[3]], [[0, 3]], [[3], [0]], [[3, 0], [0, 3]], [[0, 0, 3]], [[3], [3, 1]]], ids=str
)
@pytest.mark.parametrize("length_penalty", [0.0, 1.0])
def test_a_wide_search_lists_every_caption_with_the_forced_words_in_order(forced_words, length_penalty):
    decoder, memory = small_decoder(3, vocabulary=4, spread=0.4), image_tokens(3, images=2)
    captions = generate(
        decoder,
        memory,
        max_new_tokens=4,
        num_beams=90,
        num_return=90,
        forced_words=forced_words,
        length_penalty=length_penalty,
        **ids,
    )
    for image, group in enumerate(captions):
        probabilities = probabilities_of(decoder, memory[image], [START])
        expected = [
            caption
            for caption in all_captions(probabilities, 4, 4, length_penalty)
            if all(contains(caption[1], forced) for forced in forced_words)
        ]
        assert [caption.token_ids for caption in group] == [words for _, words, _ in expected]
        for caption, (score, words, has_end) in zip(group, expected, strict=True):
            mean = caption.log_probability / (len(words) + has_end) ** length_penalty
            assert mean == pytest.approx(score, abs=1e-4)


@pytest.mark.parametrize("num_beams", [1, 3])
@pytest.mark.parametrize(
    "forced_words",
    [[[17]], [[17], [20]], [[17, 18, 17, 19]], [[9, 9], [9, 10]], [[3], [4], [5], [6], [7], [8]]],
    ids=str,
)
def test_narrow_beams_find_captions_with_all_forced_words(num_beams, forced_words):
    decoder, memory = small_decoder(2, end=2.0), image_tokens(2)
    for early_stopping in (False, True):
        captions = generate(
            decoder,
            memory,
            max_new_tokens=8,
            num_beams=num_beams,
            num_return=num_beams,
            forced_words=forced_words,
            early_stopping=early_stopping,
            **ids,
        )
        for group in captions:
            assert len(group) == num_beams
            assert len({tuple(caption.token_ids) for caption in group}) == num_beams
            for caption in group:
                assert all(contains(caption.token_ids, forced) for forced in forced_words)


@pytest.mark.parametrize("num_beams", [1, 3])
@pytest.mark.parametrize(
    "forced_words", [[[17]], [[17], [20]], [[0, 3, 0, 11]], [[9, 9], [9, 10]], [[0], [3, 3]]], ids=str
)
@pytest.mark.parametrize("options", [{}, {"length_penalty": 0.0, "early_stopping": True}], ids=str)
def test_narrow_beams_equal_a_plain_search(num_beams, forced_words, options):
    for seed in range(2):
        decoder, memory = small_decoder(seed, end=2.0), image_tokens(seed)
        options = options | {"num_beams": num_beams, "forced_words": forced_words}
        captions = generate(decoder, memory, max_new_tokens=7, num_return=num_beams, **ids, **options)
        for image, group in enumerate(captions):
            probabilities = probabilities_of(decoder, memory[image], [START])
            expected = plain_grid_search(probabilities, [START], 7, **options)
            assert [caption.token_ids for caption in group] == [words for _, words, _ in expected]
            for caption, (_, words, has_end) in zip(group, expected, strict=True):
                assert caption.log_probability == pytest.approx(total(probabilities, words, has_end), abs=1e-4)


def test_a_machine_reads_how_far_the_forced_words_have_come():
    forced = ForcedWords([[5, 6, 5, 7], [8], [8]], end_id=END)
    assert forced.length == 5
    found, places = frozenset(), []
    for length in range(1, 9):
        found, place = forced.read(found, [5, 6, 5, 6, 5, 7, 9, 8][:length])
        places.append(place)
    # 5 6 5 is three words of the first; the next 6 leaves the last two of them: 5 6
    assert places == [1, 2, 3, 2, 3, 4, 4, 5]
    assert found == {(5, 6, 5, 7), (8,)}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"forced_words": [[]]}, "each needs an id"),
        ({"forced_words": [[5, END]]}, "none may be the end"),
        ({"forced_words": [[3, 4], [5, 6], [7, 8]], "max_new_tokens": 5}, "forced words are 6 ids"),
        ({"forced_words": [[5, 5]], "no_repeat_ngram": 1}, "no caption with all forced words"),
    ],
)
def test_forced_words_that_cannot_be_are_an_error(options, message):
    with pytest.raises(ValueError, match=message):
        generate(small_decoder(0), image_tokens(0), num_beams=2, **ids, **options)
