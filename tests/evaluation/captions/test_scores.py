"""BLEU, ROUGE-L and CIDEr against stored values of pycocoevalcap 1.2, and the rules around them."""

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from tests.evaluation.captions import originals
from visattn.evaluation.captions import (
    CaptionFileError,
    Cider,
    evaluate,
    evaluate_coco,
    read_references,
    tokenize,
)

OFFICIAL = json.loads(Path(__file__).with_name("official_scores.json").read_text())
REFERENCES, CANDIDATES = dict(OFFICIAL["references"]), dict(OFFICIAL["candidates"])
METRICS = [pytest.param(name, marks=originals.needs_extra) if name == "METEOR" else name for name in OFFICIAL["corpus"]]


@pytest.fixture(scope="module")
def scores():
    return evaluate(
        REFERENCES, CANDIDATES, [name for name in OFFICIAL["corpus"] if name != "METEOR" or originals.has_extra]
    )


@pytest.mark.parametrize("metric", METRICS)
def test_corpus_and_image_scores_equal_the_official_ones(scores, metric):
    assert scores.corpus[metric] == pytest.approx(OFFICIAL["corpus"][metric], abs=1e-9)
    mine = [scores.per_image[image][metric] for image in REFERENCES]
    np.testing.assert_allclose(mine, OFFICIAL["per_image"][metric], atol=1e-9, rtol=0)


def test_tokenized_candidates_equal_the_official_ones():
    assert tokenize(list(CANDIDATES.values())) == OFFICIAL["tokenized"]


def test_cider_of_a_batch_equals_cider_of_the_corpus():
    references = [tokenize(captions) for captions in REFERENCES.values()]
    candidates = tokenize(list(CANDIDATES.values()))
    scorer = Cider(references)
    everything = scorer.score(candidates)
    batch = [7, 3, 3, 31]
    np.testing.assert_allclose(scorer.score([candidates[i] for i in batch], batch), everything[batch], rtol=1e-12)


def test_cider_without_clipping_or_length_penalty_is_never_smaller():
    references = [["a dog runs fast", "the dog"], ["two cats sleep"], ["a red ball"]]
    candidates = ["a dog dog dog runs", "two cats sleep", ""]
    plain, official = (Cider(references, variant=name).score(candidates) for name in ("CIDEr", "CIDEr-D"))
    assert (plain >= official - 1e-12).all()
    assert official[2] == 0


def test_cider_of_one_image_is_zero_and_says_so():
    with pytest.warns(UserWarning, match="single image"):
        scores = evaluate({1: ["a dog"]}, {1: "a dog"}, ["CIDEr"])
    assert scores.corpus == {"CIDEr": 0}


@pytest.mark.parametrize(
    ("references", "candidates", "metrics", "message"),
    [
        ({1: ["a"]}, {}, ["Bleu_1"], "no candidate, the first is 1"),
        ({1: ["a"]}, {1: "a", 2: "b"}, ["Bleu_1"], "no references, the first is 2"),
        ({1: []}, {1: "a"}, ["Bleu_1"], "one or more strings"),
        ({1: ["a"]}, {1: None}, ["Bleu_1"], "is no string"),
        ({1: ["a"]}, {1: "a"}, ["BLEU"], "unknown metric 'BLEU'"),
        ({}, {}, ["Bleu_1"], "no images"),
    ],
)
def test_bad_input_is_named(references, candidates, metrics, message):
    with pytest.raises(ValueError, match=message):
        evaluate(references, candidates, metrics)


@pytest.fixture
def files(tmp_path):
    annotations = {
        "images": [{"id": 11}, {"id": 5}, {"id": 3}],
        "annotations": [
            {"image_id": 5, "caption": "Two dogs run."},
            {"image_id": 11, "caption": "A cat sleeps."},
            {"image_id": 3, "caption": "An unjudged image."},
            {"image_id": 5, "caption": "Dogs are running."},
        ],
    }
    results = [{"image_id": 5, "caption": "two dogs"}, {"image_id": 11, "caption": "a cat"}]
    paths = tmp_path / "captions.json", tmp_path / "results.json"
    for path, data in zip(paths, (annotations, results), strict=True):
        path.write_text(json.dumps(data))
    return paths


def test_evaluate_coco_judges_the_images_of_the_results(files):
    scores = evaluate_coco(*files, metrics=["Bleu_1", "CIDEr"])
    assert list(scores.per_image) == [11, 5]
    references = {11: ["A cat sleeps."], 5: ["Two dogs run.", "Dogs are running."]}
    expected = evaluate(references, {11: "a cat", 5: "two dogs"}, ["Bleu_1", "CIDEr"])
    assert scores == expected


