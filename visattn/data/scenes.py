"""Scenes of coloured shapes, drawn from a seed and an index: with exact boxes, masks, captions and questions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from visattn.data.scene_language import Described, ask, caption
from visattn.data.scene_painting import paint
from visattn.data.scene_plans import ScenePlan, colors, kinds, plan_scenes, relations, scene_classes, slots, textures

__all__ = ["Scene", "SceneObject", "draw_scene", "draw_scenes", "scene_classes"]


class SceneObject(NamedTuple):
    """One shape.

    Attributes:
        kind, color, texture: words of `kinds`, `colors` and `textures`.
        size: "small" or "large".
        bounding_box: (left, top, width, height) in pixels of its visible part, as in COCO.
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
        objects: the pair of the label, then the others. Those two lie in front; all can be seen.
        relation: of the first object to the second, a word of `relations`.
        label: index into `scene_classes`.
        captions: five sentences of varied wording, the first with kind, colour, size, texture and relation.
        questions: pairs of a question and its answer.
    """

    image: np.ndarray
    objects: tuple[SceneObject, ...]
    relation: str
    label: int
    captions: tuple[str, ...]
    questions: tuple[tuple[str, str], ...]


def draw_scenes(seed: int, indices: Sequence[int], image_size: int = 32) -> tuple[np.ndarray, np.ndarray]:
    """Many scenes at once: images (N, 3, image_size, image_size) uint8 and labels (N,)."""
    plan = plan_scenes(seed, indices)
    return paint(plan, image_size)[0], plan.label


def draw_scene(seed: int, index: int, image_size: int = 128) -> Scene:
    """One scene with everything that is known about it; its picture is that of `draw_scenes`."""
    plan = plan_scenes(seed, [index])
    images, owner = paint(plan, image_size)
    objects = tuple(outline(plan, slot, owner[0] == slot) for slot in range(slots) if plan.present[0, slot])
    described = [Described(thing.kind, thing.color, thing.texture, thing.size) for thing in objects]
    relation, words = relations[plan.relation[0]], plan.words[0]
    return Scene(
        np.ascontiguousarray(images[0].transpose(1, 2, 0)),
        objects,
        relation,
        int(plan.label[0]),
        caption(described, relation, words[2:]),
        ask(described, relation, words[:2]),
    )


def outline(plan: ScenePlan, slot: int, mask: np.ndarray) -> SceneObject:
    """The object of one slot, with the box around its visible pixels."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    left, top = int(columns[0]), int(rows[0])
    return SceneObject(
        kinds[plan.kind[0, slot]],
        tuple(colors)[plan.color[0, slot]],
        textures[plan.texture[0, slot]],
        "large" if plan.large[0, slot] else "small",
        (left, top, int(columns[-1]) - left + 1, int(rows[-1]) - top + 1),
        mask,
    )
