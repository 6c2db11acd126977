"""The official COCO scores of boxes and masks, by pycocotools or by its faster twin."""

from __future__ import annotations

import contextlib
import gc
import io
from collections.abc import Iterator, Sequence
from os import PathLike
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
from pycocotools import mask as run_lengths
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from visattn.evaluation.detection_files import Truth, check_instances, check_results, read_json

if TYPE_CHECKING:
    from torch import Tensor

score_names = (
    *("AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large"),
    *("AR_1", "AR_10", "AR_100", "AR_small", "AR_medium", "AR_large"),
)
iou_thresholds = np.linspace(0.5, 0.95, 10)
recall_thresholds = np.linspace(0.0, 1.0, 101)
_kinds = ("bbox", "segm")
_backends = ("pycocotools", "faster")


class ClassScores(NamedTuple):
    """How well the objects of one class are found.

    Attributes:
        category_id: of the COCO file.
        name: of the class.
        objects: to be found, crowds left out.
        AP: mean over the IoU thresholds from 0.5 to 0.95; -1 where there is no object to find.
        AP50: at an IoU of 0.5.
    """

    category_id: int
    name: str
    objects: int
    AP: float
    AP50: float


class KindScores(NamedTuple):
    """The twelve numbers of the COCO evaluation in [0, 1], and what they are means of.

    A number is -1 where there is nothing to find, such as small objects in a set without any.

    Attributes:
        AP: average precision, the mean over classes, recalls and IoU thresholds from 0.5 to 0.95.
        AP50, AP75: at one IoU threshold.
        AP_small, AP_medium, AP_large: of objects below 32**2 pixels, from there to 96**2, and above.
        AR_1, AR_10, AR_100: average recall given so many detections per image.
        AR_small, AR_medium, AR_large: by the area of the objects, given 100 detections.
        per_class: in the order of the category ids.
        precision: (10, 101, classes) at each of `iou_thresholds` and `recall_thresholds`, objects of all areas, 100
            detections; -1 for classes without objects.
    """

    AP: float
    AP50: float
    AP75: float
    AP_small: float
    AP_medium: float
    AP_large: float
    AR_1: float
    AR_10: float
    AR_100: float
    AR_small: float
    AR_medium: float
    AR_large: float
    per_class: tuple[ClassScores, ...]
    precision: np.ndarray

    @property
    def numbers(self) -> dict[str, float]:
        """The twelve by their names."""
        return dict(zip(score_names, self[:12], strict=True))


class DetectionScores(NamedTuple):
    """Scores by boxes and by masks; None where they weren't asked for."""

    bbox: KindScores | None
    segm: KindScores | None


class FoundObjects(Protocol):
    """What is to be written as COCO results; `visattn.heads.Detections` is such."""

    @property
    def boxes(self) -> Tensor: ...

    @property
    def scores(self) -> Tensor: ...

    @property
    def labels(self) -> Tensor: ...

    @property
    def masks(self) -> Tensor | None: ...


def evaluate_detections(
    ground_truth: dict[str, Any],
    results: Sequence[dict[str, Any]],
    kinds: Sequence[str] = ("bbox",),
    backend: str = "pycocotools",
    *,
    image_ids: Sequence[int] | None = None,
) -> DetectionScores:
    """Scores detections as the official evaluation of COCO does.

    Where pycocotools leaves things open, or fails, this is what happens: annotations are counted from 1, since it takes
    an object with the id 0 for none; missing "iscrowd" is 0; a missing "area" is that of the mask, or of the box; a
    result's area is that of its mask when masks are judged, though it has a box, too; no results are results that find
    nothing.

    Args:
        ground_truth: the contents of an `instances_*.json`; not changed.
        results: COCO results, `{"image_id", "category_id", "score", "bbox": [x, y, width, height], "segmentation"}`,
            the last for masks: run lengths or polygons; not changed.
        kinds: "bbox", "segm" or both.
        backend: "pycocotools", or "faster" for the same numbers from hotcoco (the extra `visattn[detection]`).
        image_ids: the images to judge by; None is all.

    Raises:
        DetectionFileError: an entry has no meaning; the message names it, the field, and what was given.
        ModuleNotFoundError: the extra is needed and isn't installed.
        ValueError: kinds, backend or image_ids are unknown.

    Source: https://cocodataset.org/#detection-eval.
    """
    return evaluate(ground_truth, results, kinds, backend, image_ids, ("ground truth", "results"))


def evaluate_detection_files(
    annotations: str | PathLike[str],
    results: str | PathLike[str],
    kinds: Sequence[str] = ("bbox",),
    backend: str = "pycocotools",
) -> DetectionScores:
    """The same of a file with COCO annotations, `instances_*.json`, and one with COCO results.

    Raises:
        FileNotFoundError: there is no such file.
        DetectionFileError: a file is no JSON, or an entry has no meaning.
        ModuleNotFoundError, ValueError: as `evaluate_detections`.
    """
    return evaluate(read_json(annotations), read_json(results), kinds, backend, None, (str(annotations), str(results)))


