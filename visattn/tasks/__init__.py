"""Lightning modules: a backbone, a head, a loss and metrics for one purpose each."""

from visattn.tasks.classification import ImageClassification

__all__ = ["ImageClassification"]
