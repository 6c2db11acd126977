"""Made-up ground truth and results, pleasant and nasty, and what pycocotools itself says of them."""

import contextlib
import copy
import io

import numpy as np
from pycocotools import mask as run_lengths
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

category_ids = (3, 7, 11, 20, 90)  # with gaps; 90 never occurs


def official(ground_truth, results, kind):
    """The twelve numbers and the precision of pycocotools, used as its documentation says; masks without boxes."""
    entries = copy.deepcopy(results)
    if kind == "segm":
        for entry in entries:
            entry.pop("bbox", None)  # else pycocotools takes the box's area for the mask's
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = copy.deepcopy(ground_truth)
        truth.createIndex()
        evaluation = COCOeval(truth, truth.loadRes(entries), kind)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation.stats, evaluation.eval["precision"][:, :, :, 0, 2]


def made_up(seed, images=23, side=200, most=6, crowds=0.15, scores=7):
    """Ground truth and results of random boxes and masks; few different scores, so that many are equal.

    Every third image is without objects; objects are found nearly right, wrong, twice or not at all.
    """
    generator = np.random.default_rng(seed)
    truth = {
        "images": [
            {"id": 5 * n + 2, "height": side, "width": side + 30, "file_name": f"{n}.png"} for n in range(images)
        ],
        "categories": [{"id": number, "name": f"kind {number}"} for number in reversed(category_ids)],
        "annotations": [],
    }
    results = []
    for image in truth["images"]:
        for _ in range(0 if image["id"] % 3 == 0 else generator.integers(0, most + 1)):
            box = random_box(generator, image)
            number = int(generator.choice(category_ids[:-1]))
            crowd = int(generator.random() < crowds)
            shape = rectangle(box, image) if crowd else polygon(box)
            truth["annotations"].append(
                {
                    "id": 100 + 3 * len(truth["annotations"]),
                    "image_id": image["id"],
                    "category_id": number,
                    "bbox": box,
                    "area": box[2] * box[3] * generator.choice([1, 0.8]),
                    "iscrowd": crowd,
                    "segmentation": shape,
                }
            )
            for _ in range(generator.integers(0, 4)):
                moved = [max(value + generator.normal() * box[2] * 0.1, 0.0) for value in box]
                guess = number if generator.random() < 0.8 else int(generator.choice(category_ids))
                results.append(found(generator, image, guess, moved, scores))
        for _ in range(generator.integers(0, 4)):
            guess = int(generator.choice(category_ids))
            results.append(found(generator, image, guess, random_box(generator, image), scores))
    order = generator.permutation(len(results))
    return truth, [results[place] for place in order]


def random_box(generator, image):
    width, height = generator.choice([8, 30, 32, 60, 96, 150]) * generator.uniform(0.7, 1.3, 2)
    width, height = min(width, image["width"] - 1), min(height, image["height"] - 1)
    left, top = generator.uniform(0, image["width"] - width), generator.uniform(0, image["height"] - height)
    return [float(value) for value in (left, top, width, height)]


def polygon(box):
    left, top, width, height = box
    return [[left, top, left + width, top, left + width, top + height, left, top + height]]


def rectangle(box, image):
    """Uncompressed run lengths, as COCO has of crowds."""
    mask = np.zeros((image["height"], image["width"]), dtype=np.uint8)
    left, top, right, bottom = (round(value) for value in (box[0], box[1], box[0] + box[2], box[1] + box[3]))
    mask[top:bottom, left:right] = 1
    flat = mask.ravel(order="F")
    ends = [*np.flatnonzero(np.diff(flat)) + 1, len(flat)]
    counts = np.diff([0, *ends]).tolist()
    return {"size": [image["height"], image["width"]], "counts": ([0] if flat[0] else []) + counts}


def found(generator, image, category, box, scores):
    (shape,) = run_lengths.frPyObjects(polygon(box), image["height"], image["width"])
    return {
        "image_id": image["id"],
        "category_id": category,
        "bbox": box,
        "score": float(generator.integers(0, scores) / scores),
        "segmentation": {"size": list(shape["size"]), "counts": shape["counts"].decode("ascii")},
    }