@pytest.mark.parametrize(
    ("results", "message"),
    [
        ([{"image_id": 7, "caption": "a"}], "entry 0: \"image_id\" 7 has no references"),
        ([{"image_id": 5, "caption": "a"}] * 2, "entry 1: .* has a caption already"),
        ([{"image_id": 5}], "entry 0: \"caption\" is missing"),
        ([{"image_id": 5, "caption": 3}], "entry 0: \"caption\" must be a string, found a number"),
        ([{"image_id": 5, "caption": None}], "entry 0: \"caption\" must be a string, found null"),
        ([{"image_id": 5, "caption": "a\rb"}], "entry 0: \"caption\" holds the line separator U\\+000D"),
        ([{"image_id": 5, "caption": "a\ud800b"}], "entry 0: \"caption\" is no valid Unicode .a lone surrogate at 1"),
        ([{"image_id": [5], "caption": "a"}], "entry 0: \"image_id\" must be a number or a string, found a list"),
        ([{"caption": "a"}], "entry 0: \"image_id\" is missing"),
        ([4], "entry 0: expected an object"),
        ({"a": 1}, "expected a list"),
        ([], "is empty"),
    ],
)  # fmt: skip
def test_bad_results_are_named_by_file_entry_and_field(files, results, message):
    files[1].write_text(json.dumps(results))
    with pytest.raises(CaptionFileError, match=message):
        evaluate_coco(*files, metrics=["Bleu_1"])


def test_an_empty_caption_scores_with_a_warning_that_names_it(files):
    results = [{"image_id": 5, "caption": "two dogs"}, {"image_id": 11, "caption": " "}]
    files[1].write_text(json.dumps(results))
    with pytest.warns(UserWarning, match=r'results.json: entry 1: "caption" is empty; it scores'):
        scores = evaluate_coco(*files, metrics=["Bleu_1", "ROUGE_L"])
    assert scores.per_image[11]["ROUGE_L"] == 0


@pytest.mark.parametrize(
    ("annotations", "message"),
    [
        ({"annotations": []}, '"annotations" is empty'),
        ({"annotations": {}}, '"annotations" must be a list, found an object'),
        ({"annotations": [{"image_id": 1}]}, 'annotation 0: "caption" is missing'),
        (
            {"annotations": [{"image_id": 1, "caption": ["a"]}]},
            'annotation 0: "caption" must be a string, found a list',
        ),
        ({"annotations": [{"image_id": 1, "caption": "a"}], "images": 3}, '"images" must be a list, found a number'),
        ({"images": [{"imgid": 1, "sentences": []}]}, 'image 0: "sentences" must be a list of one or more'),
        ({"images": [{"imgid": 1, "sentences": [{"raw": 1}]}]}, 'image 0, sentence 0: "raw" must be a string'),
        ({"images": [{"imgid": 1, "sentences": [{"raw": "a"}]}] * 2}, 'image 1: "imgid" 1 is that of an image before'),
        ({"images": []}, "no image"),
        ({"info": 1}, 'neither "annotations"'),
    ],
)
def test_bad_references_are_named_by_file_entry_and_field(tmp_path, annotations, message):
    path = tmp_path / "references.json"
    path.write_text(json.dumps(annotations))
    with pytest.raises(CaptionFileError, match=f"references.json: .*{message}"):
        read_references(path)


def test_files_that_are_no_utf8_or_no_json_are_named(tmp_path):
    path = tmp_path / "captions.json"
    path.write_bytes(b'["\xe9"]')
    with pytest.raises(CaptionFileError, match="not UTF-8"):
        read_references(path)
    path.write_text("[")
    with pytest.raises(CaptionFileError, match="no JSON"):
        read_references(path)


def test_karpathys_file_is_read_by_split(tmp_path):
    path = tmp_path / "dataset.json"
    images = [
        {"imgid": 0, "cocoid": 9, "split": "test", "sentences": [{"raw": "A dog."}]},
        {"imgid": 1, "split": "train", "sentences": [{"raw": "A cat."}]},
    ]
    path.write_text(json.dumps({"images": images}))
    assert read_references(path, "test") == {9: ["A dog."]}
    assert read_references(path) == {9: ["A dog."], 1: ["A cat."]}
    with pytest.raises(CaptionFileError, match="no image of split 'dev'"):
        read_references(path, "dev")


def test_threads_get_the_same_scores_as_one_after_the_other(scores):
    metrics = list(scores.corpus)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: evaluate(REFERENCES, CANDIDATES, metrics), range(8)))
    assert all(result == scores for result in found)


def test_import_brings_neither_torch_nor_other_parts():
    code = """import sys, visattn.evaluation.captions
print([name for name in sys.modules if name == "torch" or name.startswith("visattn.")])"""
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "torch" not in printed
    assert all("visattn.evaluation" in name or "visattn.files" in name for name in printed.strip("[]\n").split(", "))
