"""METEOR's tables as memory-mapped files in the user's cache folder, built once from the package pycocoevalcap.

The package's wheel holds the original program (`meteor-1.5.jar`) with WordNet's synonyms, function words and
abbreviations, and a table of 5.3 million paraphrases (`paraphrase-en.gz`). Nothing of that is part of visattn.
"""

from __future__ import annotations

import gzip
import hashlib
import importlib.util
import logging
import os
import shutil
import tempfile
import threading
import zipfile
from array import array
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from visattn.files import cache_folder

if TYPE_CHECKING:
    import marisa_trie

_FORMAT = 1
"""The version of the index's files; another one is built into a folder of its own."""

_FUNCTION_WORDS, _ABBREVIATIONS = "function/english.words", "nonbreaking/english.prefixes"
_SYNSETS, _EXCEPTIONS = "synonym/english.synsets", "synonym/english.exceptions"

logger = logging.getLogger(__name__)


class MeteorIndex:
    """The tables, opened read-only; several threads and processes can share one folder.

    Args:
        folder: what `build` wrote.
    """

    def __init__(self, folder: Path) -> None:
        import marisa_trie

        self.function_words = frozenset(_read_lines(folder / "function_words.txt"))
        self.abbreviations = frozenset(_read_lines(folder / "abbreviations.txt"))
        self.abbreviations_before_numbers = frozenset(_read_lines(folder / "abbreviations_before_numbers.txt"))
        self._synsets = marisa_trie.RecordTrie("<I").mmap(str(folder / "synsets.marisa"))
        self._bases = marisa_trie.BytesTrie().mmap(str(folder / "bases.marisa"))
        self._sources = marisa_trie.Trie().mmap(str(folder / "sources.marisa"))
        self._targets = marisa_trie.Trie().mmap(str(folder / "targets.marisa"))
        self._starts: NDArray[np.uint32] = np.load(folder / "starts.npy", mmap_mode="r")  # (sources + 1,)
        self._target_ids: NDArray[np.uint32] = np.load(folder / "target_ids.npy", mmap_mode="r")  # (pairs,)

    def synsets(self, word: str) -> frozenset[int]:
        """WordNet's synonym sets of a word and of its base forms."""
        own = self._own_synsets(word)
        if word in self._bases:
            bases: Iterable[str] = (base.decode() for base in self._bases[word])
        else:
            bases = [_detach_ending(word, self._synsets)]
        return own.union(*map(self._own_synsets, bases))

    def _own_synsets(self, word: str) -> frozenset[int]:
        return frozenset(number for (number,) in self._synsets.get(word, ()))

    def starts_longer_phrase(self, words: str) -> bool:
        """Whether a phrase with paraphrases begins with these words, separated by spaces, and goes on."""
        return next(self._sources.iterkeys(words + " "), None) is not None

    def phrases(self, text: str) -> Iterator[tuple[str, int]]:
        """The phrases with paraphrases that begin the text, shortest first, each with its number."""
        for phrase, number in self._sources.iter_prefixes_with_ids(text + " "):
            yield phrase[:-1], number

    def paraphrases(self, number: int) -> list[str]:
        """The paraphrases of the phrase of that number, in the order of the table."""
        begin, end = self._starts[number : number + 2].tolist()
        return [self._targets.restore_key(target) for target in self._target_ids[begin:end].tolist()]


# How words lose their endings, as in WordNet's morphology: the first result that WordNet knows counts.
_ENDINGS = (
    ("s", ""), ("ses", "s"), ("xes", "x"), ("zes", "z"), ("ches", "ch"), ("shes", "sh"), ("men", "man"), ("ies", "y"),
    ("es", "e"), ("es", ""), ("ed", "e"), ("ed", ""), ("ing", "e"), ("ing", ""), ("er", ""), ("est", ""), ("er", "e"),
    ("est", "e"),
)  # fmt: skip


def _detach_ending(word: str, known: marisa_trie.RecordTrie) -> str:
    if len(word) <= 2 or word.endswith("ss"):
        return word
    for ending, replacement in _ENDINGS:
        if word.endswith(ending) and (base := word[: -len(ending)] + replacement) in known:
            return base
    return ""


_lock = threading.Lock()
_opened: dict[Path, MeteorIndex] = {}


def open_index() -> MeteorIndex:
    """The index in the user's cache folder; builds it the first time, which takes about half a minute.

    Raises:
        ModuleNotFoundError: the extra `visattn[meteor]` is not installed.
    """
    jar, paraphrases = _find_sources()
    folder = cache_folder() / f"meteor-{_FORMAT}-{_fingerprint(jar, paraphrases)}"
    with _lock:
        if folder not in _opened:
            if not folder.is_dir():
                build(jar, paraphrases, folder)
            _opened[folder] = MeteorIndex(folder)
        return _opened[folder]


def _find_sources() -> tuple[Path, Path]:
    for name in ("pycocoevalcap", "marisa_trie"):
        if importlib.util.find_spec(name) is None:
            raise ModuleNotFoundError(
                f'METEOR needs the package {name} (for its tables, not for Java): pip install "visattn[meteor]"'
            )
    specification = importlib.util.find_spec("pycocoevalcap")
    assert specification is not None
    folder = Path(next(iter(specification.submodule_search_locations or ()))) / "meteor"
    sources = folder / "meteor-1.5.jar", folder / "data" / "paraphrase-en.gz"
    for source in sources:
        if not source.is_file():
            raise FileNotFoundError(
                f"METEOR needs {source}, which pycocoevalcap 1.2 brings; install that version again"
            )
    return sources


