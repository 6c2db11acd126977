"""Heads: `Features` to predictions."""

from visattn.heads.caption_decoder import CaptionDecoder, DecoderState
from visattn.heads.classification import ImageClassifier

__all__ = ["CaptionDecoder", "DecoderState", "ImageClassifier"]
