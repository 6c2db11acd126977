"""What is to be seen in a scene of shapes, chosen from a seed and an index."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from visattn.data.draws import uniform_draws

kinds = ("circle", "square", "triangle", "cross")
reaches = np.array([1.0, 1.22, 1.13, 1.07])  # of each kind, from its centre to its farthest pixel, in radii
colors = {
    "red": (214, 48, 49),
    "green": (46, 160, 67),
    "blue": (48, 98, 214),
    "yellow": (244, 208, 63),
    "purple": (142, 68, 173),
    "orange": (235, 125, 40),
    "white": (242, 242, 242),
    "black": (25, 25, 25),
}
textures = ("plain", "striped", "checked")
relations = ("left of", "right of", "above", "below")
slots = 4  # objects at most: the first two are the pair that the label is about
pairs = (("red", "blue"), ("green", "yellow"))  # of the label; no other object of a scene has one of these colours

scene_classes = tuple(f"{first} {relation} {second}" for first, second in pairs for relation in relations)


class ScenePlan(NamedTuple):
    """What is drawn where, for N scenes with 4 slots of objects. Lengths are fractions of the side of the picture."""

    present: np.ndarray  # (N, 4) bool
    kind: np.ndarray  # (N, 4) into kinds
    color: np.ndarray  # (N, 4) into colors
    texture: np.ndarray  # (N, 4) into textures
    large: np.ndarray  # (N, 4) bool
    center: np.ndarray  # (N, 4, 2) x, y
    radius: np.ndarray  # (N, 4)
    angle: np.ndarray  # (N, 4) radians
    background: np.ndarray  # (N, 2, 3) colours at two opposite sides
    slope: np.ndarray  # (N,) radians, the direction between them
    relation: np.ndarray  # (N,) into relations
    label: np.ndarray  # (N,) into scene_classes
    grain: np.ndarray  # (N, 2) in [0, 1), which part of the grain lies over the picture
    words: np.ndarray  # (N, 48) in [0, 1), for the wording of what is said about the scene

    def part(self, scenes: slice) -> ScenePlan:
        return ScenePlan(*(values[scenes] for values in self))


def plan_scenes(seed: int, indices: Sequence[int]) -> ScenePlan:
    """Chooses everything from (seed, index) alone."""
    draws = uniform_draws((seed,), indices, 95)  # (N, 95) in [0, 1)
    number = len(draws)
    relation, pair = (draws[:, 0] * 4).astype(int), (draws[:, 1] * 2).astype(int)

    kind = (draws[:, 2:6] * len(kinds)).astype(int)
    names = list(colors)
    others = [index for index, name in enumerate(names) if not any(name in pair for pair in pairs)]
    color = np.array(others)[(draws[:, 6:10] * len(others)).astype(int)]
    color[:, :2] = np.array([[names.index(name) for name in pair] for pair in pairs])[pair]
    texture = (draws[:, 10:14] * 4).astype(int)
    texture = np.where(texture >= len(textures), 0, texture)  # half of them are plain
    large = draws[:, 14:18] < 0.5
    # What lies behind the pair is a little smaller, yet every large thing is larger than every small one.
    radius = np.where(large, [0.2, 0.2, 0.17, 0.17], [0.13, 0.13, 0.09, 0.09]) + 0.03 * draws[:, 18:22]

    # The pair lies around a middle point, apart along one axis and less so along the other.
    apart = 0.22 + 0.06 * draws[:, 22]
    aside = (2 * draws[:, 23] - 1) * 0.12
    offset = np.zeros((number, 2))
    horizontal, sign = relation < 2, np.where(relation % 2 == 0, -1.0, 1.0)
    offset[:, 0] = np.where(horizontal, sign * apart, aside)
    offset[:, 1] = np.where(horizontal, aside, sign * apart)
    middle = 0.5 + (2 * draws[:, 24:26] - 1) * 0.14
    center = np.stack([middle + offset, middle - offset, draws[:, 26:28], draws[:, 28:30]], 1)  # (N, 4, 2)
    center = np.clip(center, 0.1, 0.9)

    wanted = np.stack([np.ones(number), np.ones(number), draws[:, 93] < 0.8, draws[:, 94] < 0.5], 1).astype(bool)
    level = 70 + 115 * draws[:, 34:36, None]
    tint = 70 * (draws[:, 36:42].reshape(number, 2, 3) - 0.5)
    return ScenePlan(
        seen(wanted, kind, center, radius),
        kind,
        color,
        texture,
        large,
        center,
        radius,
        (draws[:, 30:34] - 0.5) * np.array([1.0, 0.7, 6.28, 1.2]),
        level + tint,  # greyish, so that shapes of every colour stand out
        draws[:, 42] * 2 * np.pi,
        relation,
        relation + len(relations) * pair,
        draws[:, 43:45],
        draws[:, 45:93],
    )


def seen(wanted: np.ndarray, kind: np.ndarray, center: np.ndarray, radius: np.ndarray) -> np.ndarray:
    """Leaves out of what is wanted (N, 4) the third and fourth object where others would hide their centres."""
    present, reach = wanted.copy(), reaches[kind] * radius  # (N, 4)
    for slot, in_front in ((3, (0, 1)), (2, (0, 1, 3))):
        for other in in_front:
            distance = np.linalg.norm(center[:, slot] - center[:, other], axis=1)
            hidden = present[:, other] & (distance < reach[:, other] + 0.3 * radius[:, slot])
            present[:, slot] &= ~hidden
    return present
