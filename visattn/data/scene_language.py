"""What can be said about a scene: captions and questions with answers, in varied words, all true."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from visattn.data.scene_plans import relations

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
        objects: the circle, the square and what else there is.
        relation: of the circle to the square.
        draws: (N,) in [0, 1), at least 40, for the choice of words.
    """
    pick = picker(draws)
    circle, square = objects[:2]
    opposite = relations[relations.index(relation) ^ 1]
    a, b = full(circle, pick), full(square, pick)
    first, second = pick(_wordings[relation]), pick(_wordings[opposite])
    start = pick(("", "a picture of ", "an image showing ", "there is ", "we see "))
    side = pick(("{b} with {a} {side}", "{b} that has {a} {side}"))
    colors = f"both {circle.color}" if circle.color == square.color else f"one {circle.color}, one {square.color}"
    everything = join([full(thing, pick) for thing in objects])
    number = _numbers[len(objects)]
    return (
        f"{start}{a} {first} {b}",
        pick(("{b} is {second} {a}", "there is {b} {second} {a}", "{b} lies {second} {a}")).format(
            a=brief(circle, pick), b=brief(square, pick), second=second
        ),
        side.format(a=brief(circle, pick), b=full(square, pick), side=pick(_sides[relation])),
        pick(
            (
                "the circle is {first} the square",
                "a circle and a square, {colors}, the circle {first} the square",
                "the square is {second} the circle",
            )
        ).format(first=first, second=second, colors=colors),
        pick(
            ("{everything}", "{number} shapes: {everything}", "this picture has {number} shapes, {everything}")
        ).format(everything=everything, number=number),
    )


def ask(objects: Sequence[Described], relation: str, draws: np.ndarray) -> tuple[tuple[str, str], ...]:
    """Questions about a scene, each with its answer. Arguments as for `caption`; two draws are enough."""
    circle, square = objects[:2]
    opposite = relations[relations.index(relation) ^ 1]
    asked = relation if draws[0] < 0.5 else opposite
    kind = "triangle" if draws[1] < 0.5 else "cross"
    return (
        ("what color is the circle?", circle.color),
        ("what color is the square?", square.color),
        ("where is the circle, seen from the square?", relation),
        (f"is the circle {asked} the square?", yes(asked == relation)),
        ("do circle and square have the same color?", yes(circle.color == square.color)),
        ("is the circle large or small?", circle.size),
        ("is the square plain, striped or checked?", square.texture),
        ("how many shapes are there?", str(len(objects))),
        (f"is there a {kind}?", yes(any(thing.kind == kind for thing in objects))),
        (f"how many shapes are {circle.color}?", str(sum(thing.color == circle.color for thing in objects))),
    )


def picker(draws: np.ndarray) -> Pick:
    """Chooses words, one draw for each choice."""
    rest = iter(draws.tolist())
    return lambda options: options[int(next(rest) * len(options))]


def full(thing: Described, pick: Pick) -> str:
    """With all its properties: "a small striped red circle"."""
    return with_article(f"{pick(_sizes[thing.size])} {pick(_textures[thing.texture])} {thing.color} {thing.kind}")


def brief(thing: Described, pick: Pick) -> str:
    """With some of its properties: "a red circle"."""
    size, texture = pick(_sizes[thing.size]), pick(_textures[thing.texture])
    words = pick((thing.color, f"{size} {thing.color}", f"{texture} {thing.color}", f"{size} {texture}"))
    return with_article(f"{words} {thing.kind}")


def with_article(words: str) -> str:
    words = " ".join(words.split())
    return f"an {words}" if words[0] in "aeiou" else f"a {words}"


def join(parts: Sequence[str]) -> str:
    return f"{', '.join(parts[:-1])} and {parts[-1]}"


def yes(true: bool) -> str:
    return "yes" if true else "no"
