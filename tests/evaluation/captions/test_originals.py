"""All metrics against the originals themselves, Java included, on all of Flickr8k and on what breaks tokenizers."""

import numpy as np
import originals
import pytest

from visattn.evaluation.captions import Cider, bleu, rouge_l, tokenize
from visattn.evaluation.captions.meteor import Meteor

pytestmark = [originals.needs_java]


@pytest.fixture(
    scope="module",
    params=[
        pytest.param("whole", marks=originals.needs_flickr8k),
        pytest.param("damaged", marks=originals.needs_flickr8k),
        "nasty",
        "crowded",
    ],
)
def corpus(request):
    """References and candidates, tokenized by the original, and the strings that they come from."""
    references, candidates = {
        "whole": originals.flickr8k,
        "damaged": lambda: originals.damaged(*(part[::2] for part in originals.flickr8k())),
        "nasty": lambda: originals.nasty(2000),
        "crowded": lambda: originals.crowded(500),
    }[request.param]()
    lines = [caption for captions in references for caption in captions]
    flat = originals.tokenized(lines)
    ends = np.cumsum([len(captions) for captions in references]).tolist()
    groups = [flat[end - len(captions) : end] for captions, end in zip(references, ends, strict=True)]
    return groups, originals.tokenized(candidates), (lines, candidates, flat)


def test_every_token_string_equals_the_original_character_by_character(corpus):
    _, judged, (lines, candidates, flat) = corpus
    assert tokenize(lines) == flat
    assert tokenize(candidates) == judged


def test_bleu_rouge_and_cider_equal_the_original_within_1e9(corpus):
    references, candidates, _ = corpus
    official = originals.scores(references, candidates)
    total, per_image = bleu(references, candidates)
    ours = {f"Bleu_{n + 1}": (total[n], per_image[n]) for n in range(4)}
    for name, values in (("ROUGE_L", rouge_l(references, candidates)), ("CIDEr", Cider(references).score(candidates))):
        ours[name] = values.mean(), values
    assert ours.keys() == official.keys()
    for name, (whole, values) in official.items():
        assert ours[name][0] == pytest.approx(whole, abs=1e-9)
        np.testing.assert_allclose(ours[name][1], values, atol=1e-9, rtol=0, err_msg=name)


def test_meteor_counts_and_scores_equal_the_original(corpus):
    references, candidates, _ = corpus
    statistics, total, values = originals.meteor(references, candidates)
    meteor = Meteor()
    assert meteor.statistics(references, candidates) == statistics
    whole, per_image = meteor.score(references, candidates)
    assert whole == pytest.approx(total, abs=1e-9)
    np.testing.assert_allclose(per_image, values, atol=1e-9, rtol=0)
