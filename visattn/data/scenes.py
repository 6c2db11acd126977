"""Scenes of coloured shapes, drawn from a seed and an index: with exact boxes, masks, captions and questions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from visattn.data.scene_language import Described, ask, caption
from visattn.data.scene_painting import paint
from visattn.data.scene_plans import ScenePlan, colors, kinds, plan_scenes, relations, scene_classes, slots, textures

__all__ = ["Scene", "SceneObject", "draw_scene", "draw_scenes", "scene_classes", "tell_scenes"]

Captions = tuple[str, ...]
Questions = tuple[tuple[str, str], ...]


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
    captions: Captions
    questions: Questions


def draw_scenes(seed: int, indices: Sequence[int], image_size: int = 32) -> tuple[np.ndarray, np.ndarray]:
    """Many scenes at once: images (N, 3, image_size, image_size) uint8 and labels (N,)."""
    plan = plan_scenes(seed, indices)
    return paint(plan, image_size)[0], plan.label


def draw_scene(seed: int, index: int, image_size: int = 128) -> Scene:
    """One scene with everything that is known about it; its picture is that of `draw_scenes`."""
    plan = plan_scenes(seed, [index])
    images, owner = paint(plan, image_size)
    objects = tuple(outline(plan, slot, owner[0] == slot) for slot in range(slots) if plan.present[0, slot])
    return Scene(
        np.ascontiguousarray(images[0].transpose(1, 2, 0)),
        objects,
        relations[plan.relation[0]],
        int(plan.label[0]),
        *tell(plan, 0),
    )


def tell_scenes(seed: int, indices: Sequence[int]) -> list[tuple[Captions, Questions]]:
    """What is said about many scenes, without drawing them: captions and questions as in `draw_scene`."""
    plan = plan_scenes(seed, indices)
    return [tell(plan, position) for position in range(len(plan.label))]


def tell(plan: ScenePlan, position: int) -> tuple[Captions, Questions]:
    """Captions and questions of one scene of a plan."""
    things = [describe(plan, position, slot) for slot in range(slots) if plan.present[position, slot]]
    relation, words = relations[plan.relation[position]], plan.words[position]
    return caption(things, relation, words[2:]), ask(things, relation, words[:2])


def describe(plan: ScenePlan, position: int, slot: int) -> Described:
    return Described(
        kinds[plan.kind[position, slot]],
        tuple(colors)[plan.color[position, slot]],
        textures[plan.texture[position, slot]],
        "large" if plan.large[position, slot] else "small",
    )


def outline(plan: ScenePlan, slot: int, mask: np.ndarray) -> SceneObject:
    """The object of one slot, with the box around its visible pixels."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    left, top = int(columns[0]), int(rows[0])
    box = (left, top, int(columns[-1]) - left + 1, int(rows[-1]) - top + 1)
    return SceneObject(*describe(plan, 0, slot), box, mask)
