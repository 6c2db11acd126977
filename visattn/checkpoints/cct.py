"""The original layout of Compact Convolutional Transformers: the weights of SHI-Labs/Compact-Transformers."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

from torch import Tensor

from visattn.backbones import CompactConvolutionalTransformer
from visattn.checkpoints.native import CheckpointError, load_strictly
from visattn.data.preprocess import Preprocess
from visattn.heads import ImageClassifier


class Colors(NamedTuple):
    """Mean and standard deviation of the training images' colours."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]


# By the number of blocks: channels, attention heads, and hidden channels of the MLP / channels.
_sizes = {2: (128, 2, 1.0), 4: (128, 2, 1.0), 6: (256, 4, 2.0), 7: (256, 4, 2.0), 14: (384, 6, 3.0)}
_cifar10 = Colors((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))
_cifar100 = Colors((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761))
_flowers102 = Colors((0.4353, 0.3773, 0.2872), (0.2966, 0.2455, 0.2698))
_imagenet = Colors((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
# By their names there: the colours of the images that they were published for. "cct_7_3x1_32" has 7 blocks behind 1
# convolution with kernels of 3, for 32 pixels.
original_architectures = {
    "cct_2_3x2_32": _cifar10,
    "cct_2_3x2_32_sine": _cifar10,
    "cct_4_3x2_32": _cifar10,
    "cct_4_3x2_32_sine": _cifar10,
    "cct_6_3x1_32": _cifar10,
    "cct_6_3x1_32_sine": _cifar10,
    "cct_6_3x2_32": _cifar10,
    "cct_6_3x2_32_sine": _cifar10,
    "cct_7_3x1_32": _cifar10,
    "cct_7_3x1_32_sine": _cifar10,
    "cct_7_3x1_32_c100": _cifar100,
    "cct_7_3x1_32_sine_c100": _cifar100,
    "cct_7_3x2_32": _cifar10,
    "cct_7_3x2_32_sine": _cifar10,
    "cct_7_7x2_224": _flowers102,
    "cct_7_7x2_224_sine": _flowers102,
    "cct_14_7x2_224": _imagenet,
    "cct_14_7x2_384": _imagenet,
    "cct_14_7x2_384_fl": _flowers102,
}
# Patterns of their names and ours, applied one after the other.
_names = (
    (r"^classifier\.fc\.", "head."),
    (r"^classifier\.positional_emb$", "backbone.position_embedding"),
    (r"^classifier\.attention_pool\.", "backbone.sequence_pooling.linear."),
    (r"^classifier\.", "backbone."),
    (r"\.norm1\.", ".norm2."),
    (r"\.pre_norm\.", ".norm1."),
    (r"\.self_attn\.qkv\.", ".attention.qkv."),
    (r"\.self_attn\.proj\.", ".attention.projection."),
    (r"\.linear([12])\.", r".mlp.fc\1."),
)


def build_original(weights: Mapping[str, Tensor], origin: str, architecture: str) -> ImageClassifier:
    """The model of one of `original_architectures`, with these weights.

    The waves of those called "sine" become learned positions.

    Args:
        weights: the names and shapes of the repository.
        origin: names the source in errors.

    Raises:
        CheckpointError: the weights don't fit.
    """
    if "classifier.fc.weight" not in weights:
        raise CheckpointError(
            f"{origin}: has no classifier.fc.weight; it holds no {architecture} of Compact-Transformers"
        )
    model = ImageClassifier(backbone_of(architecture), len(weights["classifier.fc.weight"]))
    load_strictly(model, renamed(weights), origin)
    side, colors = model.backbone.image_size[0], original_architectures[architecture]
    crop = 0.9 if colors is _imagenet else 1.0
    model.preprocess = Preprocess(side, resize=int(side / crop), mean=colors.mean, std=colors.std)
    return model


def backbone_of(architecture: str) -> CompactConvolutionalTransformer:
    """The network of one of `original_architectures`, with new weights."""
    depth, kernel_size, convolutions, side = map(int, re.findall(r"\d+", architecture)[:4])
    dim, num_heads, mlp_ratio = _sizes[depth]
    return CompactConvolutionalTransformer(
        side,
        (4 if kernel_size == 7 else 2) ** convolutions,
        dim,
        depth,
        num_heads,
        convolutions=convolutions,
        kernel_size=kernel_size,
        mlp_ratio=mlp_ratio,
    )


def renamed(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The original weights by the names of an `ImageClassifier` of ours."""
    ours: dict[str, Tensor] = {}
    for name, tensor in weights.items():
        convolution = re.match(r"tokenizer\.conv_layers\.(\d+)\.0\.weight$", name)
        if convolution:  # theirs are nested in threes: convolution, ReLU, pooling
            name = f"backbone.tokenizer.layers.{3 * int(convolution[1])}.weight"
        for pattern, replacement in _names:
            name = re.sub(pattern, replacement, name)
        ours[name] = tensor
    return ours
