"""Drawn captions follow the model's distribution."""

import math
from collections import Counter

import pytest
import torch

from tests.text.plain_decoding import (
    END,
    PADDING,
    START,
    all_captions,
    image_tokens,
    probabilities_of,
    small_decoder,
    total,
)
from visattn.text import generate
from visattn.text.sampling import word_probabilities
from visattn.text.word_scores import best_words, log_normalizer

ids = {"start_ids": [START], "end_id": END, "padding_id": PADDING}


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def test_captions_are_as_frequent_as_probable():
    decoder, memory, draws = small_decoder(3, vocabulary=4, spread=0.4), image_tokens(3, images=2), 4000
    captions = generate(
        decoder,
        memory.repeat_interleave(draws // 10, dim=0),
        max_new_tokens=3,
        sample=True,
        num_return=10,
        generator=seeded(0),
        **ids,
    )
    for image in range(2):
        groups = captions[image * draws // 10 : (image + 1) * draws // 10]
        probabilities = probabilities_of(decoder, memory[image], [START])
        counts = Counter(tuple(caption.token_ids) for group in groups for caption in group)
        everything = all_captions(probabilities, 4, 3, length_penalty=0.0)
        assert counts.keys() <= {tuple(words) for _, words, _ in everything}
        for log_probability, words, _ in everything:
            expected = draws * math.exp(log_probability)
            assert abs(counts[tuple(words)] - expected) < 4.5 * expected**0.5 + 1


@pytest.mark.parametrize(
    "options", [{}, {"temperature": 0.5}, {"top_k": 3}, {"top_p": 0.6}, {"no_repeat_ngram": 1}], ids=str
)
def test_log_probabilities_are_the_models_own_and_in_order(options):
    decoder, memory = small_decoder(6, end=2.0), image_tokens(6)
    captions = generate(
        decoder, memory, max_new_tokens=7, sample=True, num_return=5, generator=seeded(1), **ids, **options
    )
    assert len({len(caption.token_ids) for group in captions for caption in group}) > 1
    for image, group in enumerate(captions):
        probabilities = probabilities_of(decoder, memory[image], [START])
        for caption in group:
            has_end = len(caption.token_ids) < 7
            expected = total(probabilities, caption.token_ids, has_end)
            assert caption.log_probability == pytest.approx(expected, abs=1e-4)
        assert group == sorted(group, key=lambda caption: -caption.log_probability)


def test_a_generator_makes_captions_repeatable():
    decoder, memory = small_decoder(6), image_tokens(6)

    def draw(seed):
        return generate(decoder, memory, sample=True, num_return=3, generator=seeded(seed), max_new_tokens=9, **ids)

    assert draw(5) == draw(5)
    assert draw(5) != draw(6)


@pytest.mark.parametrize("options", [{"top_k": 1}, {"top_p": 1e-6}, {"temperature": 1e-4}], ids=str)
def test_a_sharp_distribution_is_greedy(options):
    decoder, memory = small_decoder(7, end=2.0), image_tokens(7)
    drawn = generate(decoder, memory, sample=True, max_new_tokens=9, **ids, **options)
    greedy = generate(decoder, memory, max_new_tokens=9, **ids)
    assert [group[0].token_ids for group in drawn] == [group[0].token_ids for group in greedy]


def test_the_nucleus_holds_the_fewest_likeliest_words():
    logits = torch.tensor([[0.1, 0.4, 0.05, 0.3, 0.15], [0.2, 0.2, 0.2, 0.2, 0.2]]).log()
    probabilities, words = word_probabilities(logits, top_p=0.72)
    kept = [row[p > 0].tolist() for row, p in zip(words, probabilities, strict=True)]
    assert kept[0] == [1, 3, 4]  # 0.4 + 0.3 is too little
    assert len(kept[1]) == 4
    torch.testing.assert_close(probabilities[0, :3], torch.tensor([0.4, 0.3, 0.15]) / 0.85)


@pytest.mark.parametrize("vocabulary", [7, 640, 5000, 50257])
@pytest.mark.parametrize("count", [1, 3, 7])
def test_the_best_words_are_those_of_a_plain_search(vocabulary, count):
    logits = torch.randn(5, vocabulary, generator=seeded(vocabulary))
    logits[0, -1], logits[1, 0] = 9, 9  # at the borders
    logits[2, : count + 1] = 9 + torch.arange(count + 1)[:vocabulary]  # all in one block
    logits[3] = float("-inf")
    logits[3, vocabulary // 2] = 0
    values, words = best_words(logits, count)
    expected = logits.topk(count)
    assert torch.equal(values, expected.values)
    real = values > float("-inf")
    assert torch.equal(words[real], expected.indices[real])


def test_the_normalizer_of_many_rows_is_that_of_each():
    logits = torch.randn(90, 6000, generator=seeded(0)) * 5
    torch.testing.assert_close(log_normalizer(logits), logits.double().logsumexp(1).float())
