"""Data sets as Lightning data modules, and the door by which pictures come in."""

from visattn.data.augmentation import Augmentation
from visattn.data.caption_files import CaptionFileError
from visattn.data.caption_folders import CaptionJsonDataModule, CocoCaptionsDataModule, Flickr8kDataModule
from visattn.data.captions import CaptionData, CaptionSplit
from visattn.data.cifar import CIFAR10DataModule, CIFAR100DataModule
from visattn.data.classification import ImageClassificationData
from visattn.data.coco_detection import CocoDetectionDataModule, CocoJsonDataModule
from visattn.data.detection import DetectionData
from visattn.data.detection_files import DetectionFileError
from visattn.data.detection_preprocess import DetectionPreprocess
from visattn.data.image_batch import ImageBatch, pad_images
from visattn.data.image_folder import ImageFolderDataModule
from visattn.data.images import ImageFileError, open_image
from visattn.data.preprocess import Preprocess
from visattn.data.questions import QuestionData, ShapesQuestionsDataModule
from visattn.data.scenes import Scene, draw_scene
from visattn.data.shapes import ShapesDataModule
from visattn.data.shapes_captions import ShapesCaptionsDataModule
from visattn.data.shapes_detection import ShapesDetectionDataModule
from visattn.data.vqa_v2 import QuestionFileError, VQAv2DataModule

__all__ = [
    "Augmentation",
    "CIFAR10DataModule",
    "CIFAR100DataModule",
    "CaptionData",
    "CaptionFileError",
    "CaptionJsonDataModule",
    "CaptionSplit",
    "CocoCaptionsDataModule",
    "CocoDetectionDataModule",
    "CocoJsonDataModule",
    "DetectionData",
    "DetectionFileError",
    "DetectionPreprocess",
    "Flickr8kDataModule",
    "ImageBatch",
    "ImageClassificationData",
    "ImageFileError",
    "ImageFolderDataModule",
    "Preprocess",
    "QuestionData",
    "QuestionFileError",
    "Scene",
    "ShapesCaptionsDataModule",
    "ShapesDataModule",
    "ShapesDetectionDataModule",
    "ShapesQuestionsDataModule",
    "VQAv2DataModule",
    "draw_scene",
    "open_image",
    "pad_images",
]
