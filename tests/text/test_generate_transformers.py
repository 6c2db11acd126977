"""Captions equal those of transformers' `generate`, token for token: a small ViT + GPT-2 with random weights."""

import functools

import pytest
import torch
import transformers
from transformers.generation import logits_process
from transformers.modeling_outputs import BaseModelOutput

from visattn.checkpoints.vision_encoder_decoder import decoder_weights
from visattn.heads import CaptionDecoder
from visattn.text import generate
from visattn.text.sampling import word_probabilities

START, END, PADDING = 61, 62, 63
VOCABULARY = 64


@functools.cache
def twins(seed):
    """transformers' model and our decoder with the same weights, far from small so that captions vary and end."""
    torch.manual_seed(seed)
    vision = transformers.ViTConfig(
        hidden_size=24, num_hidden_layers=1, num_attention_heads=2, intermediate_size=48, image_size=16, patch_size=8
    )
    text = transformers.GPT2Config(
        vocab_size=VOCABULARY,
        n_embd=24,
        n_layer=2,
        n_head=2,
        n_positions=24,
        bos_token_id=START,
        eos_token_id=END,
        add_cross_attention=True,
        is_decoder=True,
    )
    config = transformers.VisionEncoderDecoderConfig.from_encoder_decoder_configs(vision, text)
    config.decoder_start_token_id, config.pad_token_id, config.eos_token_id = START, PADDING, END
    theirs = transformers.VisionEncoderDecoderModel(config).eval()
    for name, parameter in theirs.decoder.named_parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.5 if "wte" in name else 0.35)
    with torch.no_grad():  # the end must be likely enough to come
        theirs.decoder.transformer.wte.weight[END] *= 1.5
    state = theirs.decoder.state_dict()
    state.pop("lm_head.weight")  # tied to the embedding
    ours = CaptionDecoder(VOCABULARY, 24, 24, 2, 2, max_length=24, activation="gelu_tanh").eval()
    ours.load_state_dict(decoder_weights(state, text.to_dict()))
    return theirs, ours


def image_tokens(seed, images):
    return torch.randn(images, 5, 24, generator=torch.Generator().manual_seed(seed + 100))


def expected_of(seed, images=4, num_return=1, **options):
    """transformers' captions: for each image lists of ids without start and end."""
    names = {"no_repeat_ngram": "no_repeat_ngram_size", "sample": "do_sample"}
    rows = twins(seed)[0].generate(
        encoder_outputs=BaseModelOutput(last_hidden_state=image_tokens(seed, images)),
        num_return_sequences=num_return,
        **{names.get(name, name): value for name, value in options.items()},
    )
    captions = [row[: row.index(END)] if END in row else row for row in rows[:, 1:].tolist()]
    return [captions[i : i + num_return] for i in range(0, len(captions), num_return)]


def captions_of(seed, images=4, **options):
    """Ours."""
    ids = {"start_ids": [START], "end_id": END, "padding_id": PADDING}
    written = generate(twins(seed)[1], image_tokens(seed, images), **ids, **options)
    return [[caption.token_ids for caption in group] for group in written]


def lengths(captions):
    return {len(words) for group in captions for words in group}


@pytest.mark.parametrize("options", [{}, {"no_repeat_ngram": 2}, {"min_new_tokens": 6}], ids=str)
def test_greedy_equals_transformers(options):
    seen = set()
    for seed in range(6):
        expected = expected_of(seed, max_new_tokens=14, **options)
        assert captions_of(seed, max_new_tokens=14, **options) == expected
        seen |= lengths(expected)
    assert len(seen) > 3


@pytest.mark.parametrize("num_beams", [2, 3, 5])
@pytest.mark.parametrize("length_penalty", [-1.0, 0.0, 0.6, 1.0, 2.0])
@pytest.mark.parametrize("early_stopping", [False, True, "never"])
def test_beam_search_equals_transformers(num_beams, length_penalty, early_stopping):
    options = {"num_beams": num_beams, "length_penalty": length_penalty, "early_stopping": early_stopping}
    seen = set()
    for seed in range(3):
        expected = expected_of(seed, max_new_tokens=12, num_return=num_beams, **options)
        assert captions_of(seed, max_new_tokens=12, num_return=num_beams, **options) == expected
        seen |= lengths(expected)
    assert len(seen) > 1


@pytest.mark.parametrize("num_beams", [3, 5])
@pytest.mark.parametrize(
    "options",
    [
        {"no_repeat_ngram": 1},
        {"no_repeat_ngram": 2},
        {"no_repeat_ngram": 3},
        {"min_new_tokens": 7},
        {"min_new_tokens": 3, "no_repeat_ngram": 2, "length_penalty": 0.8, "early_stopping": True},
        {"max_new_tokens": 1},
        {"max_new_tokens": 23},
        {"images": 1},
    ],
    ids=str,
)
def test_beam_search_with_limits_equals_transformers(num_beams, options):
    options = {"max_new_tokens": 12, "num_beams": num_beams, "num_return": 2} | options
    for seed in range(4):
        assert captions_of(seed, **options) == expected_of(seed, **options)


@pytest.mark.parametrize("length_penalty", [0.0, 1.5])
def test_log_probabilities_are_the_scores_of_transformers(length_penalty):
    theirs, ours = twins(0)
    options = {"num_beams": 4, "length_penalty": length_penalty, "max_new_tokens": 12}
    result = theirs.generate(
        encoder_outputs=BaseModelOutput(last_hidden_state=image_tokens(0, 3)),
        num_return_sequences=4,
        output_scores=True,
        return_dict_in_generate=True,
        **options,
    )
    ids = {"start_ids": [START], "end_id": END, "padding_id": PADDING}
    written = generate(ours, image_tokens(0, 3), num_return=4, **ids, **options)
    scores = [
        caption.log_probability / min(len(caption.token_ids) + 1, 12) ** length_penalty
        for group in written
        for caption in group
    ]
    torch.testing.assert_close(torch.tensor(scores), result.sequences_scores, rtol=0, atol=1e-4)


def test_drawn_captions_equal_those_of_transformers_for_the_same_random_numbers():
    options = {"images": 1, "num_return": 6, "sample": True, "temperature": 0.8, "max_new_tokens": 12}
    for seed in range(3):
        torch.manual_seed(seed)
        [expected] = expected_of(seed, top_k=0, **options)
        torch.manual_seed(seed)
        [captions] = captions_of(seed, **options)
        assert sorted(captions) == sorted(expected)
        assert len(set(map(tuple, captions))) > 3


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("top_k", [0, 1, 7, 1000])
@pytest.mark.parametrize("top_p", [0.3, 0.9, 1.0])
def test_the_distribution_that_words_are_drawn_from_equals_transformers(temperature, top_k, top_p):
    logits = torch.randn(50, 300, generator=torch.Generator().manual_seed(0)) * 2
    expected = logits_process.TemperatureLogitsWarper(temperature)(None, logits)
    if top_k:
        expected = logits_process.TopKLogitsWarper(top_k)(None, expected)
    if top_p < 1:
        expected = logits_process.TopPLogitsWarper(top_p)(None, expected)
    probabilities, words = word_probabilities(logits, temperature, top_k, top_p)
    if words is not None:
        probabilities = torch.zeros_like(logits).scatter(1, words, probabilities)
    torch.testing.assert_close(probabilities, expected.softmax(dim=1))
