"""What METEOR knows about the words of some captions: which pairs match, and which phrases paraphrase each other."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence

from visattn.evaluation.captions.meteor_index import MeteorIndex
from visattn.evaluation.captions.snowball import stem

EXACT, STEM, SYNONYM, PARAPHRASE = range(4)
"""The stages of matching, in their order."""


# A phrase that has paraphrases: the first word of these -> their places in the table's list, with their words.
Phrase = dict[str, list[tuple[int, tuple[str, ...]]]]


class Caption:
    """The words of a caption, with what any comparison of it needs.

    Args:
        words: the caption as METEOR's tokenizer cuts it.
        lexicon: which knows all its words.
    """

    __slots__ = ("distinct", "functions", "number_of_functions", "phrases", "words")

    def __init__(self, words: list[str], lexicon: Lexicon) -> None:
        self.words = words
        self.distinct = frozenset(words)
        self.functions = [word in lexicon.function_words for word in words]
        self.number_of_functions = sum(self.functions)
        self.phrases = lexicon.phrases(words)  # (begin, length, phrase)


class Lexicon:
    """Relations among the words of a set of captions, found once for each word.

    Args:
        words: all words of the captions to compare.
        index: METEOR's tables.
    """

    def __init__(self, words: Iterable[str], index: MeteorIndex) -> None:
        self.function_words = index.function_words
        self._index = index
        self._by_key: dict[int, list[str]] = defaultdict(list)
        self._by_stem: dict[int, list[str]] = defaultdict(list)
        self._by_synset: dict[int, list[str]] = defaultdict(list)
        self._about: dict[str, tuple[int, int, frozenset[int]]] = {}
        for word in words:
            about = java_hash(word), java_hash(stem(word)), index.synsets(word)
            self._about[word] = about
            self._by_key[about[0]].append(word)
            self._by_stem[about[1]].append(word)
            for synset in about[2]:
                self._by_synset[synset].append(word)
        self._relatives: dict[str, dict[str, tuple[int, ...]]] = {}
        self._goes_on: dict[tuple[str, str], bool] = {}
        self._phrases: dict[int, Phrase] = {}
        self._single: dict[str, Phrase | None] = {}

    def same(self, first: Sequence[str], second: Sequence[str]) -> bool:
        """Whether two captions have the same words."""
        keys = self._about
        return len(first) == len(second) and all(
            one == other or keys[one][0] == keys[other][0] for one, other in zip(first, second, strict=True)
        )

    def relatives(self, word: str) -> dict[str, tuple[int, ...]]:
        """The words that a word matches, each with the stages in which it does."""
        if word not in self._relatives:
            key, stem_key, synsets = self._about[word]
            stages: dict[str, tuple[int, ...]] = dict.fromkeys(self._by_key[key], (EXACT,))
            for other in self._by_stem[stem_key]:
                stages.setdefault(other, (STEM,))
            for other in {other for synset in synsets for other in self._by_synset[synset]}:
                found = stages.get(other, ())
                if EXACT not in found:
                    stages[other] = (*found, SYNONYM)
            self._relatives[word] = stages
        return self._relatives[word]

    def phrases(self, words: list[str]) -> list[tuple[int, int, Phrase]]:
        """All phrases in a caption that have paraphrases: where each begins, its length in words, and the phrase."""
        found = []
        for place, word in enumerate(words):
            if place + 1 < len(words) and self._longer(word, words[place + 1]):
                for text, number in self._index.phrases(" ".join(words[place:])):
                    found.append((place, text.count(" ") + 1, self._phrase(number)))
            elif (phrase := self._single_word(word)) is not None:
                found.append((place, 1, phrase))
        return found

    def _longer(self, word: str, following: str) -> bool:
        pair = word, following
        if pair not in self._goes_on:
            self._goes_on[pair] = self._index.starts_longer_phrase(f"{word} {following}")
        return self._goes_on[pair]

    def _single_word(self, word: str) -> Phrase | None:
        if word not in self._single:
            number = next((number for _, number in self._index.phrases(word)), None)
            self._single[word] = None if number is None else self._phrase(number)
        return self._single[word]

    def _phrase(self, number: int) -> Phrase:
        if number not in self._phrases:
            phrase = self._phrases[number] = {}
            for place, text in enumerate(self._index.paraphrases(number)):
                words = tuple(text.split(" "))
                phrase.setdefault(words[0], []).append((place, words))
        return self._phrases[number]


def java_hash(text: str) -> int:
    """Java's hash of a string. METEOR compares words by it, so that "do" and "f1" are the same to it."""
    value = 0
    units = text if text.isascii() else map(chr, memoryview(text.encode("utf-16-le")).cast("H"))
    for unit in units:
        value = (31 * value + ord(unit)) & 0xFFFFFFFF
    return value
