"""Scenes of coloured shapes, drawn from a seed and an index: with exact boxes, masks, captions and questions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

kinds = ("circle", "square", "triangle", "cross")
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
_palette = np.array(list(colors.values()), dtype=np.float32)  # (colors, 3)
_num_draws = 64
_slots = 4  # objects at most: the first two are the pair that the label is about


class SceneObject(NamedTuple):
    """One shape.

    Attributes:
        kind, color, texture: words of `kinds`, `colors` and `textures`.
        size: "small" or "large".
        bounding_box: (left, top, width, height) of its visible pixels, as in COCO; all 0 if it is hidden.
        mask: (height, width) bool, its visible pixels.
    """

    kind: str
    color: str
    texture: str
    size: str
    bounding_box: tuple[int, int, int, int]
    mask: np.ndarray

    @property
    def name(self) -> str:
        words = (self.size, "" if self.texture == "plain" else self.texture, self.color, self.kind)
        return " ".join(word for word in words if word)


class Scene(NamedTuple):
    """A picture and all that is true of it.

    Attributes:
        image: (height, width, 3) uint8.
        objects: from back to front; the circle and the square of the label are the first two.
        relation: of the circle to the square, a word of `relations`.
        label: index into `scene_classes`.
        captions: sentences of varied wording.
        questions: pairs of a question and its answer.
    """

    image: np.ndarray
    objects: tuple[SceneObject, ...]
    relation: str
    label: int
    captions: tuple[str, ...]
    questions: tuple[tuple[str, str], ...]


scene_classes = tuple(f"circle {relation} square" for relation in relations) + tuple(
    f"circle {relation} square, same color" for relation in relations
)


def draw_scenes(seed: int, indices: Sequence[int], image_size: int = 32) -> tuple[np.ndarray, np.ndarray]:
    """Many scenes at once: images (N, 3, image_size, image_size) uint8 and labels (N,)."""
    plan = plan_scenes(seed, indices)
    images, _ = paint(plan, image_size)
    return np.ascontiguousarray(images.transpose(0, 3, 1, 2)), plan.label


def draw_scene(seed: int, index: int, image_size: int = 128) -> Scene:
    """One scene with everything that is known about it; its picture is that of `draw_scenes`."""
    plan = plan_scenes(seed, [index])
    images, owner = paint(plan, image_size)
    objects = tuple(describe(plan, slot, owner[0] == slot) for slot in range(_slots) if plan.present[0, slot])
    relation = relations[plan.relation[0]]
    captions, questions = caption(objects, relation), ask(objects, relation)
    return Scene(images[0], objects, relation, int(plan.label[0]), captions, questions)


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
    noise: np.ndarray  # (N,) seeds of the grain


def plan_scenes(seed: int, indices: Sequence[int]) -> ScenePlan:
    """Chooses everything from (seed, index) alone."""
    draws = np.stack(
        [
            np.random.Generator(np.random.Philox(key=seed, counter=[index, 0, 0, 0])).random(_num_draws)
            for index in indices
        ]
    )  # (N, 64) in [0, 1)
    number = len(draws)
    relation, same_color = (draws[:, 0] * 4).astype(int), draws[:, 1] < 0.5

    present = np.stack([np.ones(number), np.ones(number), draws[:, 2] < 0.6, draws[:, 3] < 0.3], 1).astype(bool)
    kind = np.stack([np.zeros(number), np.ones(number), 2 + (draws[:, 4] * 2), 2 + (draws[:, 5] * 2)], 1).astype(int)
    color = (draws[:, 6:10] * len(colors)).astype(int)
    other = (color[:, 0] + 1 + (draws[:, 7] * (len(colors) - 1)).astype(int)) % len(colors)
    color[:, 1] = np.where(same_color, color[:, 0], other)
    texture = (draws[:, 10:14] * 4).astype(int)
    texture = np.where(texture >= len(textures), 0, texture)  # half of them are plain
    large = draws[:, 14:18] < 0.5
    radius = np.where(large, 0.2, 0.13) + 0.03 * draws[:, 18:22]
    radius[:, 2:] *= 0.7

    # The pair lies around a middle point, apart along one axis and less so along the other.
    apart = 0.22 + 0.06 * draws[:, 22]
    aside = (2 * draws[:, 23] - 1) * 0.12
    offset = np.zeros((number, 2))
    horizontal, sign = relation < 2, np.where(relation % 2 == 0, -1.0, 1.0)
    offset[:, 0] = np.where(horizontal, sign * apart, aside)
    offset[:, 1] = np.where(horizontal, aside, sign * apart)
    middle = 0.5 + (2 * draws[:, 24:26] - 1) * 0.14
    center = np.stack([middle + offset, middle - offset, draws[:, 26:28], draws[:, 28:30]], 1)  # (N, 4, 2)

    background = 40 + 175 * draws[:, 34:40].reshape(number, 2, 3)
    return ScenePlan(
        present,
        kind,
        color,
        texture,
        large,
        np.clip(center, 0.1, 0.9),
        radius,
        (draws[:, 30:34] - 0.5) * np.array([1.0, 0.7, 6.28, 1.2]),
        background,
        draws[:, 40] * 2 * np.pi,
        relation,
        relation + 4 * same_color,
        (draws[:, 41] * 2**32).astype(np.uint64),
    )


def paint(plan: ScenePlan, image_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Pictures (N, S, S, 3) uint8 and the slot that each pixel belongs to (N, S, S), -1 for the background."""
    number = len(plan.label)
    side = (np.arange(image_size, dtype=np.float32) + 0.5) / image_size
    x, y = side[None, None, :], side[None, :, None]
    slope = plan.slope.astype(np.float32)[:, None, None]
    ramp = 0.5 + 0.7 * (np.cos(slope) * (x - 0.5) + np.sin(slope) * (y - 0.5))  # (N, S, S)
    first, second = plan.background.astype(np.float32)[:, 0], plan.background.astype(np.float32)[:, 1]
    pixels = first[:, None, None] + ramp[..., None] * (second - first)[:, None, None]  # (N, S, S, 3)
    owner = np.full((number, image_size, image_size), -1, dtype=np.int8)
    for slot in (2, 3, 0, 1):  # the pair in front
        where = np.flatnonzero(plan.present[:, slot])
        if not len(where):
            continue
        mask, shade = shape(plan, where, slot, x, y)
        paint_color = _palette[plan.color[where, slot]][:, None, None] * shade[..., None]  # (n, S, S, 3)
        pixels[where] = np.where(mask[..., None], paint_color, pixels[where])
        owner[where] = np.where(mask, slot, owner[where])
    grain = np.random.Generator(np.random.Philox(key=0)).standard_normal((2 * image_size, 2 * image_size), np.float32)
    top, left = plan.noise % image_size, plan.noise // 65_536 % image_size
    rows = top.astype(int)[:, None] + np.arange(image_size)
    columns = left.astype(int)[:, None] + np.arange(image_size)
    pixels += 10 * grain[rows[:, :, None], columns[:, None, :]][..., None]
    return pixels.clip(0, 255).astype(np.uint8), owner


