"""Self-critical training: rewards with the end as a word, and the gradient of the expected reward."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch import Tensor

from visattn.evaluation.captions import Cider, bleu, tokenize
from visattn.heads import CaptionDecoder
from visattn.tasks.self_critical import (
    CaptionReward,
    pad_samples,
    policy_gradient_loss,
    sequence_log_probabilities,
)
from visattn.text import CaptionTokenizer

references = [
    ["A dog runs on the grass.", "a brown dog in a field", "the dog plays outside"],
    ["two men on a boat", "Men sit in a small boat, on a lake."],
    ["a child on a red swing", "a girl on a swing", "the child swings", "a girl plays"],
]


def test_a_caption_that_breaks_off_is_worth_less_than_one_that_ends():
    reward = CaptionReward(references)
    whole, broken = reward(["a brown dog in a field"] * 2, [True, False], [0, 0])
    assert whole > broken
    fragment, short = reward(["a dog in a", "a dog"], [True, True], [0, 0])
    without_end = Cider([tokenize(captions) for captions in references]).score(["a dog in a", "a dog"], [0, 0])
    assert fragment - short < without_end[0] - without_end[1]  # the end takes from a fragment what it gained


def test_the_reward_is_cider_d_of_captions_with_an_end_word():
    texts, images = ["two men in a boat", "a girl on a swing", "a dog"], [1, 2, 0]
    marked = [[f"{text} END" for text in tokenize(captions)] for captions in references]
    expected = Cider(marked).score(["two men in a boat END", "a girl on a swing END", "a dog"], images)
    np.testing.assert_array_equal(CaptionReward(references)(texts, [True, True, False], images), expected)
    ends = ["two men in a boat END", "a girl on a swing END", "a dog"]
    mixed = expected + 0.5 * bleu([marked[image] for image in images], ends)[1][3]
    np.testing.assert_allclose(CaptionReward(references, 0.5)(texts, [True, True, False], images), mixed)


def test_what_no_caption_file_may_hold_is_scored_as_a_space():
    reward = CaptionReward(references)
    assert reward(["a\u2028dog\rruns"], [True], [0]) == reward(["a dog runs"], [True], [0])


def test_images_without_references_are_passed_over():
    with_gaps = CaptionReward([[], references[0], [], references[1], references[2]])
    scored = (["a dog runs", "a girl on a boat"], [True, True])
    np.testing.assert_array_equal(with_gaps(*scored, [1, 4]), CaptionReward(references)(*scored, [0, 2]))


def test_one_sample_has_nothing_to_be_compared_with():
    with pytest.raises(ValueError, match="num_samples is 1"):
        policy_gradient_loss(torch.zeros(3, 1), torch.zeros(3, 1))


def all_captions(tokenizer: CaptionTokenizer, max_new_tokens: int) -> list[list[int]]:
    """Every caption that can be sampled: ended earlier, or cut off at the limit."""
    words = [number for number in range(tokenizer.vocabulary_size) if number != tokenizer.end_id]
    return [list(ids) for length in range(max_new_tokens + 1) for ids in itertools.product(words, repeat=length)]


def log_probabilities_of(decoder: CaptionDecoder, memory: Tensor, captions: list[list[int]], tokenizer, limit: int):
    token_ids, ended = pad_samples(captions, tokenizer, limit)
    lengths = torch.tensor([len(ids) + done for ids, done in zip(captions, ended, strict=True)])
    return sequence_log_probabilities(decoder(memory, token_ids[:, :-1]), token_ids, lengths)


def gradient(loss: Tensor, decoder: CaptionDecoder) -> Tensor:
    gradients = torch.autograd.grad(loss, list(decoder.parameters()), retain_graph=True, allow_unused=True)
    return torch.cat([part.flatten() for part in gradients if part is not None])


def test_the_gradient_is_that_of_the_expected_reward():
    """Over all pairs of all captions, weighted by their probability, the estimate is exact."""
    torch.manual_seed(0)
    tokenizer = CaptionTokenizer.train_words(["red circle"], min_count=1)  # 6 ids
    decoder = CaptionDecoder(6, 5, dim=8, depth=1, num_heads=2, dropout=0.0).double()
    memory = torch.randn(1, 3, 5, dtype=torch.double)
    captions = all_captions(tokenizer, 2)
    rewards = torch.rand(len(captions), dtype=torch.double) * 3
    log_probabilities = log_probabilities_of(decoder, memory, captions, tokenizer, 2)  # (31,)
    probabilities = log_probabilities.exp()
    assert float(probabilities.detach().sum()) == pytest.approx(1, abs=1e-12)  # all that can be said, each once

    first, second = torch.meshgrid(torch.arange(len(captions)), torch.arange(len(captions)), indexing="ij")
    pairs = torch.stack([first.flatten(), second.flatten()], dim=1)  # (961, 2)
    weights = probabilities.detach()[pairs].prod(dim=1)
    estimate = sum(
        weight * policy_gradient_loss(log_probabilities[pair][None], rewards[pair][None])
        for weight, pair in zip(weights, pairs, strict=True)
    )
    expected = -(probabilities * rewards).sum()
    torch.testing.assert_close(gradient(estimate, decoder), gradient(expected, decoder))


def test_a_constant_added_to_all_rewards_changes_nothing():
    log_probabilities, rewards = torch.randn(4, 5), torch.rand(4, 5)
    loss = policy_gradient_loss(log_probabilities, rewards)
    torch.testing.assert_close(policy_gradient_loss(log_probabilities, rewards + 7), loss)


def test_samples_without_an_end_get_none():
    tokenizer = CaptionTokenizer.train_words(["a b c"], min_count=1)
    a, b, c = tokenizer.encode("a b c")
    token_ids, ended = pad_samples([[a, b, c], [b], []], tokenizer, 3)
    start, end, padding = tokenizer.start_id, tokenizer.end_id, tokenizer.padding_id
    assert ended == [False, True, True]
    assert token_ids.tolist() == [
        [start, a, b, c, padding],
        [start, b, end, padding, padding],
        [start, end, padding, padding, padding],
    ]
