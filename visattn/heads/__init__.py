"""Heads: `Features` to predictions."""

from visattn.heads.caption_decoder import CaptionDecoder
from visattn.heads.captioner import Caption, ImageCaptioner
from visattn.heads.classification import ImageClassifier
from visattn.heads.conditional_detr import ConditionalDetrHead
from visattn.heads.decoder_state import DecoderState
from visattn.heads.deformable_detr import DeformableDetrHead
from visattn.heads.dense_detection import FasterRcnnHead, FcosHead, MaskRcnnHead, RetinaNetHead
from visattn.heads.detections import DetectionOutput, Detections
from visattn.heads.detector import ObjectDetector
from visattn.heads.detr import DetrHead
from visattn.heads.feature_pyramid import FeaturePyramid
from visattn.heads.image_encoder import ImageEncoder
from visattn.heads.question_answering import Answer, QuestionEncoder, VisualQuestionAnswerer
from visattn.heads.rt_detr import RtDetrHead

__all__ = [
    "Answer",
    "Caption",
    "CaptionDecoder",
    "ConditionalDetrHead",
    "DecoderState",
    "DeformableDetrHead",
    "DetectionOutput",
    "Detections",
    "DetrHead",
    "FasterRcnnHead",
    "FcosHead",
    "FeaturePyramid",
    "ImageCaptioner",
    "ImageClassifier",
    "ImageEncoder",
    "MaskRcnnHead",
    "ObjectDetector",
    "QuestionEncoder",
    "RetinaNetHead",
    "RtDetrHead",
    "VisualQuestionAnswerer",
]
