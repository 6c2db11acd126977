"""The layout of transformers: ViT, DeiT, DINOv2, Swin (V1 and V2), NAT, PVT v2 and Hiera, with or without a classifier.

It is read from the keys and `config.json` alone; the package itself isn't needed. Captioners have files of their own:
vision_encoder_decoder.py, git.py, blip.py.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from visattn.backbones import (
    Backbone,
    Hiera,
    NeighborhoodAttentionTransformer,
    PyramidVisionTransformer,
    SwinTransformer,
    SwinTransformerV2,
    VisionTransformer,
)
from visattn.backbones.features import as_pair
from visattn.checkpoints.hiera import transformers_hiera_backbone, transformers_hiera_weights
from visattn.checkpoints.nat import nat_backbone, nat_weights
from visattn.checkpoints.native import CheckpointError, load_strictly
from visattn.checkpoints.pvt_v2 import transformers_pvt_v2_backbone, transformers_pvt_v2_weights
from visattn.checkpoints.swin_v2 import transformers_swin_v2_backbone, transformers_swin_v2_weights
from visattn.data.preprocess import Preprocess
from visattn.heads import ImageClassifier

_activations = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "quick_gelu": "quick_gelu",
    "silu": "silu",
    "relu": "relu",
}
_interpolations = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")  # by PIL's numbers
_names = (
    (r"^(vit|deit|dinov2|dinov2_with_registers|swin)\.", ""),
    (r"^embeddings\.cls_token$", "class_token"),
    (r"^embeddings\.(distillation_token|register_tokens)$", r"\1"),
    (r"^embeddings\.position_embeddings$", "position_embedding"),
    (r"^embeddings\.patch_embeddings\.projection\.", "patch_embedding.projection."),
    (r"^embeddings\.norm\.", "patch_embedding.norm."),
    (r"^(encoder\.layer|layers)\.", "blocks."),
    (r"^encoder\.layers\.", "stages."),
    (r"^layernorm\.", "norm."),
    (r"\.attention\.(attention|self)\.(query|key|value)\.", r".attention.\2."),
    (r"\.attention\.q_proj\.", ".attention.query."),
    (r"\.attention\.k_proj\.", ".attention.key."),
    (r"\.attention\.v_proj\.", ".attention.value."),
    (r"\.attention\.\w+\.relative_position_bias_table$", ".attention.relative_position_bias"),
    (r"\.attention\.(output\.dense|o_proj)\.", ".attention.projection."),
    (r"\.intermediate\.dense\.", ".mlp.fc1."),
    (r"(blocks\.\d+)\.output\.dense\.", r"\1.mlp.fc2."),
    (r"\.layernorm_before\.", ".norm1."),
    (r"\.layernorm_after\.", ".norm2."),
    (r"\.layer_scale([12])\.lambda1$", r".layer_scale\1"),
    (r"\.mlp\.weights_in\.", ".mlp.fc1."),
    (r"\.mlp\.(weights_out|down_proj)\.", ".mlp.fc2."),
)
# Used by masked image modelling and by the pooled output of base models, which no classifier reads.
_unused = re.compile(r"(^|\.)(embeddings\.mask_token$|pooler\.|relative_position_index$)")


def build(config: Mapping[str, Any], weights: Mapping[str, Tensor], origin: str) -> ImageClassifier:
    """The model that transformers' `config.json` describes, with these weights.

    Args:
        config: `config.json`; the content of `preprocessor_config.json`, if there is one, under "preprocessor".
        weights: transformers' names and shapes. Without a classifier among them the model has no head.
        origin: names the source in errors.

    Raises:
        CheckpointError: the type of model or an option is not supported, or the weights don't fit.
    """
    backbone, renamed = read_backbone(config, weights, origin)
    renamed = {f"backbone.{name}": tensor for name, tensor in renamed.items()}
    renamed |= head_weights(weights, distilled=config["model_type"] == "deit")
    head = renamed.get("head.weight")
    model = ImageClassifier(backbone, None if head is None else head.shape[0])
    load_strictly(model, renamed, origin)
    model.preprocess = preprocess_of(config["preprocessor"], backbone.image_size) if "preprocessor" in config else None
    labels = config.get("id2label") or {}
    if len(labels) == model.num_classes:
        model.classes = tuple(labels[key] for key in sorted(labels, key=int))
    return model


def read_backbone(
    config: Mapping[str, Any], weights: Mapping[str, Tensor], origin: str
) -> tuple[Backbone, dict[str, Tensor]]:
    """The backbone that a `config.json` describes, and its weights under our names; a classifier's are left out.

    Raises:
        CheckpointError: the type of model or an option is not supported.
    """
    makers: dict[str, Callable[[Mapping[str, Any], str], Backbone]] = {
        "vit": vision_transformer,
        "deit": vision_transformer,
        "dinov2": dino,
        "dinov2_with_registers": dino,
        "swin": swin,
        "swinv2": transformers_swin_v2_backbone,
        "nat": nat_backbone,
        "dinat": nat_backbone,
        "pvt_v2": transformers_pvt_v2_backbone,
        "hiera": transformers_hiera_backbone,
    }
    kind = config.get("model_type")
    if kind not in makers:
        raise CheckpointError(f"{origin}: model_type {kind!r} is not read; known are {', '.join(makers)}")
    try:
        backbone = makers[kind](config, origin)
    except KeyError as error:
        raise CheckpointError(f"{origin}: config.json doesn't say {error}") from error
    return backbone, backbone_weights(weights, backbone)


def activation_of(name: str, origin: str) -> str:
    """Our name of an activation.

    Raises:
        CheckpointError: it has no counterpart.
    """
    if name not in _activations:
        raise CheckpointError(f"{origin}: activation {name!r} is unknown; known are {', '.join(_activations)}")
    return _activations[name]


def common(config: Mapping[str, Any], origin: str) -> dict[str, Any]:
    """What all families have: sizes of image and patch, channels, biases."""
    patch_size = as_pair(config.get("patch_size", 16))
    if patch_size[0] != patch_size[1]:
        raise CheckpointError(f"{origin}: patches of {patch_size} pixels are not square")
    return {
        "image_size": as_pair(config.get("image_size", 224)),
        "patch_size": patch_size[0],
        "in_channels": config.get("num_channels", 3),
        "qkv_bias": config.get("qkv_bias", True),
    }


def vision_transformer(config: Mapping[str, Any], origin: str) -> Backbone:
    """ViT, and DeiT with its distillation token."""
    return VisionTransformer(
        **common(config, origin),
        dim=config["hidden_size"],
        depth=config["num_hidden_layers"],
        num_heads=config["num_attention_heads"],
        mlp_ratio=config["intermediate_size"] / config["hidden_size"],
        activation=activation_of(config.get("hidden_act", "gelu"), origin),
        norm_eps=config.get("layer_norm_eps", 1e-12),
        distillation_token=config["model_type"] == "deit",
        position_antialias=False,
    )


def dino(config: Mapping[str, Any], origin: str) -> Backbone:
    """DINOv2, whose classifier reads the class token beside the mean of the patches."""
    dim, gated = config["hidden_size"], config.get("use_swiglu_ffn", False)
    hidden = int(dim * config.get("mlp_ratio", 4))
    if gated:
        hidden = (int(hidden * 2 / 3) + 7) // 8 * 8
    return VisionTransformer(
        **common(config, origin),
        dim=dim,
        depth=config["num_hidden_layers"],
        num_heads=config["num_attention_heads"],
        mlp_ratio=hidden / dim,
        mlp="gated" if gated else "plain",
        activation="silu" if gated else activation_of(config.get("hidden_act", "gelu"), origin),
        norm_eps=config.get("layer_norm_eps", 1e-6),
        layer_scale=1.0,
        num_registers=config.get("num_register_tokens", 4) if config["model_type"] == "dinov2_with_registers" else 0,
        prefix_positions=False,
        pooling="token_and_average",
        position_antialias=config["model_type"] == "dinov2_with_registers",
    )


def swin(config: Mapping[str, Any], origin: str) -> Backbone:
    if config.get("use_absolute_embeddings"):
        raise CheckpointError(f"{origin}: Swin with absolute position embeddings has no counterpart in visattn")
    if config.get("hidden_act", "gelu") != "gelu":
        raise CheckpointError(f"{origin}: Swin with activation {config['hidden_act']!r} has no counterpart in visattn")
    return SwinTransformer(
        **common(config, origin),
        dim=config["embed_dim"],
        depths=config["depths"],
        num_heads=config["num_heads"],
        window_size=config["window_size"],
        mlp_ratio=config.get("mlp_ratio", 4.0),
        norm_eps=config.get("layer_norm_eps", 1e-5),
        padding="before_shift",
    )


def backbone_weights(weights: Mapping[str, Tensor], backbone: Backbone) -> dict[str, Tensor]:
    """The backbone's weights under our names; query, key and value become one matrix."""
    backbone_only = {name: weight for name, weight in weights.items() if "classifier." not in name}
    if isinstance(backbone, NeighborhoodAttentionTransformer):
        return nat_weights(backbone_only)
    if isinstance(backbone, SwinTransformerV2):
        return transformers_swin_v2_weights(backbone_only)
    if isinstance(backbone, PyramidVisionTransformer):
        return transformers_pvt_v2_weights(backbone_only)
    if isinstance(backbone, Hiera):
        return transformers_hiera_weights(backbone_only, backbone)
    renamed: dict[str, Tensor] = {}
    for name, tensor in rename(backbone_only, _names, _unused).items():
        stage = re.match(r"stages\.(\d+)\.downsample\.", name)
        if stage:  # theirs ends a stage, ours begins the next
            name = name.replace(f"stages.{stage[1]}.", f"stages.{int(stage[1]) + 1}.", 1)
        if name.endswith("relative_position_bias"):
            side = round(tensor.shape[0] ** 0.5)
            tensor = tensor.T.unflatten(1, (side, side))  # (heads, 2 window - 1, 2 window - 1)
        renamed[name] = tensor
    join(renamed, (".attention.query.", ".attention.key.", ".attention.value."), ".attention.qkv.")
    join(renamed, (".mlp.gate_proj.", ".mlp.up_proj."), ".mlp.fc1.")
    # With positions for the patches alone, the class token carries its own.
    if isinstance(backbone, VisionTransformer) and not backbone.prefix_positions and "position_embedding" in renamed:
        positions = renamed["position_embedding"]
        renamed["position_embedding"] = positions[:, 1:]
        renamed["class_token"] = renamed["class_token"] + positions[:, :1]
    return renamed


