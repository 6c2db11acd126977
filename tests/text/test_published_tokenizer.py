"""Tokenizers that transformers wrote, and those of the files that came before, against transformers itself."""

import json

import pytest
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from visattn.text.published_tokenizer import load_published_tokenizer

transformers = pytest.importorskip("transformers")

captions = [
    "a man riding a wave on top of a surfboard",
    "Two dogs, one brown and one white, don't like the man's red ball.",
    "a close up of a plate of food with broccoli and carrots",
    "people standing around a café's table (in the street)!",
] * 3
texts = [
    *captions[:4],
    "An unknown zebra isn't there ?",
    " leading and  double   spaces ",
    "naïve café, 狗在跑 🐶 1,000",
    "[SEP] and <|endoftext|> are text",
    "it's I'm we've they're ' quoted '",
    "",
]


def write_gpt2(folder, files):
    """A small GPT-2 tokenizer, as transformers writes it or as it was first published; start, end and padding."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer.train_from_iterator(
        captions, trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False)
    )
    folder.mkdir(exist_ok=True)
    tokenizer.model.save(str(folder))
    vocabulary = json.loads((folder / "vocab.json").read_text())
    end = vocabulary["<|endoftext|>"] = len(vocabulary)
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    if files == "tokenizer.json":
        transformers.GPT2Tokenizer.from_pretrained(folder).save_pretrained(folder)
        (folder / "vocab.json").unlink(), (folder / "merges.txt").unlink()
    return {"start_id": end, "end_id": end, "padding_id": end}


def write_bert(folder, files, **settings):
    """A small BERT tokenizer in either form."""
    tokenizer = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=settings.get("do_lower_case", True))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokenizer.train_from_iterator(
        [*captions, "it's I'm we've they're isn't 'a"],
        trainers.WordPieceTrainer(vocab_size=120, special_tokens=special, show_progress=False),
    )
    folder.mkdir(exist_ok=True)
    tokenizer.model.save(str(folder))
    if files == "tokenizer.json":
        transformers.BertTokenizer.from_pretrained(folder, **settings).save_pretrained(folder)
        (folder / "vocab.txt").unlink(missing_ok=True)
    elif settings:
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return {"start_id": 2, "end_id": 3, "padding_id": 0}


@pytest.mark.parametrize("files", ["tokenizer.json", "vocab.json"])
def test_gpt2_encodes_and_decodes_as_transformers_does(files, tmp_path):
    ids = write_gpt2(tmp_path, files)
    ours, theirs = load_published_tokenizer(tmp_path, **ids), transformers.GPT2Tokenizer.from_pretrained(tmp_path)
    assert ours.vocabulary_size == len(theirs) == ids["end_id"] + 1
    assert theirs.eos_token_id == ours.end_id
    assert ours.unknown_id is None  # every byte is known
    for text in texts:
        expected = theirs.encode(text, add_special_tokens=False, split_special_tokens=True)
        assert ours.encode(text) == expected
        generated = [ours.start_id, *expected, ours.end_id, ours.padding_id]
        assert ours.decode(generated) == theirs.decode(generated, skip_special_tokens=True).strip()
    assert [word for word, _ in ours.words(ours.encode(captions[1]))] == captions[1].split()


@pytest.mark.parametrize("files", ["tokenizer.json", "vocab.txt"])
@pytest.mark.parametrize("settings", [{}, {"do_lower_case": False}, {"strip_accents": False}])
@pytest.mark.parametrize("clean_up", [True, False])
def test_bert_encodes_and_decodes_as_transformers_does(files, settings, clean_up, tmp_path):
    ids = write_bert(tmp_path, files, **settings, clean_up_tokenization_spaces=clean_up)
    ours, theirs = load_published_tokenizer(tmp_path, **ids), transformers.BertTokenizer.from_pretrained(tmp_path)
    assert ours.vocabulary_size == len(theirs)
    assert (theirs.cls_token_id, theirs.sep_token_id, theirs.pad_token_id) == tuple(ids.values())
    assert ours.unknown_id == theirs.unk_token_id
    for text in texts:
        expected = theirs.encode(text, add_special_tokens=False, split_special_tokens=True)
        assert ours.encode(text) == expected
        generated = [ours.start_id, *expected, ours.end_id, ours.padding_id]
        assert ours.decode(generated) == theirs.decode(generated, skip_special_tokens=True).strip()


def test_word_pieces_are_cleaned_up_unless_the_files_say_otherwise(tmp_path):
    ids = write_bert(tmp_path, "vocab.txt")
    ours = load_published_tokenizer(tmp_path, **ids)
    assert ours.decode(ours.encode("the man's red ball , isn't ' a '")) == "the man's red ball, isn't'a '"
    found = ours.words(ours.encode("the man's ball."))
    assert [word for word, _ in found] == ["the", "man's", "ball."]
    assert [position for _, positions in found for position in positions] == list(
        range(len(ours.encode("the man's ball.")))
    )


@pytest.mark.parametrize("files", ["tokenizer.json", "vocab.txt"])
def test_ids_of_the_model_may_lie_beyond_the_tokenizer(files, tmp_path):
    """BLIP begins with an id that its tokenizer doesn't have."""
    ids = write_bert(tmp_path, files)
    size = load_published_tokenizer(tmp_path, **ids).vocabulary_size
    ours = load_published_tokenizer(tmp_path, **ids | {"start_id": size}, vocabulary_size=size + 2)
    assert ours.vocabulary_size == size + 2
    assert ours.decode([size, *ours.encode("a man"), ours.end_id]) == "a man"
    with pytest.raises(ValueError, match=f"start_id {size} lies outside the vocabulary of {size}"):
        load_published_tokenizer(tmp_path, **ids | {"start_id": size})


