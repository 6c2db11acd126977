"""METEOR against stored values of the Java original, and the rules of its parts."""

import gzip
import json
import multiprocessing
import os
import subprocess
import sys
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from tests.evaluation.captions import originals
from visattn.evaluation.captions import meteor_index
from visattn.evaluation.captions.meteor import Meteor
from visattn.evaluation.captions.meteor_index import MeteorIndex, build, open_index
from visattn.evaluation.captions.meteor_normalizer import normalize
from visattn.evaluation.captions.meteor_words import Lexicon, java_hash

SEGMENTS = json.loads(Path(__file__).with_name("meteor_segments.json").read_text())
REFERENCES, CANDIDATES, STATISTICS = (list(column) for column in zip(*SEGMENTS, strict=True))

pytestmark = originals.needs_extra


@pytest.fixture(scope="module")
def meteor():
    return Meteor()


def test_every_stored_segment_is_counted_as_the_original_counts_it(meteor):
    counted = meteor.statistics(REFERENCES, CANDIDATES)
    assert [row for row in zip(CANDIDATES, counted, STATISTICS, strict=True) if row[1] != row[2]] == []


@pytest.mark.parametrize(
    ("candidate", "reference", "stages"),
    [
        ("dogs", "dogs", [2, 0, 0, 0]),
        ("f1", "do", [2, 0, 0, 0]),  # the original compares words by Java's hash
        ("jumping", "jumps", [1, 1, 0, 0]),
        ("automobile", "car", [1, 0, 1, 0]),
        ("mice", "mouse", [1, 0, 1, 0]),
    ],
)
def test_a_word_matches_in_the_first_stage_that_knows_it(meteor, candidate, reference, stages):
    (row,) = meteor.statistics([[f"the red {reference}"]], [f"the red {candidate}"])
    assert row[4:20:4] == stages  # content words of the candidate: exact, stem, synonym, paraphrase


def test_a_lone_match_that_several_stages_find_is_dropped_as_in_the_original(meteor):
    rows = meteor.statistics([["jumps"], ["dog"]], ["jumping", "hound"])
    assert [row[4:20:4] for row in rows] == [[0, 0, 0, 0], [0, 0, 1, 0]]


def test_the_first_of_equally_good_references_counts(meteor):
    (row,) = meteor.statistics([["x y", "z"]], ["a dog"])
    assert row[1] == 2


def test_the_score_of_a_corpus_comes_from_summed_counts(meteor):
    references, candidates = [["a red ball"], ["two dogs run over the grass"]], ["a red ball", "two dogs"]
    total, per_image = meteor.score(references, candidates)
    assert per_image[0] == 1
    assert total != pytest.approx(per_image.mean(), abs=0.01)


@pytest.mark.parametrize(("references", "candidate"), [(["a dog"], ""), ([""], "a dog"), ([""], ""), (["x"], "y")])
def test_without_a_match_the_score_is_0(meteor, references, candidate):
    total, per_image = meteor.score([references], [candidate])
    assert (total, per_image.tolist()) == (0, [0])


def test_no_images_score_0(meteor):
    total, per_image = meteor.score([], [])
    assert (total, per_image.shape) == (0, (0,))


def test_threads_get_the_same_scores_as_one_after_the_other(meteor):
    parts = [slice(start, start + 25) for start in range(0, len(CANDIDATES), 25)]
    expected = [meteor.score(REFERENCES[part], CANDIDATES[part]) for part in parts]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda part: Meteor().score(REFERENCES[part], CANDIDATES[part]), parts))
    for (total, values), (other_total, other_values) in zip(expected, found, strict=True):
        assert total == other_total
        np.testing.assert_array_equal(values, other_values)


@pytest.mark.parametrize(
    ("caption", "words"),
    [
        ("a t-shirt", "a t shirt"),
        ("the dog 's owner", "the dog ' s owner"),
        ("it is o'clock", "it is o 'clock"),
        ("the u.s. flag", "the us flag"),
        ("see fig. 3", "see fig . 3"),
        ("see fig. three", "see fig. three"),
        ("pp. 3", "pp. 3"),
        ("dogs vs. cats", "dogs vs. cats"),
        ("wait .... what...", "wait .... what ..."),
        ("1,000 dogs,cats", "1,000 dogs , cats"),
        ("50% @home", "50 % @ home"),
        ("5\u00a01/2", "5 1 / 2"),
        ("\u201cred\u201d \u2013 \u2018blue\u2019", "\" red \" - ' blue '"),
        ("", ""),
    ],
)
def test_captions_are_cut_again_as_the_original_cuts_them(caption, words):
    assert normalize(caption, open_index()) == words.split()


