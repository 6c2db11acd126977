"""Captions equal those of plain decoding: one image at a time, no cache, a whole forward at each step."""

import pytest
import torch

from tests.text.plain_decoding import (
    END,
    PADDING,
    START,
    all_captions,
    image_tokens,
    plain_beam_search,
    plain_diverse_beam_search,
    plain_greedy,
    probabilities_of,
    small_decoder,
    total,
)
from visattn.text import generate

ids = {"start_ids": [START], "end_id": END, "padding_id": PADDING}
mask = torch.tensor([[1, 1, 0, 1, 1], [1, 1, 1, 1, 1], [0, 1, 1, 0, 1]], dtype=torch.bool)
beam_options = [
    {"num_beams": 1},
    {"num_beams": 3},
    {"num_beams": 5, "length_penalty": 0.0},
    {"num_beams": 3, "length_penalty": 2.0},
    {"num_beams": 3, "length_penalty": -1.0},
    {"num_beams": 4, "early_stopping": True},
    {"num_beams": 4, "early_stopping": "never"},
    {"num_beams": 3, "no_repeat_ngram": 2},
    {"num_beams": 3, "no_repeat_ngram": 1, "min_new_tokens": 4},
    {"num_beams": 3, "min_new_tokens": 6, "length_penalty": 0.5},
]


def agrees(captions, expected, probabilities):
    """Our captions of an image against (score, words, whether it has an end) of plain decoding."""
    assert [caption.token_ids for caption in captions] == [words for _, words, _ in expected]
    for caption, (_, words, has_end) in zip(captions, expected, strict=True):
        assert caption.log_probability == pytest.approx(total(probabilities, words, has_end), abs=1e-4)


@pytest.mark.parametrize("style", ["cross", "prefix"])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("options", [{}, {"no_repeat_ngram": 1}, {"no_repeat_ngram": 3}, {"min_new_tokens": 5}])
def test_greedy_equals_plain_decoding(style, masked, options):
    lengths = set()
    for seed in range(3):
        decoder, memory = small_decoder(seed, style=style, end=2.0), image_tokens(seed)
        captions = generate(decoder, memory, max_new_tokens=10, memory_mask=mask if masked else None, **ids, **options)
        for image, [caption] in enumerate(captions):
            probabilities = probabilities_of(decoder, memory[image], [START], mask[image] if masked else None)
            words = plain_greedy(probabilities, [START], 10, **options)
            agrees([caption], [(0, words, len(words) < 10)], probabilities)
            lengths.add(len(words))
    assert len(lengths) > 1  # captions have ended in different places


@pytest.mark.parametrize("style", ["cross", "prefix"])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("options", beam_options, ids=str)
def test_beam_search_equals_plain_decoding(style, masked, options):
    lengths = set()
    for seed in range(3):
        decoder, memory = small_decoder(seed, style=style, end=2.0), image_tokens(seed)
        captions = generate(
            decoder,
            memory,
            num_return=options["num_beams"],
            max_new_tokens=8,
            memory_mask=mask if masked else None,
            **ids,
            **options,
        )
        for image, group in enumerate(captions):
            probabilities = probabilities_of(decoder, memory[image], [START], mask[image] if masked else None)
            if options["num_beams"] == 1:
                words = plain_greedy(probabilities, [START], 8)
                expected = [(0.0, words, len(words) < 8)]
            else:
                expected = plain_beam_search(probabilities, [START], 8, **options)
            agrees(group, expected, probabilities)
            lengths |= {len(caption.token_ids) for caption in group}
    assert len(lengths) > 1


@pytest.mark.parametrize("options", beam_options[1:], ids=str)
def test_a_start_of_several_ids_belongs_to_its_image(options):
    decoder, memory = small_decoder(5, end=2.0), image_tokens(5)
    starts = torch.tensor([[START, 7, 9], [START, 8, 8], [4, 4, 4]])
    captions = generate(decoder, memory, max_new_tokens=6, num_return=2, **{**ids, "start_ids": starts}, **options)
    for image, group in enumerate(captions):
        start = starts[image].tolist()
        probabilities = probabilities_of(decoder, memory[image], start)
        agrees(group, plain_beam_search(probabilities, start, 6, **options)[:2], probabilities)


@pytest.mark.parametrize("num_groups", [2, 3, 6])
@pytest.mark.parametrize("diversity", [0.0, 0.7, 5.0])
@pytest.mark.parametrize("options", [{}, {"length_penalty": 0.0, "early_stopping": True}, {"no_repeat_ngram": 2}])
def test_diverse_beam_search_equals_plain_decoding(num_groups, diversity, options):
    for seed in range(2):
        decoder, memory = small_decoder(seed, end=2.0), image_tokens(seed)
        groups = {"num_beams": 6, "num_groups": num_groups, "diversity": diversity}
        captions = generate(decoder, memory, num_return=6, max_new_tokens=6, **ids, **groups, **options)
        for image, group in enumerate(captions):
            probabilities = probabilities_of(decoder, memory[image], [START])
            expected = plain_diverse_beam_search(probabilities, [START], 6, **groups, **options)
            agrees(group, expected, probabilities)


def test_diversity_widens_the_choice_of_words():
    decoder, memory = small_decoder(0, end=-3.0), image_tokens(0)

    def different_words(diversity):
        options = {"num_beams": 4, "num_groups": 4, "diversity": diversity, "num_return": 4}
        captions = generate(decoder, memory, max_new_tokens=6, **ids, **options)
        return [len({word for caption in group for word in caption.token_ids}) for group in captions]

    assert sum(different_words(5.0)) > sum(different_words(0.1))


