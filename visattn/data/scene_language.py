"""What can be said about a scene: captions and questions with answers, in varied words, all true."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from visattn.data.scene_plans import kinds, relations

_sizes = {"small": ("small", "little", "tiny"), "large": ("large", "big", "huge")}
_textures = {"plain": ("",), "striped": ("striped", "stripy"), "checked": ("checked", "checkered")}
_wordings = {
    "left of": ("left of", "to the left of", "on the left side of"),
    "right of": ("right of", "to the right of", "on the right side of"),
    "above": ("above", "over", "higher than"),
    "below": ("below", "under", "lower than"),
}
_sides = {
    "left of": ("to its left", "on its left side"),
    "right of": ("to its right", "on its right side"),
    "above": ("above it", "over it"),
    "below": ("below it", "under it"),
}
_numbers = ("no", "one", "two", "three", "four")

Pick = Callable[[Sequence[str]], str]


class Described(NamedTuple):
    """What the language knows of an object: words of `kinds`, `colors`, `textures`, and "small" or "large"."""

    kind: str
    color: str
    texture: str
    size: str


def caption(objects: Sequence[Described], relation: str, draws: np.ndarray) -> tuple[str, ...]:
    """Five true sentences about a scene, from the full to the plain.

    Args:
        objects: the pair, whose colours no other object has, and what else there is.
        relation: of the first object to the second.
        draws: (N,) in [0, 1), at least 40, for the choice of words.
    """
    pick = picker(draws)
    first, second = objects[:2]
    opposite = relations[relations.index(relation) ^ 1]
    lies, faces = pick(_wordings[relation]), pick(_wordings[opposite])
    start = pick(("", "a picture of ", "an image showing ", "there is ", "we see "))
    alike = "two shapes of one kind" if first.kind == second.kind else f"a {first.kind} and a {second.kind}"
    everything = join([full(thing, pick) for thing in objects])
    number = _numbers[len(objects)]
    return (
        f"{start}{full(first, pick)} {lies} {full(second, pick)}",
        pick(("{b} is {faces} {a}", "there is {b} {faces} {a}", "{b} lies {faces} {a}")).format(
            a=brief(first, pick), b=brief(second, pick), faces=faces
        ),
        pick(("{b} with {a} {side}", "{b} that has {a} {side}")).format(
            a=brief(first, pick), b=full(second, pick), side=pick(_sides[relation])
        ),
        pick(
            (
                "the {a} shape is {lies} the {b} one",
                "{alike}, the {a} one {lies} the {b} one",
                "the {b} shape is {faces} the {a} one",
            )
        ).format(a=first.color, b=second.color, lies=lies, faces=faces, alike=alike),
        pick(
            ("{everything}", "{number} shapes: {everything}", "this picture has {number} shapes, {everything}")
        ).format(everything=everything, number=number),
    )


def ask(objects: Sequence[Described], relation: str, draws: np.ndarray) -> tuple[tuple[str, str], ...]:
    """Questions about a scene, each with its answer. Arguments as for `caption`; two draws are enough."""
    first, second = objects[:2]
    opposite = relations[relations.index(relation) ^ 1]
    asked = relation if draws[0] < 0.5 else opposite
    kind = kinds[int(draws[1] * len(kinds))]
    count = sum(thing.kind == kind for thing in objects)
    return (
        (f"what is {first.color}?", first.kind),
        (f"what is {second.color}?", second.kind),
        (f"where is the {first.color} shape, seen from the {second.color} one?", relation),
        (f"is the {first.color} shape {asked} the {second.color} one?", yes(asked == relation)),
        (f"is the {first.color} shape large or small?", first.size),
        (f"is the {second.color} shape plain, striped or checked?", second.texture),
        ("how many shapes are there?", str(len(objects))),
        (f"is there a {kind}?", yes(count > 0)),
        (f"how many {kind}{'es' if kind.endswith('s') else 's'} are there?", str(count)),
    )


def picker(draws: np.ndarray) -> Pick:
    """Chooses words, one draw for each choice."""
    rest = iter(draws.tolist())
    return lambda options: options[int(next(rest) * len(options))]


def full(thing: Described, pick: Pick) -> str:
    """With all its properties: "a small striped red circle"."""
    return with_article(f"{pick(_sizes[thing.size])} {pick(_textures[thing.texture])} {thing.color} {thing.kind}")


def brief(thing: Described, pick: Pick) -> str:
    """With its colour and some of its other properties: "a red circle"."""
    size, texture = pick(_sizes[thing.size]), pick(_textures[thing.texture])
    words = pick((thing.color, f"{size} {thing.color}", f"{texture} {thing.color}", f"{size} {texture} {thing.color}"))
    return with_article(f"{words} {pick((thing.kind, thing.kind, 'shape'))}")


def with_article(words: str) -> str:
    words = " ".join(words.split())
    return f"an {words}" if words[0] in "aeiou" else f"a {words}"


def join(parts: Sequence[str]) -> str:
    return f"{', '.join(parts[:-1])} and {parts[-1]}"


def yes(true: bool) -> str:
    return "yes" if true else "no"
