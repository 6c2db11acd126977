"""Tokenizers of published captioners: GPT-2's byte pairs and BERT's word pieces, from the files beside the weights."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers

from visattn.text.tokenizer import CaptionTokenizer

_roles = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_usual = {
    "BPE": ("<|endoftext|>",),
    "WordPiece": ("[UNK]", "[SEP]", "[PAD]", "[CLS]", "[MASK]"),
}
_clean_up = {" .": ".", " ?": "?", " !": "!", " ,": ",", " ' ": "'", " n't": "n't"} | {
    f" '{ending}": f"'{ending}" for ending in ("m", "s", "ve", "re")
}


def load_published_tokenizer(
    folder: str | os.PathLike[str],
    *,
    start_id: int,
    end_id: int,
    padding_id: int,
    vocabulary_size: int | None = None,
    max_length: int | None = None,
) -> CaptionTokenizer:
    """The tokenizer of a published captioner, as transformers reads it.

    Args:
        folder: holds `tokenizer.json`, or `vocab.json` and `merges.txt` (GPT-2), or `vocab.txt` (BERT); and beside
            them `tokenizer_config.json`, `special_tokens_map.json` and `added_tokens.json`, where there are any.
        start_id, end_id, padding_id: those that the model generates with, of its own configuration.
        vocabulary_size: rows of the model's word table, which may have more than the tokenizer has words.
        max_length: see `CaptionTokenizer`.

    Word pieces are put together without the spaces before punctuation and around apostrophes, unless
    `tokenizer_config.json` says otherwise: so they were when these models were published.

    Raises:
        FileNotFoundError: there are no such files.
        ValueError: a file is damaged, or one doesn't fit another; the message begins with its path.
    """
    folder = Path(folder)
    settings = read_object(folder / "tokenizer_config.json")
    tokenizer = read_tokenizer(folder, settings)
    kind = type(tokenizer.model).__name__
    add_tokens(tokenizer, folder, settings)
    special = [*_usual.get(kind, ()), *special_tokens(settings | read_object(folder / "special_tokens_map.json"))]
    known = [token for token in dict.fromkeys(special) if tokenizer.token_to_id(token) is not None]
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in known])
    if kind == "WordPiece" and settings.get("clean_up_tokenization_spaces", True):
        replaced = [decoders.Replace(before, after) for before, after in _clean_up.items()]
        tokenizer.decoder = decoders.Sequence([tokenizer.decoder, decoders.Fuse(), *replaced])
    unknown = tokenizer.token_to_id(tokenizer.model.unk_token) if kind == "WordPiece" else None
    try:
        return CaptionTokenizer(
            tokenizer.to_str(),
            start_id=start_id,
            end_id=end_id,
            padding_id=padding_id,
            unknown_id=unknown,
            vocabulary_size=vocabulary_size,
            max_length=max_length,
        )
    except ValueError as error:
        raise ValueError(f"{folder}: tokenizer and model don't fit: {error}") from error


def read_tokenizer(folder: Path, settings: Mapping[str, Any]) -> Tokenizer:
    """Vocabulary and rules, from whichever files there are; what `settings` say about the rules comes first."""
    files = {name: folder / name for name in ("tokenizer.json", "vocab.json", "merges.txt", "vocab.txt")}
    try:
        if files["tokenizer.json"].is_file():
            tokenizer = Tokenizer.from_file(str(files["tokenizer.json"]))
        elif files["vocab.json"].is_file() and files["merges.txt"].is_file():
            tokenizer = Tokenizer(models.BPE.from_file(str(files["vocab.json"]), str(files["merges.txt"])))
            tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
            tokenizer.decoder = decoders.ByteLevel()
        elif files["vocab.txt"].is_file():
            unknown = content_of(settings.get("unk_token")) or "[UNK]"
            tokenizer = Tokenizer(models.WordPiece.from_file(str(files["vocab.txt"]), unk_token=unknown))
            tokenizer.normalizer = normalizers.BertNormalizer()
            tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
            tokenizer.decoder = decoders.WordPiece()
        else:
            raise FileNotFoundError(
                f"{folder}: has no tokenizer: neither tokenizer.json, nor vocab.json with merges.txt, nor vocab.txt"
            )
    except FileNotFoundError:
        raise
    except Exception as error:  # the library raises nothing narrower
        raise ValueError(f"{folder}: its tokenizer cannot be read: {error}") from None
    if isinstance(tokenizer.model, models.WordPiece) and tokenizer.token_to_id(tokenizer.model.unk_token) is None:
        raise ValueError(f"{folder}: the vocabulary lacks {tokenizer.model.unk_token}, which stands for unknown words")
    rules = {
        "lowercase": settings.get("do_lower_case"),
        "strip_accents": settings.get("strip_accents"),
        "handle_chinese_chars": settings.get("tokenize_chinese_chars"),
    }
    if isinstance(tokenizer.normalizer, normalizers.BertNormalizer):
        for name, value in rules.items():
            if value is not None:
                setattr(tokenizer.normalizer, name, value)
    if isinstance(tokenizer.pre_tokenizer, pre_tokenizers.ByteLevel) and "add_prefix_space" in settings:
        tokenizer.pre_tokenizer.add_prefix_space = settings["add_prefix_space"]
    return tokenizer


def add_tokens(tokenizer: Tokenizer, folder: Path, settings: Mapping[str, Any]) -> None:
    """Adds the tokens with which a vocabulary was extended, each under the id that the files give it."""
    listed = {
        int(number): AddedToken(entry["content"], special=bool(entry.get("special")), normalized=False)
        for number, entry in settings.get("added_tokens_decoder", {}).items()
    }
    extended = {number: AddedToken(token) for token, number in read_object(folder / "added_tokens.json").items()}
    for number, token in sorted((extended | listed).items()):
        if tokenizer.token_to_id(token.content) is None:
            tokenizer.add_tokens([token])
        if tokenizer.token_to_id(token.content) != number:
            raise ValueError(
                f"{folder}: the added token {token.content!r} has id {number}, but in the vocabulary "
                f"{tokenizer.token_to_id(token.content)}; files of two tokenizers are mixed"
            )


def special_tokens(settings: Mapping[str, Any]) -> list[str]:
    tokens = [settings.get(role) for role in _roles] + list(settings.get("additional_special_tokens") or ())
    tokens += [entry for entry in settings.get("added_tokens_decoder", {}).values() if entry.get("special")]
    return [token for token in map(content_of, tokens) if token]


def content_of(token: Any) -> str | None:
    """A token, which stands for itself or within an object that tells more about it."""
    return token.get("content") if isinstance(token, dict) else token


def read_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file; an empty one if there is no such file."""
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: no JSON, or cut off: {error}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected an object, found {type(content).__name__}")
    return content