@pytest.mark.parametrize("length_penalty", [0.0, 1.0, 2.0])
def test_a_beam_as_wide_as_the_search_space_lists_every_caption_in_order(length_penalty):
    decoder, memory = small_decoder(3, vocabulary=4, spread=0.4), image_tokens(3, images=2)
    captions = generate(
        decoder, memory, max_new_tokens=4, num_beams=125, num_return=125, length_penalty=length_penalty, **ids
    )
    for image, group in enumerate(captions):
        probabilities = probabilities_of(decoder, memory[image], [START])
        expected = all_captions(probabilities, 4, 4, length_penalty)
        assert len(group) == len(expected) == 121  # 1 + 3 + 9 + 27 with an end, 81 without
        agrees(group, expected, probabilities)
        everything = sum(torch.tensor([caption.log_probability for caption in group]).exp())
        assert everything == pytest.approx(1, abs=1e-4)


def test_each_image_gets_the_same_captions_alone_and_in_a_batch():
    decoder, memory = small_decoder(1, end=2.0), image_tokens(1, images=7)
    for options in (
        {},
        {"num_beams": 3, "num_return": 3},
        {"num_beams": 4, "num_groups": 2, "diversity": 1.0},
        {"num_beams": 2, "forced_words": [[5, 6]]},
    ):
        together = generate(decoder, memory, **ids, max_new_tokens=9, **options)
        alone = [generate(decoder, image[None], **ids, max_new_tokens=9, **options)[0] for image in memory]
        for group, expected in zip(together, alone, strict=True):
            assert [caption.token_ids for caption in group] == [caption.token_ids for caption in expected]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"num_beams": 3},
        {"num_beams": 4, "num_groups": 2, "diversity": 1.0},
        {"num_beams": 2, "forced_words": [[5]]},
    ],
)
def test_images_are_read_once_and_words_once(options):
    decoder, memory = small_decoder(1, end=2.0), image_tokens(1, images=7)
    read, rows = [], []
    for block in decoder.blocks:
        block.cross_attention.key_value.register_forward_hook(lambda module, inputs, output: read.append(inputs[0]))
    decoder.embedding.register_forward_hook(lambda module, inputs, output: rows.append(inputs[0].shape))
    captions = generate(decoder, memory, max_new_tokens=9, **ids, **options)
    assert [tuple(tokens.shape) for tokens in read] == [(7, 5, 10)] * 2  # keys and values of 7 images in 2 blocks
    assert {count for _, count in rows} == {1}  # one new word at a time
    counts = [count for count, _ in rows]
    assert counts == sorted(counts, reverse=True)
    if not options:
        assert counts[0] == 7
        assert counts[-1] < 7  # finished images are gone
        assert len(counts) == min(9, 1 + max(len(group[0].token_ids) for group in captions))  # none has to wait


def test_no_images_no_captions():
    assert generate(small_decoder(0), torch.zeros(0, 5, 10), **ids) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_beams": 0}, "num_beams 0"),
        ({"max_new_tokens": 0}, "max_new_tokens 0"),
        ({"no_repeat_ngram": -1}, "no_repeat_ngram -1"),
        ({"num_beams": 2, "num_return": 3}, "num_return 3 exceeds the 2"),
        ({"num_return": 3}, "num_return 3 exceeds the 1"),
        ({"num_beams": 4, "num_groups": 3}, "num_groups 3 doesn't divide num_beams 4"),
        ({"num_beams": 4, "diversity": 1.0}, "set num_groups"),
        ({"num_beams": 4, "num_groups": 2, "forced_words": [[5]]}, "don't go together"),
        ({"early_stopping": "always"}, "early_stopping 'always'"),
        ({"early_stopping": 1}, "early_stopping 1"),
        ({"temperature": 0.5}, "set sample=True"),
        ({"sample": True, "num_beams": 2}, "one by one"),
        ({"sample": True, "temperature": 0.0}, "temperature 0.0"),
        ({"sample": True, "top_k": -1}, "top_k -1"),
        ({"sample": True, "top_p": 0.0}, "top_p 0.0"),
        ({"start_ids": []}, "start_ids"),
        ({"start_ids": torch.ones(2, 1)}, r"start_ids \(2, 1\)"),
    ],
)
def test_options_out_of_range_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        generate(small_decoder(0), image_tokens(0), **ids | options)


@pytest.mark.parametrize("options", [{}, {"num_beams": 2}, {"sample": True}])
def test_weights_that_are_no_numbers_are_an_error(options):
    decoder = small_decoder(0)
    decoder.head.bias.data[3] = float("nan")
    with pytest.raises(ValueError, match="not finite"):
        generate(decoder, image_tokens(0), **ids, **options)


@pytest.mark.parametrize("options", [{}, {"num_beams": 2}, {"sample": True}])
def test_a_caption_for_which_no_word_is_left_is_an_error(options):
    decoder, memory = small_decoder(0, vocabulary=4), image_tokens(0)
    limits = {"no_repeat_ngram": 1, "min_new_tokens": 9}
    with pytest.raises(ValueError, match="every next word is banned"):
        generate(decoder, memory, **ids, **options, **limits)


def test_a_training_step_under_autocast_still_gets_gradients_after_decoding():
    decoder, memory = small_decoder(0), image_tokens(0)
    with torch.autocast("cpu", torch.bfloat16):
        generate(decoder, memory, **ids, num_beams=2, max_new_tokens=4)
        decoder(memory, torch.tensor([[START, 5, 6]] * 3)).float().sum().backward()
    assert all(parameter.grad is not None for parameter in decoder.parameters())
