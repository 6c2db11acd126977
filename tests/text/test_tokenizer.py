import copy
import json
import pickle
import subprocess
import sys

import pytest
import torch

from visattn.text import CaptionTokenizer

captions = ["A man's dog runs.", "a dog, running!", "The dog sits on a T-shirt", "a man sits"]
odd = [
    "",
    " ",
    "🐶",
    "a🐶b",
    "caf\u00e9 cafe\u0301",
    "\ufeffa dog\u200b",
    "\uff26\uff35\uff2c\uff2c width",
    "狗在跑",
    "नमस्ते",
    "a\x00b",
    "ﬁne\u00adly",
    "\u202eabc",
]


def words(min_count=1, **options):
    return CaptionTokenizer.train_words(captions, min_count, **options)


def bpe(size=300, **options):
    return CaptionTokenizer.train_bpe(captions, size, **options)


def vocabulary(tokenizer):
    return tokenizer.tokenizer.get_vocab()


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("A man's DOG runs.", "a man 's dog runs"),
        ("a dog, running!", "a dog running"),
        ("The boy\u2019s T-shirt -- don't (ever)", "the boy 's t-shirt don't ever"),
        ("A man 's hat ; the dogs' bowl", "a man 's hat the dogs bowl"),
        ("rock 'n' roll at 5 o'clock, mid-air", "rock n roll at 5 o'clock mid-air"),
        ("1,000 #birds @ $5 & more_or_less", "1 000 birds 5 more or less"),
        ("'so' 's 'south", "so 's south"),
        ("café cafe\u0301 \uff26\uff35\uff2c\uff2c ﬁne soft\u00adly", "café café full fine softly"),
        ("<end> <pad>", "end pad"),
        ("🐶 !!! …", ""),
    ],
)
def test_words_are_lower_case_without_punctuation_but_within(caption, expected):
    tokenizer = CaptionTokenizer.train_words([caption, "x"], min_count=1)
    ids = tokenizer.encode(caption)
    assert [tokenizer.tokenizer.id_to_token(number) for number in ids] == expected.split()
    assert tokenizer.decode(ids) == expected.replace(" 's", "'s").strip()


def test_words_that_are_frequent_enough_are_known_most_frequent_first():
    tokenizer = words(min_count=2)
    ids = sorted(vocabulary(tokenizer), key=vocabulary(tokenizer).get)
    assert ids == ["<pad>", "<start>", "<end>", "<unk>", "a", "dog", "man", "sits"]
    assert tokenizer.vocabulary_size == 8
    assert tokenizer.encode("a zebra sits") == [4, tokenizer.unknown_id, 7]
    with pytest.raises(ValueError, match="no word occurs 5 times in the captions; lower min_count"):
        words(min_count=5)


@pytest.mark.parametrize("train", ["train_words(captions, 1)", "train_bpe(captions, 290)"])
def test_another_process_learns_the_same(train):
    """A resumed run trains its tokenizer again."""
    code = (
        f"from visattn.text import CaptionTokenizer; captions = {captions!r}; print(CaptionTokenizer.{train}.arguments)"
    )
    found = {
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
        for _ in range(2)
    }
    assert found == {str(eval(f"CaptionTokenizer.{train}.arguments")) + "\n"}


def test_byte_pairs_keep_every_caption_as_it_is():
    tokenizer = bpe()
    assert tokenizer.vocabulary_size == len(vocabulary(tokenizer)) <= 300
    for caption in [*captions, *odd, "A  double space .", "<end> and <start>", "Zebras\nrun"]:
        ids = tokenizer.encode(caption)
        assert not {tokenizer.start_id, tokenizer.end_id, tokenizer.padding_id} & set(ids)
        expected = caption.replace("e\u0301", "é").strip()
        assert tokenizer.decode(ids) == expected
    assert tokenizer.encode("dog") == tokenizer.encode(" dog")
    assert len(tokenizer.encode(" dog")) == 1
    with pytest.raises(ValueError, match="vocabulary_size 100 is below 259"):
        bpe(100)


@pytest.mark.parametrize("make", [words, bpe])
def test_odd_captions_are_encoded_and_a_lone_surrogate_is_refused(make):
    tokenizer = make()
    assert all(isinstance(tokenizer.encode(caption), list) for caption in odd)
    assert tokenizer.encode("") == []
    with pytest.raises(ValueError, match="no valid Unicode \\(a lone surrogate at position 2\\)"):
        tokenizer.batch(["a dog", "a \ud83d dog"])


@pytest.mark.parametrize("make", [words, bpe])
def test_a_batch_begins_with_start_and_ends_with_end_and_padding(make):
    tokenizer = make()
    few, more = tokenizer.encode("a dog"), tokenizer.encode("the man sits on a dog")
    batch = tokenizer.batch(["a dog", "the man sits on a dog"])
    assert batch.dtype == torch.long
    assert batch.tolist() == [
        [tokenizer.start_id, *few, tokenizer.end_id] + [tokenizer.padding_id] * (len(more) - len(few)),
        [tokenizer.start_id, *more, tokenizer.end_id],
    ]
    assert tokenizer.batch([""]).tolist() == [[tokenizer.start_id, tokenizer.end_id]]
    assert [tokenizer.decode(row) for row in batch] == ["a dog", "the man sits on a dog"]


