"""A scanner that takes, at each position, the longest match of any of its rules, and the first such rule.

Python's own `re` takes the first alternative that matches, not the longest, so a grammar whose rules compete by
length needs an automaton. The rules become one nondeterministic automaton (Thompson's construction); its
deterministic states are built when a text first reaches them, so that starting is cheap and scanning is one
dictionary look-up a character.

Patterns are a subset of regular expressions: literals, `[classes]` with ranges and `^`, `( )`, `|`, `* + ?`, `{m,n}`,
`{NAME}` for a definition, and after a backslash a special character, `uXXXX`, `xXX`, `t n f r` or a letter that names
one of the caller's own character classes. A literal letter outside a class matches both cases, a class matches exactly
what it lists.

Source: Thompson, "Regular expression search algorithm", CACM 1968; Aho et al., "Compilers", 2nd ed., 3.7 and 3.8.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

Predicate = Callable[[str], bool]

# Letters beyond ASCII that are a case of an ASCII letter: dotless and dotted i, the Kelvin sign, long s.
_MORE_CASES = {"i": "\u0130\u0131", "k": "\u212a", "s": "\u017f"}


class Rule(NamedTuple):
    """One rule of a grammar: what matches, what must follow, and what to do with it."""

    pattern: str
    """The text that the rule matches."""
    action: str
    """The caller's name for what is done with the match."""
    before: str | None = None
    """What must follow. It counts for the length by which rules compete, but is no part of the match."""


class CharacterSet(NamedTuple):
    ranges: tuple[tuple[str, str], ...]
    predicates: tuple[Predicate, ...]
    negated: bool

    def __contains__(self, character: object) -> bool:
        assert isinstance(character, str)
        found = any(low <= character <= high for low, high in self.ranges)
        return (found or any(predicate(character) for predicate in self.predicates)) != self.negated


class Automaton:
    """A nondeterministic automaton under construction: per state its free moves and its moves on a character set."""

    def __init__(self) -> None:
        self.free: list[list[int]] = []
        self.move: list[tuple[int, int] | None] = []  # (index of the character set, next state)
        self.sets: list[CharacterSet] = []
        self._index: dict[CharacterSet, int] = {}

    def state(self) -> int:
        self.free.append([])
        self.move.append(None)
        return len(self.free) - 1

    def set_index(self, characters: CharacterSet) -> int:
        if characters not in self._index:
            self._index[characters] = len(self.sets)
            self.sets.append(characters)
        return self._index[characters]


class PatternCompiler:
    """Adds one pattern to an automaton, by recursive descent over the pattern's text."""

    def __init__(self, automaton: Automaton, definitions: Mapping[str, str], classes: Mapping[str, Predicate]) -> None:
        self.automaton = automaton
        self.definitions = definitions
        self.classes = classes
        self.text = ""
        self.position = 0

    def compile(self, pattern: str, start: int) -> int:
        """Adds the states that lead from `start` to the returned state by matching `pattern`."""
        outer = self.text, self.position
        self.text, self.position = pattern, 0
        end = self._alternatives(start)
        if self.position != len(pattern):
            raise ValueError(f"unbalanced {pattern[self.position]!r} at {self.position} of the pattern {pattern!r}")
        self.text, self.position = outer
        return end

    def _peek(self) -> str:
        return self.text[self.position : self.position + 1]

    def _alternatives(self, start: int) -> int:
        end = self.automaton.state()
        while True:
            self.automaton.free[self._sequence(start)].append(end)
            if self._peek() != "|":
                return end
            self.position += 1

    def _sequence(self, start: int) -> int:
        while self._peek() not in ("", "|", ")"):
            begin = self.position
            end = self._atom(start)
            least, most = self._repetition()
            start = end if (least, most) == (1, 1) else self._repeat(start, begin, self.position, least, most)
        return start

    def _repetition(self) -> tuple[int, int | None]:
        """Reads a repetition; `None` is no upper limit."""
        character = self._peek()
        if character in ("*", "+", "?") and character:
            self.position += 1
            return (1 if character == "+" else 0), (1 if character == "?" else None)
        if character == "{" and self.text[self.position + 1].isdigit():
            close = self.text.index("}", self.position)
            least, comma, most = self.text[self.position + 1 : close].partition(",")
            self.position = close + 1
            return int(least), (int(most) if comma else int(least))
        return 1, 1

    def _repeat(self, start: int, begin: int, resume: int, least: int, most: int | None) -> int:
        """Compiles the atom at `begin` as often as asked, and forgets the copy that was read to get past it."""
        free = self.automaton.free
        free[start].pop()  # the move to that copy
        end = self.automaton.state()
        for _ in range(least):
            start = self._atom_at(begin, start)
        if most is None:
            loop = self.automaton.state()
            free[start].append(loop)
            free[self._atom_at(begin, loop)].append(loop)
            start = loop
        else:
            for _ in range(most - least):
                free[start].append(end)
                start = self._atom_at(begin, start)
        free[start].append(end)
        self.position = resume
        return end

    def _atom_at(self, begin: int, start: int) -> int:
        self.position = begin
        return self._atom(start)

    def _atom(self, start: int) -> int:
        # Each atom starts in its own state, which a repetition can unlink again.
        inner = self.automaton.state()
        self.automaton.free[start].append(inner)
        character = self._peek()
        self.position += 1
        if character == "(":
            end = self._alternatives(inner)
            self.position += 1
            return end
        if character == "{":
            close = self.text.index("}", self.position)
            name = self.text[self.position : close]
            self.position = close + 1
            return self.compile(self.definitions[name], inner)
        end = self.automaton.state()
        self.automaton.move[inner] = self.automaton.set_index(self._characters(character)), end
        return end

    def _characters(self, character: str) -> CharacterSet:
        if character == "[":
            return self._class()
        if character == "\\":
            escaped = self._escape()
            if isinstance(escaped, CharacterSet):
                return escaped
            character = escaped
        cases = {character, character.lower(), character.upper(), *_MORE_CASES.get(character.lower(), "")}
        return CharacterSet(tuple((case, case) for case in sorted(cases)), (), False)

    def _escape(self) -> str | CharacterSet:
        """What the text after a backslash means: a named class or a character."""
        character = self._peek()
        self.position += 1
        if character in self.classes:
            return CharacterSet((), (self.classes[character],), False)
        if digits := {"u": 4, "x": 2}.get(character, 0):
            self.position += digits
            return chr(int(self.text[self.position - digits : self.position], 16))
        return {"t": "\t", "n": "\n", "f": "\f", "r": "\r", "0": "\0", "v": "\v"}.get(character, character)

    def _class(self) -> CharacterSet:
        negated = self._peek() == "^"
        self.position += negated
        ranges: list[tuple[str, str]] = []
        predicates: list[Predicate] = []
        while (character := self._peek()) != "]":
            self.position += 1
            if character == "\\":
                escaped = self._escape()
                if isinstance(escaped, CharacterSet):
                    predicates.extend(escaped.predicates)
                    continue
                character = escaped
            high = character
            if self._peek() == "-" and self.text[self.position + 1] != "]":
                high = self.text[self.position + 1]
                self.position += 2
                high = self._escape() if high == "\\" else high  # type: ignore[assignment]
            ranges.append((character, high))
        self.position += 1
        return CharacterSet(tuple(ranges), tuple(predicates), negated)