def shape(plan: ScenePlan, where: np.ndarray, slot: int, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The pixels within one slot's shape (n, S, S) and the brightness of its texture there."""
    values = (
        plan.center[where, slot, 0],
        plan.center[where, slot, 1],
        plan.radius[where, slot],
        plan.angle[where, slot],
    )
    center_x, center_y, radius, angle = (value.astype(np.float32)[:, None, None] for value in values)
    across, down = (x - center_x) / radius, (y - center_y) / radius
    u = np.cos(angle) * across + np.sin(angle) * down  # (n, S, S), in radii, along the shape's own axes
    v = np.cos(angle) * down - np.sin(angle) * across
    kind = plan.kind[where, slot][:, None, None]
    largest = np.maximum(abs(u), abs(v))
    mask = np.select(
        [kind == 0, kind == 1, kind == 2],
        [
            u * u + v * v < 1,
            largest < 0.86,
            (v < 0.6) & (1.732 * abs(u) < v + 1.05),
        ],
        (largest < 1) & (np.minimum(abs(u), abs(v)) < 0.36),
    )
    texture = plan.texture[where, slot][:, None, None]
    dark = np.select([texture == 1, texture == 2], [np.sin(9 * u) > 0, np.sin(7 * u) * np.sin(7 * v) > 0], False)
    return mask, np.where(dark, np.float32(0.55), np.float32(1.0))


def describe(plan: ScenePlan, slot: int, mask: np.ndarray) -> SceneObject:
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    box = (0, 0, 0, 0)
    if len(rows):
        left, top = int(columns[0]), int(rows[0])
        box = (left, top, int(columns[-1]) - left + 1, int(rows[-1]) - top + 1)
    return SceneObject(
        kinds[plan.kind[0, slot]],
        tuple(colors)[plan.color[0, slot]],
        textures[plan.texture[0, slot]],
        "large" if plan.large[0, slot] else "small",
        box,
        mask,
    )


def caption(objects: Sequence[SceneObject], relation: str) -> tuple[str, ...]:
    """Several true sentences, from the full to the plain."""
    circle, square = objects[:2]
    opposite = relations[relations.index(relation) ^ 1]
    rest = " and ".join(with_article(thing.name) for thing in objects[2:])
    return (
        f"{with_article(circle.name)} {relation} {with_article(square.name)}",
        f"there is {with_article(square.color)} square {opposite} {with_article(circle.color)} circle",
        f"the {circle.kind} is {relation} the {square.kind}",
        f"a picture of {with_article(square.name)} with {with_article(circle.color)} circle {side_of(relation)}",
        f"{with_article(circle.name)} and {with_article(square.name)}" + (f" together with {rest}" if rest else ""),
    )


def with_article(words: str) -> str:
    return f"an {words}" if words[0] in "aeiou" else f"a {words}"


def side_of(relation: str) -> str:
    return {"left of": "to its left", "right of": "to its right", "above": "above it", "below": "below it"}[relation]


def ask(objects: Sequence[SceneObject], relation: str) -> tuple[tuple[str, str], ...]:
    """Questions about the scene, each with its answer."""
    circle, square = objects[:2]
    same = "yes" if circle.color == square.color else "no"
    return (
        ("what color is the circle?", circle.color),
        ("what color is the square?", square.color),
        ("where is the circle, seen from the square?", relation),
        ("do circle and square have the same color?", same),
        ("how many shapes are there?", str(len(objects))),
        ("is there a triangle?", "yes" if any(thing.kind == "triangle" for thing in objects) else "no"),
    )
