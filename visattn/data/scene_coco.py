"""Scenes of shapes as COCO files, for everything that reads those."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from pycocotools import mask as run_lengths

from visattn.data.scene_plans import kinds
from visattn.data.scenes import Scene, draw_scene


def coco_instances(seed: int, indices: Sequence[int], image_size: int = 128) -> dict[str, Any]:
    """The contents of an `instances_*.json`: images, annotations with boxes and masks (run lengths), categories.

    An image's id is its scene's index; categories count from 1 in the order of `kinds`.

    Source: https://cocodataset.org/#format-data, "Object Detection".
    """
    annotations: list[dict[str, Any]] = []
    for index in indices:
        for thing in draw_scene(seed, index, image_size).objects:
            encoded = run_lengths.encode(np.asfortranarray(thing.mask, dtype=np.uint8))
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": index,
                    "category_id": kinds.index(thing.kind) + 1,
                    "bbox": list(thing.bounding_box),
                    "area": int(thing.mask.sum()),
                    "segmentation": {"size": encoded["size"], "counts": encoded["counts"].decode("ascii")},
                    "iscrowd": 0,
                }
            )
    categories = [{"id": number, "name": kind, "supercategory": "shape"} for number, kind in enumerate(kinds, 1)]
    return {"images": coco_images(indices, image_size), "annotations": annotations, "categories": categories}


def coco_captions(seed: int, indices: Sequence[int], image_size: int = 128) -> dict[str, Any]:
    """The contents of a `captions_*.json`: images and annotations, each a caption.

    Source: https://cocodataset.org/#format-data, "Image Captioning".
    """
    scenes: list[tuple[int, Scene]] = [(index, draw_scene(seed, index, image_size)) for index in indices]
    captions = [(index, sentence) for index, scene in scenes for sentence in scene.captions]
    annotations = [
        {"id": number, "image_id": index, "caption": sentence} for number, (index, sentence) in enumerate(captions, 1)
    ]
    return {"images": coco_images(indices, image_size), "annotations": annotations}


def coco_images(indices: Sequence[int], image_size: int) -> list[dict[str, Any]]:
    return [
        {"id": index, "width": image_size, "height": image_size, "file_name": f"{index:06}.png"} for index in indices
    ]