class State:
    """A deterministic state: the set of automaton states that the text read so far can be in."""

    __slots__ = ("accepts", "members", "moves")

    def __init__(self, members: frozenset[int], accepts: int) -> None:
        self.members = members
        self.accepts = accepts  # the first rule that matches here, or -1
        self.moves: dict[str, State | None] = {}


class Scanner:
    """Matches several patterns at once, longest first.

    Args:
        patterns: the patterns in order of preference among matches of the same length.
        definitions: names that a pattern may use as `{NAME}`.
        classes: one-letter names that a pattern may use as `\\x`, with what they contain.
    """

    def __init__(
        self, patterns: Iterable[str], definitions: Mapping[str, str], classes: Mapping[str, Predicate]
    ) -> None:
        self._automaton = Automaton()
        compiler = PatternCompiler(self._automaton, definitions, classes)
        begin = self._automaton.state()
        self._rule_of: dict[int, int] = {}
        for number, pattern in enumerate(patterns):
            start = self._automaton.state()
            self._automaton.free[begin].append(start)
            self._rule_of[compiler.compile(pattern, start)] = number
        self._states: dict[frozenset[int], State] = {}
        self._sets_of: dict[str, frozenset[int]] = {}
        self.start = self._state([begin])

    def match(self, text: str, position: int = 0) -> tuple[int, int]:
        """The rule and the end of the longest match at `position`; rule -1 if nothing matches."""
        state: State | None = self.start
        rule, end = -1, position
        try:
            while True:
                character = text[position]
                try:
                    state = state.moves[character]  # type: ignore[union-attr]
                except KeyError:
                    state = self._step(state, character)  # type: ignore[arg-type]
                if state is None:
                    return rule, end
                position += 1
                if state.accepts >= 0:
                    rule, end = state.accepts, position
        except IndexError:  # the end of the text
            return rule, end

    def ends(self, text: str) -> list[int]:
        """All the lengths at which a beginning of `text` matches, shortest first."""
        found = []
        state: State = self.start
        for position in range(len(text) + 1):
            if state.accepts >= 0:
                found.append(position)
            if position == len(text):
                break
            following = self._step(state, text[position])
            if following is None:
                break
            state = following
        return found

    def _step(self, state: State, character: str) -> State | None:
        if character not in state.moves:
            if character not in self._sets_of:
                sets = self._automaton.sets
                self._sets_of[character] = frozenset(i for i, members in enumerate(sets) if character in members)
            member_of = self._sets_of[character]
            moves = (self._automaton.move[member] for member in state.members)
            targets = [move[1] for move in moves if move is not None and move[0] in member_of]
            state.moves[character] = self._state(targets) if targets else None
        return state.moves[character]

    def _state(self, seeds: Sequence[int]) -> State:
        """The deterministic state of `seeds` and all they reach for free."""
        reached = set(seeds)
        pending = list(seeds)
        while pending:
            for target in self._automaton.free[pending.pop()]:
                if target not in reached:
                    reached.add(target)
                    pending.append(target)
        # Only states with a move or an acceptance matter: leaving out the others makes more sets equal.
        move, rule_of = self._automaton.move, self._rule_of
        members = frozenset(member for member in reached if move[member] is not None or member in rule_of)
        if members not in self._states:
            rules = [rule_of[member] for member in members if member in rule_of]
            self._states[members] = State(members, min(rules, default=-1))
        return self._states[members]
