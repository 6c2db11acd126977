"""Lightning modules, one for each purpose: a backbone, a head, a loss and metrics; and the callbacks of a run."""

from visattn.tasks.callbacks import AtomicCheckpointIO, ExponentialMovingAverage, StepSeed
from visattn.tasks.captioning import ImageCaptioning
from visattn.tasks.classification import ImageClassification
from visattn.tasks.detection import ObjectDetection
from visattn.tasks.question_answering import QuestionAnswering
from visattn.tasks.token_parallel import TokenParallelStrategy

__all__ = [
    "AtomicCheckpointIO",
    "ExponentialMovingAverage",
    "ImageCaptioning",
    "ImageClassification",
    "ObjectDetection",
    "QuestionAnswering",
    "StepSeed",
    "TokenParallelStrategy",
]
