"""Heads: `Features` to predictions."""

from visattn.heads.classification import ImageClassifier

__all__ = ["ImageClassifier"]
