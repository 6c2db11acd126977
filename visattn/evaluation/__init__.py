"""Numbers that judge what models produce."""

from visattn.evaluation.detection import (
    ClassScores,
    DetectionScores,
    KindScores,
    coco_results,
    evaluate_detection_files,
    evaluate_detections,
)
from visattn.evaluation.detection_files import DetectionFileError

__all__ = [
    "ClassScores",
    "DetectionFileError",
    "DetectionScores",
    "KindScores",
    "coco_results",
    "evaluate_detection_files",
    "evaluate_detections",
]