def test_added_tokens_have_the_ids_that_the_files_give_them(tmp_path):
    ids = write_bert(tmp_path, "vocab.txt")
    size = load_published_tokenizer(tmp_path, **ids).vocabulary_size
    (tmp_path / "added_tokens.json").write_text(json.dumps({"[ENC]": size + 1, "[DEC]": size}))
    (tmp_path / "special_tokens_map.json").write_text(
        json.dumps({"bos_token": {"content": "[DEC]"}, "additional_special_tokens": ["[ENC]"]})
    )
    ours = load_published_tokenizer(tmp_path, **ids | {"start_id": size})
    assert ours.vocabulary_size == size + 2
    assert ours.decode([size, *ours.encode("a man"), size + 1, ours.end_id]) == "a man"
    (tmp_path / "added_tokens.json").write_text(json.dumps({"[ENC]": size + 7}))
    with pytest.raises(ValueError, match=rf"'\[ENC\]' has id {size + 7}, but in the vocabulary {size}"):
        load_published_tokenizer(tmp_path, **ids)


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "vocab.json", "vocab.txt"])
def test_damaged_files_are_errors_with_their_place(name, tmp_path):
    ids = (write_gpt2 if name == "vocab.json" else write_bert)(
        tmp_path, "tokenizer.json" if name.startswith("tokenizer") else name
    )
    path = tmp_path / name
    path.write_text("" if name == "vocab.txt" else path.read_text()[:70])
    with pytest.raises(ValueError, match=str(tmp_path)):
        load_published_tokenizer(tmp_path, **ids)


def test_a_folder_without_a_tokenizer_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"has no tokenizer: neither tokenizer\.json, nor vocab\.json"):
        load_published_tokenizer(tmp_path, start_id=0, end_id=0, padding_id=0)


@pytest.mark.parametrize("way", ["saved", "config"])
def test_a_published_tokenizer_is_kept_in_our_own_format(way, tmp_path):
    ids = write_bert(tmp_path / "theirs", "vocab.txt")
    theirs = load_published_tokenizer(tmp_path / "theirs", **ids)
    theirs.save(tmp_path / "ours")
    ours = type(theirs).load(tmp_path / "ours") if way == "saved" else type(theirs)(**theirs.arguments)
    for text in texts:
        assert ours.encode(text) == theirs.encode(text)
        assert ours.decode(ours.encode(text)) == theirs.decode(theirs.encode(text))
