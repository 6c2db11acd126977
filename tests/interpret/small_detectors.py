"""Small detectors with a transformer, deformable attention, or dense heads; untrained, but far from uniform."""

import torch

from visattn.backbones import VisionTransformer
from visattn.data.detection_preprocess import DetectionPreprocess
from visattn.heads import DeformableDetrHead, DetrHead, FcosHead, MaskRcnnHead, ObjectDetector, RtDetrHead

classes = ("ant", "bee", "cat", "dog", "eel")
set_kinds = ("detr", "deformable", "rt_detr")
kinds = (*set_kinds, "dense")


def detector_of(kind):
    torch.manual_seed(0)
    backbone = VisionTransformer(64, 8, 24, 2, 2)
    if kind == "detr":
        sizes = {"dim": 24, "num_heads": 3, "encoder_depth": 1, "decoder_depth": 2, "feedforward_dim": 32}
        head = DetrHead(backbone.channels, backbone.strides, len(classes), num_queries=11, **sizes)
    elif kind == "deformable":
        sizes = {"dim": 24, "num_heads": 3, "encoder_depth": 1, "decoder_depth": 2, "hidden_dim": 32, "points": 2}
        head = DeformableDetrHead(
            backbone.channels, backbone.strides, len(classes), levels=(3, 4, 5), num_queries=13, **sizes
        )
    elif kind == "rt_detr":
        sizes = {"encoder_dim": 24, "encoder_heads": 3, "encoder_hidden_dim": 32, "dim": 24, "num_heads": 3}
        head = RtDetrHead(
            backbone.channels, backbone.strides, len(classes), num_queries=13, depth=2, hidden_dim=32, **sizes
        )
    elif kind == "masks":
        sizes = {"out_channels": 16, "hidden": 24, "mask_channels": 16, "mask_convolutions": 1, "proposals": 20}
        head = MaskRcnnHead(backbone.channels, backbone.strides, len(classes), levels=(3, 4), min_score=0.0, **sizes)
    else:
        head = FcosHead(backbone.channels, backbone.strides, len(classes), out_channels=32, levels=(3, 4))
    model = ObjectDetector(backbone, head, classes)
    for parameter in model.parameters():
        parameter.data.add_(torch.randn_like(parameter) * 0.2)
    model.preprocess = DetectionPreprocess(48, 80)
    model.category_ids = (1, 3, 7, 8, 90)
    return model.eval()
