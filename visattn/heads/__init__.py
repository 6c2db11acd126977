"""Heads: `Features` to predictions."""

from visattn.heads.caption_decoder import CaptionDecoder
from visattn.heads.captioner import Caption, ImageCaptioner
from visattn.heads.classification import ImageClassifier
from visattn.heads.decoder_state import DecoderState
from visattn.heads.detections import DetectionOutput, Detections
from visattn.heads.image_encoder import ImageEncoder
from visattn.heads.question_answering import Answer, QuestionEncoder, VisualQuestionAnswerer

__all__ = [
    "Answer",
    "Caption",
    "CaptionDecoder",
    "DecoderState",
    "DetectionOutput",
    "Detections",
    "ImageCaptioner",
    "ImageClassifier",
    "ImageEncoder",
    "QuestionEncoder",
    "VisualQuestionAnswerer",
]
