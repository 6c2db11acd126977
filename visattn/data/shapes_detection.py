"""The embedded data set of detection: scenes of shapes with their boxes and masks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from pycocotools import mask as run_lengths

from visattn.data.detection import DetectionData, DetectionSplit
from visattn.data.detection_files import Instances
from visattn.data.scene_painting import paint
from visattn.data.scene_plans import kinds, plan_scenes, slots

_step = 256  # scenes that are drawn together


class ShapesDetectionDataModule(DetectionData):
    """Scenes whose circles, squares, triangles and crosses are to be found, with exact masks; no download.

    Args:
        image_size: side in pixels.
        train_scenes, validation_scenes, test_scenes: how many, no scene in two of them.
        masks: give masks too.
        mean, std: of the colours, for the model.
        options: keywords of `DetectionData`.
    """

    def __init__(
        self,
        image_size: int = 64,
        *,
        train_scenes: int = 4096,
        validation_scenes: int = 512,
        test_scenes: int = 512,
        masks: bool = True,
        mean: Sequence[float] = (0.5, 0.5, 0.5),
        std: Sequence[float] = (0.25, 0.25, 0.25),
        **options: Any,
    ) -> None:
        super().__init__(image_size, image_size, masks=masks, mean=mean, std=std, **options)
        self.scenes = {"test": test_scenes, "validation": validation_scenes, "train": train_scenes}
        self.classes, self.category_ids = kinds, tuple(range(1, len(kinds) + 1))

    def read_splits(self) -> dict[str, DetectionSplit]:
        splits, first = {}, 0
        for split, number in self.scenes.items():
            splits[split] = draw_split(self.seed, range(first, first + number), self.image_size, self.has_masks)
            first += number
        return splits


def draw_split(seed: int, scenes: range, image_size: int, masks: bool) -> DetectionSplit:
    """Some scenes and their objects, numbered and described as `coco_instances` does."""
    pictures = torch.empty(len(scenes), 3, image_size, image_size, dtype=torch.uint8)
    number, labels, boxes, areas, encoded = [], [], [], [], []
    for start in range(0, len(scenes), _step):
        plan = plan_scenes(seed, scenes[start : start + _step])
        images, owner = paint(plan, image_size)
        pictures[start : start + _step] = torch.from_numpy(images)
        visible = (owner[:, None] == np.arange(slots)[:, None, None])[plan.present]  # (objects, S, S), scene by scene
        number.append(plan.present.sum(1))
        labels.append(plan.kind[plan.present])
        boxes.append(boxes_around(visible))
        areas.append(visible.sum((1, 2)))
        if masks:
            pixels = np.asfortranarray(visible.transpose(1, 2, 0), dtype=np.uint8)
            encoded += [mask["counts"] for mask in run_lengths.encode(pixels)]
    total = int(np.concatenate(number).sum())
    instances = Instances(
        [],
        np.array(scenes, dtype=np.int64),
        np.full((len(scenes), 2), image_size, dtype=np.int64),
        np.concatenate([[0], np.cumsum(np.concatenate(number))]),
        np.arange(1, total + 1),
        np.concatenate(boxes).astype(np.float64),
        np.concatenate(labels).astype(np.int64),
        np.concatenate(areas).astype(np.float64),
        np.zeros(total, dtype=bool),
        encoded if masks else None,
    )
    return DetectionSplit(list(pictures), instances)


def boxes_around(masks: np.ndarray) -> np.ndarray:
    """Masks (n, height, width), none of them empty, to the boxes around them: left, top, width and height (n, 4)."""
    columns, rows = np.any(masks, axis=1), np.any(masks, axis=2)  # (n, width), (n, height)
    left, top = columns.argmax(1), rows.argmax(1)
    right, bottom = columns.shape[1] - columns[:, ::-1].argmax(1), rows.shape[1] - rows[:, ::-1].argmax(1)
    return np.stack([left, top, right - left, bottom - top], axis=1)