def _fingerprint(jar: Path, paraphrases: Path) -> str:
    """A hash of the tables by the checksums that their archives hold, so that nothing needs to be read again."""
    with zipfile.ZipFile(jar) as archive:
        names = (_FUNCTION_WORDS, _ABBREVIATIONS, _SYNSETS, _EXCEPTIONS)
        checksums = [archive.getinfo(name).CRC for name in names]
    with paraphrases.open("rb") as file:
        file.seek(-8, os.SEEK_END)  # gzip ends with the checksum and the size of the content
        ending = file.read()
    return hashlib.sha256(repr((checksums, ending)).encode()).hexdigest()[:16]


def build(jar: Path, paraphrases: Path, folder: Path) -> None:
    """Writes the index into a new folder, which appears only when it is complete.

    Several processes may build at once: each writes a folder of its own, the first to finish gives it the name, and
    the others throw theirs away.

    Args:
        jar: METEOR 1.5.
        paraphrases: its table of English paraphrases.
        folder: the folder to make.
    """
    logger.info("building METEOR's index in %s", folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        with zipfile.ZipFile(jar) as archive:
            _build_word_lists(archive, temporary)
            _build_synonyms(archive, temporary)
        _build_paraphrases(paraphrases, temporary)
        temporary.chmod(0o755)
        try:
            temporary.rename(folder)
        except OSError:
            if not folder.is_dir():
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _build_word_lists(archive: zipfile.ZipFile, folder: Path) -> None:
    _write_lines(folder / "function_words.txt", _lines(archive, _FUNCTION_WORDS))
    rows = [line.split() for line in _lines(archive, _ABBREVIATIONS) if line.strip() and not line.startswith("#")]
    before_numbers = {word for word, *mark in rows if mark == ["#NUMERIC_ONLY#"]}
    _write_lines(folder / "abbreviations.txt", [row[0] for row in rows if row[0] not in before_numbers])
    _write_lines(folder / "abbreviations_before_numbers.txt", sorted(before_numbers))


def _build_synonyms(archive: zipfile.ZipFile, folder: Path) -> None:
    import marisa_trie

    synsets = _pairs(_lines(archive, _SYNSETS))
    records = ((word, (int(number),)) for word, numbers in synsets for number in numbers.split())
    marisa_trie.RecordTrie("<I", records).save(str(folder / "synsets.marisa"))
    exceptions = _pairs(_lines(archive, _EXCEPTIONS))
    bases = ((word, base.encode()) for base, words in exceptions for word in words.split())
    marisa_trie.BytesTrie(bases).save(str(folder / "bases.marisa"))


def _build_paraphrases(paraphrases: Path, folder: Path) -> None:
    """Tries of the phrases and of their paraphrases, and for each phrase where its paraphrases are listed."""
    import marisa_trie

    sources: list[str] = []
    first: array[int] = array("I")  # of each source, in the order of the table
    target_number: dict[str, int] = {}
    pairs: array[int] = array("I")
    with gzip.open(paraphrases, "rt", encoding="utf-8") as file:
        for _probability, source, target in zip(file, file, file, strict=True):
            if not sources or source != sources[-1]:
                sources.append(source)
                first.append(len(pairs))
            pairs.append(target_number.setdefault(target, len(target_number)))
    first.append(len(pairs))
    targets = marisa_trie.Trie(target.rstrip("\n") for target in target_number)
    key = np.fromiter((targets[target.rstrip("\n")] for target in target_number), np.uint32, len(target_number))
    targets.save(str(folder / "targets.marisa"))
    del targets, target_number
    # A space at the end makes a prefix in letters a prefix in words.
    trie = marisa_trie.Trie(source.rstrip("\n") + " " for source in sources)
    if len(trie) != len(sources):
        raise ValueError(f"{paraphrases}: the paraphrases of a phrase must follow each other")
    trie.save(str(folder / "sources.marisa"))
    order = np.argsort(np.fromiter((trie[source.rstrip("\n") + " "] for source in sources), np.int64, len(sources)))
    begin, end = np.frombuffer(first, np.uint32)[:-1][order], np.frombuffer(first, np.uint32)[1:][order]
    starts = np.concatenate([[0], np.cumsum(end - begin)]).astype(np.uint32)
    place = np.repeat(begin - starts[:-1], end - begin) + np.arange(len(pairs), dtype=np.uint32)
    np.save(folder / "starts.npy", starts)
    np.save(folder / "target_ids.npy", key[np.frombuffer(pairs, np.uint32)[place]])


def _lines(archive: zipfile.ZipFile, name: str) -> list[str]:
    return archive.read(name).decode().splitlines()


def _pairs(lines: list[str]) -> Iterator[tuple[str, str]]:
    return zip(lines[::2], lines[1::2], strict=True)


def _read_lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines()


def _write_lines(path: Path, lines: Iterable[str]) -> None:
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