def test_words_of_equal_java_hash_are_the_same_word():
    assert java_hash("do") == java_hash("f1")
    assert java_hash("dog") == ord("d") * 31**2 + ord("o") * 31 + ord("g")
    assert java_hash("\U0001f600") == 31 * 0xD83D + 0xDE00


def test_relatives_of_a_word_name_every_stage_that_matches():
    lexicon = Lexicon(["dog", "dogs", "hound", "cat"], open_index())
    assert lexicon.relatives("dogs") == {"dogs": (0,), "dog": (1, 2), "hound": (2,)}


def _small_sources(folder):
    jar, paraphrases = folder / "meteor.jar", folder / "paraphrases.gz"
    files = {
        "function/english.words": "the\na\n",
        "nonbreaking/english.prefixes": "# comment\n\nDr\nNo #NUMERIC_ONLY#\n",
        "synonym/english.synsets": "car\n00000001 00000002\nautomobile\n00000001\nmouse\n00000003\n",
        "synonym/english.exceptions": "mouse\nmice meeces\n",
    }
    with zipfile.ZipFile(jar, "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)
    with gzip.open(paraphrases, "wt", encoding="utf-8") as file:
        file.write("0.5\na photo\na picture\n0.1\na photo\nimage of\n0.2\na\none\n")
    return jar, paraphrases


def test_the_index_gives_back_what_its_sources_hold(tmp_path):
    build(*_small_sources(tmp_path), tmp_path / "index")
    index = MeteorIndex(tmp_path / "index")
    assert index.function_words == {"the", "a"}
    assert (index.abbreviations, index.abbreviations_before_numbers) == ({"Dr"}, {"No"})
    assert index.synsets("cars") == {1, 2}
    assert index.synsets("meeces") == index.synsets("mouse") == {3}
    assert index.synsets("sky") == frozenset()
    found = [(phrase, index.paraphrases(number)) for phrase, number in index.phrases("a photo of")]
    assert found == [("a", ["one"]), ("a photo", ["a picture", "image of"])]
    assert index.starts_longer_phrase("a photo")
    assert not index.starts_longer_phrase("a pho")


def test_processes_that_build_at_once_leave_one_whole_index(tmp_path):
    jar, paraphrases = _small_sources(tmp_path)
    with multiprocessing.get_context("spawn").Pool(3) as pool:
        pool.starmap(build, [(jar, paraphrases, tmp_path / "cache" / "index")] * 6)
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["index"]
    assert MeteorIndex(tmp_path / "cache" / "index").synsets("car") == {1, 2}


def test_a_build_that_fails_leaves_nothing_behind(tmp_path):
    jar, paraphrases = _small_sources(tmp_path)
    with gzip.open(paraphrases, "at", encoding="utf-8") as file:
        file.write("0.1\nsomething else\nx\n0.1\na photo\nseparated from the others\n")
    with pytest.raises(ValueError, match="must follow each other"):
        build(jar, paraphrases, tmp_path / "cache" / "index")
    assert list((tmp_path / "cache").iterdir()) == []


def test_the_folder_follows_the_cache_variable_the_format_and_the_sources(tmp_path, monkeypatch):
    sources = _small_sources(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(meteor_index, "_find_sources", lambda: sources)
    open_index()
    (folder,) = (tmp_path / "cache" / "visattn").iterdir()
    with gzip.open(sources[1], "at", encoding="utf-8") as file:
        file.write("0.1\nx\ny\n")
    open_index()
    assert folder.name.startswith("meteor-1-")
    assert len(list((tmp_path / "cache" / "visattn").iterdir())) == 2


def test_without_the_extra_the_message_says_how_to_install_it(monkeypatch):
    found = meteor_index.importlib.util.find_spec
    monkeypatch.setattr(
        meteor_index.importlib.util, "find_spec", lambda name: None if name == "marisa_trie" else found(name)
    )
    with pytest.raises(ModuleNotFoundError, match=r'marisa_trie .* pip install "visattn\[meteor\]"'):
        Meteor()


def test_a_first_score_takes_less_than_half_a_second_once_the_index_exists():
    code = """import time
start = time.perf_counter()
from visattn.evaluation.captions import evaluate
evaluate({1: ["a dog runs"], 2: ["two cats"]}, {1: "the dogs run", 2: "cats"})
print(time.process_time())"""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    open_index()
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert float(printed.stdout) < 1.0  # half a second on a machine of its own
