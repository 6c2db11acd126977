"""Small networks, one of each kind of attention, and the images that they read."""

import torch

from visattn.backbones import (
    CompactConvolutionalTransformer,
    Hiera,
    NeighborhoodAttentionTransformer,
    PyramidVisionTransformer,
    SwinTransformer,
    VisionGNN,
    VisionTransformer,
    local_hybrid_tiny,
)
from visattn.heads import ImageClassifier

backbones = {
    "vit": lambda: VisionTransformer(32, 8, 24, 2, 2),
    "distilled": lambda: VisionTransformer(32, 8, 24, 2, 2, distillation_token=True, num_registers=3),
    "pooled by attention": lambda: VisionTransformer(32, 8, 24, 2, 2, class_token=False, pooling="attention"),
    "local": lambda: VisionTransformer(
        32, 4, 24, 3, 2, attention=("local", "local", "global"), kernel_size=3, class_token=False, pooling="average"
    ),
    "dilated": lambda: VisionTransformer(
        32, 4, 24, 2, 2, attention=("local",), kernel_size=3, dilation=2, class_token=False, pooling="average"
    ),
    "swin": lambda: SwinTransformer(32, 2, 12, (2, 2), (2, 4), window_size=4),
    "padded swin": lambda: SwinTransformer(44, 2, 12, (2, 2), (2, 4), window_size=4),
    "swin padded first": lambda: SwinTransformer(44, 2, 12, (2, 2), (2, 4), window_size=4, padding="before_shift"),
    "padded dinat": lambda: NeighborhoodAttentionTransformer(
        32, 2, 12, (2, 2), (2, 3), kernel_size=5, dilation=((1, 4), 1), pad_small_maps=True
    ),
    "cct": lambda: CompactConvolutionalTransformer(32, 4, 24, 2, 2, convolutions=2),
    "pvt_v2": lambda: PyramidVisionTransformer(32, 2, (8, 12), (1, 2), (2, 3), reductions=(4, 2), mlp_ratios=(2, 2)),
    "hiera": lambda: Hiera(36, 2, 12, (1, 2, 1), (1, 2, 3), unit_size=4, unit_attention=(True, True, False)),
    "focal": lambda: VisionTransformer(
        32,
        4,
        24,
        2,
        2,
        attention=("focal",),
        class_token=False,
        pooling="average",
        attention_options={"focal": {"window_size": 3, "levels": ((1, 3), (2, 3))}},
    ),
    "vig": lambda: VisionGNN(
        32, 2, (8, 12), (1, 2), (2, 3), aggregation="attention", reductions=(2, 1), pooled_dim=None
    ),
    "vig on a grid": lambda: VisionGNN(
        32, 2, (8, 12), (1, 1), (2, 3), graph="grid", aggregation="attention", reductions=(1, 1), pooled_dim=None
    ),
    "hybrid": lambda: local_hybrid_tiny(32, dims=(16, 24), depths=(2, 2), num_heads=(2, 3), stem_dim=8),
}


def model_of(kind):
    """The network with weights large enough that its attention differs from place to place."""
    torch.manual_seed(0)
    model = ImageClassifier(backbones[kind](), 5).eval()
    for parameter in model.parameters():
        parameter.data.add_(torch.randn_like(parameter) * 0.2)
    return model


def images_for(model, batch=2):
    return torch.randn(batch, 3, *model.backbone.image_size, generator=torch.Generator().manual_seed(1))