def coco_results(detections: FoundObjects, image_id: int, category_ids: Sequence[int]) -> list[dict[str, Any]]:
    """The detections of one image as entries of a COCO results file.

    Args:
        detections: boxes (n, 4) xyxy in pixels of the image as it is stored, scores (n,), labels (n,), and masks
            (n, H, W) of the image's size, or None.
        image_id: of the image.
        category_ids: the COCO category of each label.

    Returns:
        `{"image_id", "category_id", "bbox": [x, y, width, height], "score"}`, with "segmentation", compressed run
        lengths, where there are masks.
    """
    corners = detections.boxes.detach().double().cpu()
    boxes = [*corners[:, :2].unbind(1), *(corners[:, 2:] - corners[:, :2]).clamp(min=0).unbind(1)]
    entries: list[dict[str, Any]] = [
        {"image_id": int(image_id), "category_id": int(category_ids[label]), "bbox": list(box), "score": score}
        for label, score, *box in zip(
            detections.labels.tolist(), detections.scores.tolist(), *(side.tolist() for side in boxes), strict=True
        )
    ]
    if detections.masks is not None and entries:
        masks = detections.masks.detach().cpu().numpy().astype(np.uint8)  # (n, H, W)
        for entry, encoded in zip(
            entries, run_lengths.encode(np.asfortranarray(masks.transpose(1, 2, 0))), strict=True
        ):
            entry["segmentation"] = {"size": list(encoded["size"]), "counts": encoded["counts"].decode("ascii")}
    return entries


def evaluate(
    ground_truth: Any,
    results: Any,
    kinds: Sequence[str],
    backend: str,
    image_ids: Sequence[int] | None,
    origins: tuple[str, str],
) -> DetectionScores:
    """`evaluate_detections`, with what to call the two sides in messages."""
    if not kinds or set(kinds) - set(_kinds):
        raise ValueError(f"kinds {tuple(kinds)} is not one or both of {', '.join(_kinds)}")
    if backend not in _backends:
        raise ValueError(f"backend {backend!r} is neither of {', '.join(_backends)}")
    scores: dict[str, KindScores] = {}
    with no_garbage_collection():
        for kind in dict.fromkeys(kinds):
            truth = check_instances(ground_truth, kind == "segm", origins[0])
            found = check_results(results, truth, kind == "segm", origins[1])
            if image_ids is not None:
                truth, found = of_images(truth, found, image_ids)
            measure = by_pycocotools if backend == "pycocotools" else by_hotcoco
            scores[kind] = summary(truth, *measure(truth, found, kind))
    return DetectionScores(scores.get("bbox"), scores.get("segm"))


@contextlib.contextmanager
def no_garbage_collection() -> Iterator[None]:
    """Keeps Python from looking for garbage among a great many new entries, which takes half of the time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def of_images(
    truth: Truth, found: list[dict[str, Any]], image_ids: Sequence[int]
) -> tuple[Truth, list[dict[str, Any]]]:
    """The part of both that speaks of these images."""
    chosen = {int(image) for image in image_ids}
    if unknown := sorted(chosen - {image["id"] for image in truth.images}):
        raise ValueError(f"image_ids: {unknown[0]} is the id of no image of the ground truth")
    kept = truth._replace(
        images=[image for image in truth.images if image["id"] in chosen],
        annotations=[entry for entry in truth.annotations if entry["image_id"] in chosen],
    )
    return kept, [entry for entry in found if entry["image_id"] in chosen]


def by_pycocotools(truth: Truth, found: list[dict[str, Any]], kind: str) -> tuple[np.ndarray, np.ndarray]:
    """Precision (10, 101, classes, 4 areas, 3 numbers of detections), and recall without the axis of 101."""
    with contextlib.redirect_stdout(io.StringIO()):  # it talks
        sides = []
        for annotations in (truth.annotations, found):
            side = COCO()
            side.dataset = {"images": truth.images, "categories": truth.categories, "annotations": annotations}
            side.createIndex()
            sides.append(side)
        evaluation = COCOeval(*sides, kind)
        evaluation.evaluate()
        evaluation.accumulate()
    measured: Any = evaluation.eval
    return measured["precision"], measured["recall"]


def by_hotcoco(truth: Truth, found: list[dict[str, Any]], kind: str) -> tuple[np.ndarray, np.ndarray]:
    """The same as `by_pycocotools`.

    Raises:
        ModuleNotFoundError: hotcoco isn't installed.
    """
    try:
        import hotcoco
    except ModuleNotFoundError:
        raise ModuleNotFoundError('backend "faster" needs an extra: pip install "visattn[detection]"') from None
    known = hotcoco.COCO(truth._asdict())
    evaluation = hotcoco.COCOeval(known, known.loadRes(found), kind)
    evaluation.evaluate()
    evaluation.accumulate()
    measured: Any = evaluation.eval
    return np.asarray(measured["precision"]), np.asarray(measured["recall"])


def summary(truth: Truth, precision: np.ndarray, recall: np.ndarray) -> KindScores:
    """The numbers that COCO reports.

    Args:
        precision: (10, 101, classes, 4, 3), where the areas are all, small, medium and large, and the detections 1, 10
            and 100.
        recall: (10, classes, 4, 3).
    """
    curves = precision[:, :, :, 0, 2]  # (10, 101, classes)
    numbers = [
        mean_of_known(curves),
        mean_of_known(curves[0]),
        mean_of_known(curves[5]),
        *(mean_of_known(precision[:, :, :, area, 2]) for area in (1, 2, 3)),
        *(mean_of_known(recall[:, :, 0, most]) for most in (0, 1, 2)),
        *(mean_of_known(recall[:, :, area, 2]) for area in (1, 2, 3)),
    ]
    objects = dict.fromkeys((category["id"] for category in truth.categories), 0)
    for entry in truth.annotations:
        objects[entry["category_id"]] += not entry["iscrowd"]
    per_class = tuple(
        ClassScores(
            category["id"],
            category["name"],
            objects[category["id"]],
            mean_of_known(curves[:, :, place]),
            mean_of_known(curves[0, :, place]),
        )
        for place, category in enumerate(truth.categories)
    )
    return KindScores._make((*numbers, per_class, curves))


def mean_of_known(values: np.ndarray) -> float:
    """The mean of what isn't -1; -1 where all is."""
    known = values[values > -1]
    return float(known.mean()) if known.size else -1.0
