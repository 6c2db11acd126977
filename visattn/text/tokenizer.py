"""Captions as numbers: words of a vocabulary, or byte pairs, and back to text as people write it."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import tokenizers
import torch
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, trainers
from torch import Tensor

from visattn.files import atomic_path

_specials = {"padding": "<pad>", "start": "<start>", "end": "<end>", "unknown": "<unk>"}  # their ids in this order

_letter = r"[\p{L}\p{M}\p{N}]"
_word = rf"'s(?!{_letter})|{_letter}+(?:(?!'s(?!{_letter}))['-]{_letter}+)*"  # "man's" is "man" and "'s"


class CaptionTokenizer:
    """A tokenizer of the `tokenizers` library with what captioning adds: start, end and padding.

    Args:
        definition: the contents of its `tokenizer.json`.
        start_id, end_id: stand before and after a caption; they may be the same.
        padding_id: fills up the shorter captions of a batch; it may be one of the two.
        unknown_id: stands for words that the vocabulary lacks; None where there is no such id.
        vocabulary_size: how many ids a model must have rows for; None counts those of the definition.
        max_length: tokens that are kept of a caption, without start and end; None keeps all.

    Attributes:
        arguments: all constructor arguments as plain data: `CaptionTokenizer(**tokenizer.arguments)` does the same.

    Raises:
        ValueError: the definition is none, or an id or a size doesn't fit it.
    """

    def __init__(
        self,
        definition: str,
        *,
        start_id: int,
        end_id: int,
        padding_id: int,
        unknown_id: int | None = None,
        vocabulary_size: int | None = None,
        max_length: int | None = None,
    ) -> None:
        try:
            self.tokenizer = tokenizers.Tokenizer.from_str(definition)
        except Exception as error:  # the library raises nothing narrower
            raise ValueError(f"no definition of a tokenizer: {error}") from None
        self.tokenizer.no_truncation()
        self.tokenizer.no_padding()
        self.tokenizer.encode_special_tokens = True  # "<end>" within a caption is text, not its end
        known = max(self.tokenizer.get_vocab(with_added_tokens=True).values(), default=-1) + 1
        self.vocabulary_size = known if vocabulary_size is None else int(vocabulary_size)
        self.start_id, self.end_id, self.padding_id = int(start_id), int(end_id), int(padding_id)
        self.unknown_id, self.max_length = unknown_id, max_length
        if self.vocabulary_size < known:
            raise ValueError(f"vocabulary_size {vocabulary_size} is less than the {known} ids of the tokenizer")
        for name in ("start_id", "end_id", "padding_id", "unknown_id"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < self.vocabulary_size:
                raise ValueError(f"{name} {value} lies outside the vocabulary of {self.vocabulary_size}")
        if unknown_id is not None and unknown_id in (self.start_id, self.end_id, self.padding_id):
            raise ValueError(f"unknown_id {unknown_id} must differ from start, end and padding")
        if max_length is not None and max_length < 1:
            raise ValueError(f"max_length {max_length} must be at least 1")
        added = self.tokenizer.get_added_tokens_decoder()
        self._silent = {number for number, token in added.items() if token.special}
        self._silent |= {self.start_id, self.end_id, self.padding_id}

    @property
    def arguments(self) -> dict[str, Any]:
        return {
            "definition": self.tokenizer.to_str(),
            "start_id": self.start_id,
            "end_id": self.end_id,
            "padding_id": self.padding_id,
            "unknown_id": self.unknown_id,
            "vocabulary_size": self.vocabulary_size,
            "max_length": self.max_length,
        }

    def __reduce__(self) -> tuple[Any, ...]:
        return _from_arguments, (self.arguments,)

    @classmethod
    def train_words(cls, captions: Iterable[str], min_count: int = 5, max_length: int | None = 20) -> CaptionTokenizer:
        """A vocabulary of the words that occur at least `min_count` times, most frequent first.

        Words are lower case and without punctuation but for hyphens and apostrophes within; "'s" is a word of its own,
        as in the evaluation. Scripts without spaces need byte pairs instead.

        Raises:
            ValueError: no word occurs that often.

        Source: Vinyals et al. 2015 (https://arxiv.org/abs/1411.4555), section 4.3.1; Karpathy & Fei-Fei 2015.
        """
        tokenizer = tokenizers.Tokenizer(models.WordLevel(unk_token=_specials["unknown"]))
        tokenizer.normalizer = normalizers.Sequence(
            [
                normalizers.NFKC(),
                normalizers.Lowercase(),
                normalizers.Replace(Regex(r"\p{Cf}"), ""),  # soft hyphens, marks of direction
                normalizers.Replace(Regex("[\u2018\u2019\u02bc\u2032\u00b4`]"), "'"),
                normalizers.Replace(Regex("[\u2010\u2011]"), "-"),
            ]
        )
        tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(_word), "removed", invert=True)
        tokenizer.decoder = decoders.WordPiece(prefix="##", cleanup=True)  # spaces between words, none before "'s"
        trainer = trainers.WordLevelTrainer(
            vocab_size=2**31,
            min_frequency=min_count,
            special_tokens=list(_specials.values()),
            show_progress=False,
        )
        tokenizer.train_from_iterator(captions, trainer)
        if tokenizer.get_vocab_size() == len(_specials):
            raise ValueError(f"no word occurs {min_count} times in the captions; lower min_count, or train byte pairs")
        ids = {f"{name}_id": number for number, name in enumerate(_specials)}
        return cls(tokenizer.to_str(), **ids, max_length=max_length)

    @classmethod
    def train_bpe(
        cls, captions: Iterable[str], vocabulary_size: int = 8000, max_length: int | None = 40
    ) -> CaptionTokenizer:
        """Byte-level byte pairs, which keep every caption as it is: case, punctuation and all of Unicode.

        Args:
            vocabulary_size: at most so many ids, among them 256 bytes, start, end and padding.

        Raises:
            ValueError: vocabulary_size is below 259.

        Source: Sennrich et al. 2016 (https://arxiv.org/abs/1508.07909); over bytes as in GPT-2, Radford et al. 2019.
        """
        names = ("padding", "start", "end")
        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
        if vocabulary_size < len(names) + len(alphabet):
            raise ValueError(f"vocabulary_size {vocabulary_size} is below {len(names) + len(alphabet)}")
        tokenizer = tokenizers.Tokenizer(models.BPE())
        tokenizer.normalizer = normalizers.NFC()
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)  # the first word is as any other
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=vocabulary_size,
            min_frequency=2,
            special_tokens=[_specials[name] for name in names],
            initial_alphabet=alphabet,
            show_progress=False,
        )
        tokenizer.train_from_iterator(captions, trainer)
        ids = {f"{name}_id": number for number, name in enumerate(names)}
        return cls(tokenizer.to_str(), **ids, max_length=max_length)

    def encode(self, caption: str) -> list[int]:
        """The ids of a caption without start and end, at most `max_length` of them.

        Raises:
            ValueError: the caption is no valid Unicode.
        """
        return self.encode_all([caption])[0]

    def encode_all(self, captions: Sequence[str]) -> list[list[int]]:
        """`encode` of many captions, faster than one by one."""
        for caption in captions:
            try:
                caption.encode()
            except UnicodeEncodeError as error:
                raise ValueError(
                    f"{caption!r} is no valid Unicode (a lone surrogate at position {error.start})"
                ) from None
        encodings = self.tokenizer.encode_batch_fast(list(captions), add_special_tokens=False)
        return [encoding.ids[: self.max_length] for encoding in encodings]

    def decode(self, token_ids: Sequence[int] | Tensor) -> str:
        """The text of ids (T,), without special tokens, with spaces as people write them."""
        kept = [number for number in map(int, token_ids) if number not in self._silent]
        return self.tokenizer.decode(kept, skip_special_tokens=False).strip()

    def batch(self, captions: Sequence[str]) -> Tensor:
        """Captions to (B, T) long: start, words, end, then padding; T is what the longest of them needs."""
        return self.pad(self.encode_all(captions))

    def pad(self, encoded: Sequence[Sequence[int]]) -> Tensor:
        """As `batch`, for captions that are encoded already."""
        longest = max(map(len, encoded), default=0)
        token_ids = torch.full((len(encoded), longest + 2), self.padding_id)
        for row, ids in zip(token_ids, encoded, strict=True):
            row[: len(ids) + 2] = torch.tensor([self.start_id, *ids, self.end_id])
        return token_ids

    def targets(self, token_ids: Tensor) -> Tensor:
        """What a decoder shall say after each place of a batch (B, T) of captions: (B, T - 1) long.

        It is -100, to be ignored, after the end, and for unknown words, which nobody wants to be said.
        """
        following = token_ids[:, 1:]
        ends = following == self.end_id
        after_the_end = ends.cumsum(dim=1) > ends.long()
        targets = following.masked_fill(after_the_end, -100)
        return targets if self.unknown_id is None else targets.masked_fill(following == self.unknown_id, -100)

    def words(self, token_ids: Sequence[int] | Tensor) -> list[tuple[str, list[int]]]:
        """The words of `decode(token_ids)`, each with the positions in `token_ids` of the tokens it is made of."""
        numbers = [int(number) for number in token_ids]
        word_of: dict[int, int] = {}  # position of a token: number of its word
        written: list[str] = []
        for position in [position for position, number in enumerate(numbers) if number not in self._silent]:
            written = self.decode(numbers[: position + 1]).split()
            last = max(len(written) - 1, 0)
            word_of[position] = last
            word_of = {token: min(word, last) for token, word in word_of.items()}  # a token may join two words
        return [(text, [token for token, word in word_of.items() if word == i]) for i, text in enumerate(written)]

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Writes `tokenizer.json`, which the `tokenizers` library reads too, and `caption_tokenizer.json`."""
        settings = self.arguments
        with atomic_path(Path(folder) / "tokenizer.json") as temporary:
            temporary.write_text(settings.pop("definition"), encoding="utf-8")
        with atomic_path(Path(folder) / "caption_tokenizer.json") as temporary:
            temporary.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> CaptionTokenizer:
        """What `save` wrote.

        Raises:
            FileNotFoundError: one of the two files is missing.
            ValueError: a file is damaged; the message begins with its path.
        """
        definition, settings = Path(folder) / "tokenizer.json", Path(folder) / "caption_tokenizer.json"
        for path in (definition, settings):
            if not path.is_file():
                raise FileNotFoundError(f"{path}: there is no such file; a saved tokenizer has both")
        try:
            return cls(definition.read_text(encoding="utf-8"), **json.loads(settings.read_text(encoding="utf-8")))
        except (ValueError, TypeError) as error:
            raise ValueError(f"{folder}: tokenizer.json and caption_tokenizer.json don't fit: {error}") from error


def _from_arguments(arguments: dict[str, Any]) -> CaptionTokenizer:
    return CaptionTokenizer(**arguments)
