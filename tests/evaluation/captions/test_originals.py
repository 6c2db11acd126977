"""All metrics against the originals themselves, Java included, on all of Flickr8k and on what breaks tokenizers."""

import numpy as np
import pytest

from tests.evaluation.captions import originals
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
    """References and candidates as the original tokenizes them, and as they were before."""
    references, candidates = {
        "whole": originals.flickr8k,
        "damaged": lambda: originals.damaged(*(part[::2] for part in originals.flickr8k())),
        "nasty": lambda: originals.nasty(2000),
        "crowded": lambda: originals.crowded(500),
    }[request.param]()
    return originals.tokenized_corpus(references, candidates), (references, candidates)


def test_every_token_string_equals_the_original_character_by_character(corpus):
    (texts, judged), (references, candidates) = corpus
    assert tokenize([caption for captions in references for caption in captions]) == [
        line for lines in texts for line in lines
    ]
    assert tokenize(candidates) == judged


def test_bleu_rouge_and_cider_equal_the_original_within_1e9(corpus):
    texts, judged = corpus[0]
    official = originals.scores(texts, judged)
    total, per_image = bleu(texts, judged)
    ours = {f"Bleu_{n + 1}": (total[n], per_image[n]) for n in range(4)}
    for name, values in (("ROUGE_L", rouge_l(texts, judged)), ("CIDEr", Cider(texts).score(judged))):
        ours[name] = values.mean(), values
    assert ours.keys() == official.keys()
    for name, (whole, values) in official.items():
        assert ours[name][0] == pytest.approx(whole, abs=1e-9)
        np.testing.assert_allclose(ours[name][1], values, atol=1e-9, rtol=0, err_msg=name)


def test_meteor_counts_and_scores_equal_the_original(corpus):
    texts, judged = corpus[0]
    statistics, total, values = originals.meteor(texts, judged)
    meteor = Meteor()
    assert meteor.statistics(texts, judged) == statistics
    whole, per_image = meteor.score(texts, judged)
    assert whole == pytest.approx(total, abs=1e-9)
    np.testing.assert_allclose(per_image, values, atol=1e-9, rtol=0)