def rename(
    weights: Mapping[str, Tensor], names: Sequence[tuple[str, str]], unused: re.Pattern[str]
) -> dict[str, Tensor]:
    """Weights with their names changed by patterns, one after the other; without those whose name `unused` finds."""
    renamed = {}
    for name, tensor in weights.items():
        if not unused.search(name):
            for pattern, replacement in names:
                name = re.sub(pattern, replacement, name)
            renamed[name] = tensor
    return renamed


def join(weights: dict[str, Tensor], parts: Sequence[str], whole: str) -> None:
    """Puts linear layers that are one with us below each other, in place; a layer that lacks a part stays as it is."""
    for name in [name for name in weights if parts[0] in name]:
        names = [name.replace(parts[0], part) for part in parts]
        if all(part in weights for part in names):
            weights[name.replace(parts[0], whole)] = torch.cat([weights.pop(part) for part in names])


def head_weights(weights: Mapping[str, Tensor], distilled: bool) -> dict[str, Tensor]:
    """The classifier's weights under our names; none if the source has no classifier."""
    renamed = {}
    for kind in ("weight", "bias"):
        if f"cls_classifier.{kind}" in weights:
            renamed[f"head.{kind}"] = weights[f"cls_classifier.{kind}"]
            renamed[f"distillation_head.{kind}"] = weights[f"distillation_classifier.{kind}"]
        elif f"classifier.{kind}" in weights:
            renamed[f"head.{kind}"] = weights[f"classifier.{kind}"]
            if distilled:
                # Only the class token is read; our logits are the mean of two heads: twice this one, and nothing.
                renamed[f"head.{kind}"] = 2 * weights[f"classifier.{kind}"]
                renamed[f"distillation_head.{kind}"] = torch.zeros_like(weights[f"classifier.{kind}"])
    return renamed


def preprocess_of(published: Mapping[str, Any], image_size: tuple[int, int]) -> Preprocess:
    """`preprocessor_config.json` as our transform."""
    resize, fit = published.get("size", list(image_size)), "stretch"
    kind = published.get("image_processor_type") or published.get("feature_extractor_type") or ""
    if isinstance(resize, Mapping):
        if "shortest_edge" in resize:
            resize, fit = resize["shortest_edge"], "cover"
        else:
            resize = (resize["height"], resize["width"])
    elif "Bit" in kind or "CLIP" in kind:
        fit = "cover"  # by the shorter edge, as these read a bare number
    crop = published.get("crop_size", resize) if published.get("do_center_crop") else resize
    if isinstance(crop, Mapping):
        crop = (crop["height"], crop["width"])
    resample = published.get("resample", 2)
    return Preprocess(
        crop,
        resize=resize,
        fit=fit if published.get("do_resize", True) else "none",
        interpolation=_interpolations[resample] if isinstance(resample, int) else str(resample),
        mean=published.get("image_mean") or (0.5, 0.5, 0.5),
        std=published.get("image_std") or (0.5, 0.5, 0.5),
        crop_start="down",
    )
