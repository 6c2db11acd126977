"""What all published detectors need: a ResNet under either of its layouts, classes, and how pictures are prepared."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from visattn.backbones import Backbone, TimmBackbone
from visattn.checkpoints.native import CheckpointError, load_strictly
from visattn.data.detection_preprocess import DetectionPreprocess
from visattn.data.preprocess import imagenet_mean, imagenet_std
from visattn.heads import ObjectDetector

# From transformers' own ResNet to timm's and torchvision's, behind "backbone.network."; to be applied in this order.
resnet_names = (
    (r"\.embedder\.embedder\.convolution\.", ".conv1."),
    (r"\.embedder\.embedder\.normalization\.", ".bn1."),
    (r"\.encoder\.stages\.0\.layers\.", ".layer1."),
    (r"\.encoder\.stages\.1\.layers\.", ".layer2."),
    (r"\.encoder\.stages\.2\.layers\.", ".layer3."),
    (r"\.encoder\.stages\.3\.layers\.", ".layer4."),
    (r"\.shortcut\.convolution\.", ".downsample.0."),
    (r"\.shortcut\.normalization\.", ".downsample.1."),
    (r"\.layer\.0\.convolution\.", ".conv1."),
    (r"\.layer\.0\.normalization\.", ".bn1."),
    (r"\.layer\.1\.convolution\.", ".conv2."),
    (r"\.layer\.1\.normalization\.", ".bn2."),
    (r"\.layer\.2\.convolution\.", ".conv3."),
    (r"\.layer\.2\.normalization\.", ".bn3."),
)
# transformers' image processors, by PIL's numbers.
_interpolations = {0: "nearest", 2: "bilinear", 3: "bicubic"}


def assemble(
    backbone: Backbone, head: nn.Module, weights: Mapping[str, Tensor], config: Mapping[str, Any], origin: str
) -> ObjectDetector:
    """Backbone and head with these weights, the names of the classes and the transform.

    Args:
        weights: under our names.
        config: `config.json`; the content of `preprocessor_config.json`, if there is one, under "preprocessor".
        origin: names the source in errors.

    Raises:
        CheckpointError: the weights don't fit, or the transform has no counterpart.
    """
    model = ObjectDetector(backbone, head)
    load_strictly(model, with_counters(model, weights), origin)
    if "preprocessor" in config:
        model.preprocess = preprocess_of(config["preprocessor"], origin)
    labels = config.get("id2label") or {}
    if len(labels) == model.num_classes:
        model.classes = tuple(labels[key] for key in sorted(labels, key=int))
    if model.num_classes == 91:  # those of COCO, where each label is its category's number
        model.category_ids = tuple(range(91))
    return model


def with_counters(model: nn.Module, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights with the batch counters of all batch norms, which frozen ones are published without."""
    counters = {name for name in model.state_dict() if name.endswith("num_batches_tracked")}
    kept = {name: tensor for name, tensor in weights.items() if not name.endswith("num_batches_tracked")}
    return kept | {name: torch.zeros((), dtype=torch.long) for name in counters}


def resnet(config: Mapping[str, Any], origin: str) -> TimmBackbone:
    """The network of timm that `config.json` of a detector names, or describes as a ResNet of transformers' own.

    Raises:
        CheckpointError: it is another network, or an option has no counterpart.
    """
    inner = config.get("backbone_config")
    own = inner is None and not config.get("use_timm_backbone", True)
    inner = inner or {}
    options: dict[str, Any] = {}
    if own or inner.get("model_type") == "resnet":
        name, options = resnet_arguments(inner, origin)
    elif inner.get("model_type", "timm_backbone") == "timm_backbone":
        name = inner.get("backbone") or config.get("backbone") or "resnet50"
        stride = inner.get("output_stride") or (16 if config.get("dilation") else 32)
        options = {} if stride == 32 else {"output_stride": stride}
    else:
        raise CheckpointError(f"{origin}: a backbone of type {inner['model_type']!r} is not read; known is resnet")
    channels = inner.get("num_channels", config.get("num_channels", 3))
    try:
        return TimmBackbone(name, 800, in_channels=channels, frozen_norms=True, **options)
    except ValueError as error:
        raise CheckpointError(f"{origin}: {error}") from error


def resnet_arguments(config: Mapping[str, Any], origin: str) -> tuple[str, dict[str, Any]]:
    """Name and options, in timm, of a ResNet that transformers describes.

    Raises:
        CheckpointError: an option has no counterpart.
    """
    usual = {"embedding_size": 64, "hidden_act": "relu", "downsample_in_first_stage": False}
    for option, value in (usual | {"downsample_in_bottleneck": False}).items():
        if config.get(option, value) != value:
            raise CheckpointError(f"{origin}: a ResNet with {option} {config[option]!r} has no counterpart in visattn")
    bottleneck = config.get("layer_type", "bottleneck") == "bottleneck"
    widths = [width // (4 if bottleneck else 1) for width in config.get("hidden_sizes", (256, 512, 1024, 2048))]
    depths = config.get("depths", (3, 4, 6, 3))
    return "resnet50" if bottleneck else "resnet18", {"layers": tuple(depths), "channels": tuple(widths)}


def preprocess_of(published: Mapping[str, Any], origin: str, divisor: int = 1) -> DetectionPreprocess:
    """`preprocessor_config.json` as our transform.

    Args:
        divisor: to whose multiples batches are padded.

    Raises:
        CheckpointError: an option has no counterpart.
    """
    if not published.get("do_resize", True):
        raise CheckpointError(f"{origin}: pictures that are not resized have no counterpart in visattn's detectors")
    size = published.get("size", 800)
    if not isinstance(size, Mapping):
        size = {"shortest_edge": size, "longest_edge": published.get("max_size", 1333)}
    if "shortest_edge" in size:
        shortest, longest, fit = size["shortest_edge"], size.get("longest_edge") or 1333, "within"
    elif "height" in size:
        shortest, longest, fit = size["height"], size["width"], "stretch"
    else:
        raise CheckpointError(f"{origin}: a picture's size {dict(size)} has no counterpart in visattn's detectors")
    resample = published.get("resample", 2)
    if resample not in _interpolations:
        raise CheckpointError(f"{origin}: resample {resample!r} has no counterpart; known are 0, 2 and 3")
    colors: dict[str, Any] = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
    if published.get("do_normalize", True):
        colors = {
            "mean": published.get("image_mean") or imagenet_mean,
            "std": published.get("image_std") or imagenet_std,
        }
    return DetectionPreprocess(
        shortest,
        longest,
        fit=fit,
        interpolation=_interpolations[resample],
        resampler="pillow" if str(published.get("image_processor_type")).endswith("Pil") else "torch",
        divisor=divisor,
        **colors,
    )
