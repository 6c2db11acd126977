"""Backbones: images to `Features`. One file per family; the presets below are the names of the model zoo."""

from visattn.backbones.augmented_resnet import AugmentedResNet, augmented_resnet50, augmented_resnet_32
from visattn.backbones.botnet import BoTNet, botnet50, botnet_32
from visattn.backbones.cct import CompactConvolutionalTransformer, cct_7_3x1_32, cct_14_7x2
from visattn.backbones.coatnet import CoAtNet, coatnet_0, coatnet_32
from visattn.backbones.features import Backbone, Features
from visattn.backbones.hiera import Hiera, hiera_32, hiera_tiny
from visattn.backbones.hybrid import LocalHybrid, local_hybrid_32, local_hybrid_small, local_hybrid_tiny
from visattn.backbones.maxvit import MaxViT, maxvit_32, maxvit_tiny
from visattn.backbones.nat import (
    NeighborhoodAttentionTransformer,
    dinat_32,
    dinat_mini,
    dinat_tiny,
    nat_32,
    nat_mini,
    nat_tiny,
)
from visattn.backbones.pvt_v2 import PyramidVisionTransformer, pvt_v2_32, pvt_v2_b0, pvt_v2_b1, pvt_v2_b2
from visattn.backbones.resnet import ResNetD
from visattn.backbones.swin import SwinTransformer, swin_base, swin_small, swin_tiny
from visattn.backbones.swin_v2 import SwinTransformerV2, swin_v2_32, swin_v2_base, swin_v2_small, swin_v2_tiny
from visattn.backbones.timm_backbone import TimmBackbone
from visattn.backbones.vision_gnn import VisionGNN, pyramid_vig_tiny, vig_32, vig_tiny
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
    "AugmentedResNet",
    "Backbone",
    "BoTNet",
    "CoAtNet",
    "CompactConvolutionalTransformer",
    "Features",
    "Hiera",
    "LocalHybrid",
    "MaxViT",
    "NeighborhoodAttentionTransformer",
    "PyramidVisionTransformer",
    "ResNetD",
    "SwinTransformer",
    "SwinTransformerV2",
    "TimmBackbone",
    "VisionGNN",
    "VisionTransformer",
    "augmented_resnet50",
    "augmented_resnet_32",
    "botnet50",
    "botnet_32",
    "cct_7_3x1_32",
    "cct_14_7x2",
    "coatnet_0",
    "coatnet_32",
    "dinat_32",
    "dinat_mini",
    "dinat_tiny",
    "hiera_32",
    "hiera_tiny",
    "local_hybrid_32",
    "local_hybrid_small",
    "local_hybrid_tiny",
    "maxvit_32",
    "maxvit_tiny",
    "nat_32",
    "nat_mini",
    "nat_tiny",
    "pvt_v2_32",
    "pvt_v2_b0",
    "pvt_v2_b1",
    "pvt_v2_b2",
    "pyramid_vig_tiny",
    "swin_base",
    "swin_small",
    "swin_tiny",
    "swin_v2_32",
    "swin_v2_base",
    "swin_v2_small",
    "swin_v2_tiny",
    "vig_32",
    "vig_tiny",
    "vit_base",
    "vit_local_base",
    "vit_local_small",
    "vit_local_tiny",
    "vit_small",
    "vit_tiny",
]
