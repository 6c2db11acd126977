"""Backbones: images to `Features`. One file per family; the presets below are the names of the model zoo."""

from visattn.backbones.features import Backbone, Features
from visattn.backbones.hybrid import LocalHybrid, local_hybrid_small, local_hybrid_tiny
from visattn.backbones.resnet import ResNetD
from visattn.backbones.swin import SwinTransformer, swin_base, swin_small, swin_tiny
from visattn.backbones.timm_backbone import TimmBackbone
from visattn.backbones.vit import (
    VisionTransformer,
    vit_base,
    vit_local_base,
    vit_local_small,
    vit_local_tiny,
    vit_small,
    vit_tiny,
)

__all__ = [
    "Backbone",
    "Features",
    "LocalHybrid",
    "ResNetD",
    "SwinTransformer",
    "TimmBackbone",
    "VisionTransformer",
    "local_hybrid_small",
    "local_hybrid_tiny",
    "swin_base",
    "swin_small",
    "swin_tiny",
    "vit_base",
    "vit_local_base",
    "vit_local_small",
    "vit_local_tiny",
    "vit_small",
    "vit_tiny",
]
