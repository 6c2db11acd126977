"""METEOR's alignment: which words and phrases of a candidate stand for which of a reference.

Source: Denkowski & Lavie, "Meteor Universal: language specific translation evaluation for any target language", WMT
2014, section 2.1; the details of the beam search are those of METEOR 1.5, found by its behaviour.
"""

from __future__ import annotations

from collections.abc import Sequence
from operator import itemgetter

from visattn.evaluation.captions.meteor_words import EXACT, PARAPHRASE, Caption, Lexicon, Phrase

_BEAM = 40
"""How many alignments the search keeps at each word of the reference."""

_rank = itemgetter(0)

# Words of the reference and the words of the candidate that match them: (stage, place in the reference, length there,
# place in the candidate, length there). A bare tuple, since making these takes much of the time.
Match = tuple[int, int, int, int, int]

# An alignment so far: (rank, place after the last match in the candidate or -1, bits of the words in use, choices). The
# rank is a number that orders as (-weight, chunks, distance) do; the choices are (match, choices before it), or ().
Path = tuple[int, int, int, tuple]


class Candidate:
    """A candidate with the places of the words that its own words match.

    Args:
        caption: the candidate.
        among: the words of all its references; no others are looked up.
    """

    def __init__(self, caption: Caption, among: frozenset[str], lexicon: Lexicon) -> None:
        self.caption = caption
        self.lexicon = lexicon
        places: dict[str, list[tuple[int, int]]] = {}  # word -> (stage, place in the candidate)
        for place, word in enumerate(caption.words):
            stages = lexicon.relatives(word)
            for other in stages.keys() & among:
                places.setdefault(other, []).extend([(stage, place) for stage in stages[other]])
        self.places = {word: sorted(found) for word, found in places.items()}


def align(candidate: Candidate, reference: Caption) -> tuple[list[Match], int]:
    """The best alignment of a candidate with a reference, and the number of its chunks.

    A chunk is a run of matches that are neighbours in both captions.
    """
    words, others = candidate.caption.words, reference.words
    options = _word_matches(candidate, others)
    if candidate.lexicon.same(words, others):
        options = [[match for match in matches if match[0] == EXACT] for matches in options]
    else:
        _add_paraphrases(options, candidate.caption, reference)
    return _search(options, len(words))


def _word_matches(candidate: Candidate, words: Sequence[str]) -> list[list[Match]]:
    """For each place of the reference the matches that begin there, in the order of stages."""
    places = candidate.places
    return [
        [(stage, place, 1, other, 1) for stage, other in places[word]] if word in places else []
        for place, word in enumerate(words)
    ]


def _add_paraphrases(options: list[list[Match]], candidate: Caption, reference: Caption) -> None:
    """Adds paraphrases in the candidate of the reference's phrases, then those the other way round."""
    for place, length, phrase in reference.phrases:
        if not phrase.keys().isdisjoint(candidate.distinct):
            for _, other, other_length in _occurrences(phrase, candidate):
                options[place].append((PARAPHRASE, place, length, other, other_length))
    for other, other_length, phrase in candidate.phrases:
        if not phrase.keys().isdisjoint(reference.distinct):
            for _, place, length in _occurrences(phrase, reference):
                options[place].append((PARAPHRASE, place, length, other, other_length))


def _occurrences(phrase: Phrase, caption: Caption) -> list[tuple[int, int, int]]:
    """Which paraphrases a caption holds: (place in the table's list, place in the caption, length), ascending."""
    found = []
    for place, word in enumerate(caption.words):
        for number, paraphrase in phrase.get(word, ()):
            length = len(paraphrase)
            if length == 1 or tuple(caption.words[place : place + length]) == paraphrase:
                found.append((number, place, length))
    found.sort()
    return found


def _search(options: list[list[Match]], length: int) -> tuple[list[Match], int]:
    """Chooses matches that don't overlap: of most words, then in fewest chunks, then of the least distance."""
    candidate_cover, reference_cover = _covers(options, length)
    certain = _certain_matches(options, candidate_cover, reference_cover)
    inside = {place for match in certain.values() for place in range(match[1] + 1, match[1] + match[2])}
    # What a chunk and a matched word count in a rank, next to a distance: more than all that stands after them can.
    chunk = 1 + sum([abs(match[1] - match[3]) for matches in options for match in matches])
    word = chunk * (length + len(options) + 2)
    paths: list[Path] = [(0, -1, 0, ())]
    for place, matches in enumerate(options):
        if len(paths) > 1:
            paths.sort(key=_rank)
            del paths[_BEAM:]
        if place in inside:
            continue
        if place in certain:
            _, _, _, begin, size = match = certain[place]
            gain, end = _weight(match) * word, begin + size
            paths = [
                (key - gain if last == begin or last == -1 else key - gain + chunk, end, used, chosen)
                for key, last, used, chosen in paths
            ]
        elif reference_cover[place]:
            paths = _extend(paths, matches, length, place, word, chunk)
        else:
            paths = [(key if last == -1 else key + chunk, -1, used, chosen) for key, last, used, chosen in paths]
    if len(paths) > 1:
        paths.sort(key=_rank)
        del paths[_BEAM:]
    paths = [(key if last == -1 else key + chunk, -1, used, chosen) for key, last, used, chosen in paths]
    key, _, _, chosen = min(paths, key=_rank)
    found = list(certain.values())
    while chosen:
        match, chosen = chosen
        found.append(match)
    return found, key % word // chunk


def _covers(options: list[list[Match]], length: int) -> tuple[list[int], list[int]]:
    """How many matches cover each word of the candidate, and each of the reference."""
    candidate, reference = [0] * length, [0] * len(options)
    for matches in options:
        for _, place, size, other, other_size in matches:
            for covered in range(place, place + size):
                reference[covered] += 1
            for covered in range(other, other + other_size):
                candidate[covered] += 1
    return candidate, reference


def _certain_matches(options: list[list[Match]], candidate: list[int], reference: list[int]) -> dict[int, Match]:
    """The matches without a rival, which belong to every alignment, by where they begin in the reference."""
    return {
        match[1]: match
        for matches in options
        if len(matches) == 1
        for match in matches
        if reference[match[1]] == candidate[match[3]] == 1
        and all(count == 1 for count in reference[match[1] : match[1] + match[2]])
        and all(count == 1 for count in candidate[match[3] : match[3] + match[4]])
    }


def _extend(paths: list[Path], matches: list[Match], length: int, place: int, word: int, chunk: int) -> list[Path]:
    """All alignments that go on with one of the matches at a place of the reference, or with none."""
    moves = []
    for match in matches:
        _, _, size, other, other_size = match
        bits = ((1 << size) - 1) << length + place | ((1 << other_size) - 1) << other
        moves.append((match, bits, _weight(match) * word, other, other + other_size, abs(place - other)))
    extended: list[Path] = []
    for path in paths:
        key, last, used, chosen = path
        if used >> length + place & 1:  # inside a phrase that was matched before
            extended.append(path)
            continue
        for match, bits, gain, begin, end, distance in moves:
            if not used & bits:
                step = key - gain if last == begin or last == -1 else key - gain + chunk
                extended.append((step, end, used | bits, (match, chosen)))
                key += distance  # as in the original, where a move's distance counts for the alignments after it
        extended.append((key if last == -1 else key + chunk, -1, used, chosen))
    return extended


def _weight(match: Match) -> int:
    """As in the original's search, a match of stem, synonym or paraphrase counts half of its words, rounded down."""
    stage, _, size, _, other_size = match
    return size + other_size if stage == EXACT else size // 2 + other_size // 2