@pytest.mark.parametrize("make", [words, bpe])
def test_long_captions_are_cut(make):
    whole, cut = make(max_length=None).encode("the man sits on a dog"), make(max_length=3)
    assert cut.encode("the man sits on a dog") == whole[:3]
    assert cut.batch(["the man sits on a dog"]).tolist() == [[cut.start_id, *whole[:3], cut.end_id]]
    with pytest.raises(ValueError, match="max_length 0 must be at least 1"):
        make(max_length=0)


def test_targets_are_the_words_that_follow_and_the_end():
    tokenizer = words(min_count=2)
    batch = tokenizer.batch(["a zebra sits", "a"])
    assert tokenizer.targets(batch).tolist() == [
        [4, -100, 7, tokenizer.end_id],  # nobody wants an unknown word to be said
        [4, tokenizer.end_id, -100, -100],
    ]


def test_the_end_is_a_target_once_where_start_end_and_padding_are_one():
    definition = bpe().arguments["definition"]
    tokenizer = CaptionTokenizer(definition, start_id=0, end_id=0, padding_id=0)
    batch = tokenizer.batch(["a dog", "a man sits"])
    few, more = tokenizer.encode("a dog"), tokenizer.encode("a man sits")
    assert tokenizer.targets(batch).tolist() == [
        [*few, 0] + [-100] * (len(more) - len(few)),
        [*more, 0],
    ]


def test_words_know_the_positions_of_their_tokens():
    tokenizer = words()
    ids = [tokenizer.start_id, *tokenizer.encode("a man's dog sits"), tokenizer.end_id, tokenizer.padding_id]
    assert tokenizer.words(ids) == [("a", [1]), ("man's", [2, 3]), ("dog", [4]), ("sits", [5])]
    assert tokenizer.words([]) == tokenizer.words([tokenizer.start_id, tokenizer.end_id]) == []


@pytest.mark.parametrize("caption", ["A man's dog 🐶, café!", "狗 zebra.", "dog", "a 🐶🐶 b"])
def test_words_of_byte_pairs_hold_all_their_tokens(caption):
    tokenizer = bpe()
    ids = torch.tensor([tokenizer.start_id, *tokenizer.encode(caption), tokenizer.end_id])
    found = tokenizer.words(ids)
    assert [word for word, _ in found] == caption.split()
    assert [position for _, positions in found for position in positions] == list(range(1, len(ids) - 1))
    assert [tokenizer.decode(ids[positions]) for _, positions in found] == caption.split()


@pytest.mark.parametrize("make", [words, bpe])
@pytest.mark.parametrize("way", ["saved", "copied", "pickled", "arguments"])
def test_a_copy_does_the_same(make, way, tmp_path):
    tokenizer = make(max_length=9)
    if way == "saved":
        tokenizer.save(tmp_path / "model")
        assert sorted(path.name for path in (tmp_path / "model").iterdir()) == [
            "caption_tokenizer.json",
            "tokenizer.json",
        ]
        again = CaptionTokenizer.load(tmp_path / "model")
    elif way == "arguments":  # plain data
        again = CaptionTokenizer(**json.loads(json.dumps(tokenizer.arguments)))
    else:
        again = copy.deepcopy(tokenizer) if way == "copied" else pickle.loads(pickle.dumps(tokenizer))
    assert again.arguments == tokenizer.arguments
    texts = [*captions, *odd, "<end> of the <start>", "a" * 30 + " dog" * 30]
    assert again.batch(texts).equal(tokenizer.batch(texts))
    assert again.targets(again.batch(texts)).equal(tokenizer.targets(tokenizer.batch(texts)))


def test_damaged_and_missing_files_are_errors_with_their_paths(tmp_path):
    words().save(tmp_path)
    whole = (tmp_path / "tokenizer.json").read_text()
    for damaged in (whole[:200], "{}", ""):
        (tmp_path / "tokenizer.json").write_text(damaged)
        with pytest.raises(ValueError, match=f"{tmp_path}: .*don't fit: no definition of a tokenizer"):
            CaptionTokenizer.load(tmp_path)
    (tmp_path / "tokenizer.json").write_text(whole)
    settings = json.loads((tmp_path / "caption_tokenizer.json").read_text())
    for wrong, message in (
        ({"end_id": 500}, "end_id 500 lies outside the vocabulary"),
        ({"vocabulary_size": 3}, "vocabulary_size 3 is less than the"),
        ({"unknown_id": settings["end_id"]}, "unknown_id 2 must differ"),
        ({"surprise": 1}, "surprise"),
    ):
        (tmp_path / "caption_tokenizer.json").write_text(json.dumps(settings | wrong))
        with pytest.raises(ValueError, match=message):
            CaptionTokenizer.load(tmp_path)
    (tmp_path / "caption_tokenizer.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"caption_tokenizer\.json: there is no such file"):
        CaptionTokenizer.load(tmp_path)


def test_a_model_may_have_more_rows_than_there_are_words():
    arguments = words().arguments
    tokenizer = CaptionTokenizer(**arguments | {"vocabulary_size": 100, "start_id": 99})
    assert tokenizer.vocabulary_size == 100
    assert tokenizer.decode([99, 4, 98, tokenizer.end_id]) == tokenizer.decode([4])
