"""PVT v2 in timm's layout (its class PyramidVisionTransformerV2) and in that of transformers (model_type "pvt_v2")."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from visattn.backbones import PyramidVisionTransformer
from visattn.backbones.features import as_pair
from visattn.checkpoints.native import CheckpointError

# Patterns of names and ours, applied one after the other.
_timm_names = (
    (r"^patch_embed\.", "stages.0.embedding."),
    (r"^(stages\.\d+)\.downsample\.", r"\1.embedding."),
    (r"\.embedding\.proj\.", ".embedding.projection."),
    (r"\.attn\.q\.", ".attention.query."),
    (r"\.attn\.kv\.", ".attention.key_value."),
    (r"\.attn\.proj\.", ".attention.projection."),
    (r"\.attn\.sr\.", ".attention.reduce."),
    (r"\.attn\.norm\.", ".attention.reduce_norm."),
    (r"\.mlp\.dwconv\.", ".mlp.convolution."),
)
_transformers_names = (
    (r"^pvt_v2\.", ""),
    (r"^encoder\.layers\.", "stages."),
    (r"\.patch_embedding\.proj\.", ".embedding.projection."),
    (r"\.patch_embedding\.layer_norm\.", ".embedding.norm."),
    (r"\.attention\.proj\.", ".attention.projection."),
    (r"\.attention\.spatial_reduction\.", ".attention.reduce."),
    (r"\.attention\.layer_norm\.", ".attention.reduce_norm."),
    (r"\.layer_norm_([12])\.", r".norm\1."),
    (r"^(stages\.\d+)\.layer_norm\.", r"\1.norm."),
    (r"\.mlp\.dense([12])\.", r".mlp.fc\1."),
    (r"\.mlp\.dwconv\.dwconv\.", ".mlp.convolution."),
)


def pvt_v2_backbone(original: Any, origin: str) -> PyramidVisionTransformer:
    """Our PyramidVisionTransformer with the arguments of timm's.

    Raises:
        CheckpointError: its classifier reads no mean.
    """
    if original.global_pool != "avg":
        raise CheckpointError(
            f"{origin}: timm's pooling {original.global_pool!r} has no counterpart in visattn's PVT v2"
        )
    first = [stage.blocks[0] for stage in original.stages]
    reduced = [block.attn.sr for block in first]
    linear = first[0].attn.pool is not None
    return PyramidVisionTransformer(
        tuple(original.pretrained_cfg["input_size"][1:]),
        original.patch_embed.proj.stride[0],
        tuple(block.norm1.normalized_shape[0] for block in first),
        tuple(len(stage.blocks) for stage in original.stages),
        tuple(block.attn.num_heads for block in first),
        reductions=tuple(1 if layer is None else layer.stride[0] for layer in reduced),
        linear=linear,
        mlp_ratios=tuple(block.mlp.fc1.out_features / block.mlp.fc1.in_features for block in first),
        qkv_bias=first[0].attn.q.bias is not None,
        in_channels=original.patch_embed.proj.in_channels,
        norm_eps=first[0].norm1.eps,
        convolution_norm_eps=original.patch_embed.norm.eps,
    )


def pvt_v2_weights(original: Any, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """timm's weights under the names of an `ImageClassifier`."""
    renamed = renamed_by(state, _timm_names)
    return {name if name.startswith("head.") else f"backbone.{name}": tensor for name, tensor in renamed.items()}


def transformers_pvt_v2_backbone(config: Mapping[str, Any], origin: str) -> PyramidVisionTransformer:
    """The backbone that a `config.json` of model_type "pvt_v2" describes.

    Raises:
        CheckpointError: kernels, strides or the activation have no counterpart.
    """
    strides, kernels = tuple(config["strides"]), tuple(config["patch_sizes"])
    if set(strides[1:]) - {2} or kernels != tuple(2 * stride - 1 for stride in strides):
        raise CheckpointError(
            f"{origin}: PVT v2 with patches of {kernels} pixels and strides of {strides} has no counterpart in visattn"
        )
    if config.get("hidden_act", "gelu") != "gelu":
        raise CheckpointError(
            f"{origin}: PVT v2 with activation {config['hidden_act']!r} has no counterpart in visattn"
        )
    size = config.get("image_size", 224)
    return PyramidVisionTransformer(
        (size["height"], size["width"]) if isinstance(size, Mapping) else as_pair(size),
        strides[0],
        config["hidden_sizes"],
        config["depths"],
        config["num_attention_heads"],
        reductions=config["sr_ratios"],
        linear=config.get("linear_attention", False),
        mlp_ratios=config["mlp_ratios"],
        qkv_bias=config.get("qkv_bias", True),
        in_channels=config.get("num_channels", 3),
        norm_eps=config.get("layer_norm_eps", 1e-6),
        convolution_norm_eps=config.get("layer_norm_eps", 1e-6),
    )


def transformers_pvt_v2_weights(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The backbone's weights under our names; key and value become one matrix."""
    renamed = renamed_by(weights, _transformers_names)
    for name in [name for name in renamed if ".attention.key." in name]:
        parts = [renamed.pop(name.replace(".key.", f".{part}.")) for part in ("key", "value")]
        renamed[name.replace(".key.", ".key_value.")] = torch.cat(parts)
    return renamed


def renamed_by(weights: Mapping[str, Tensor], names: tuple[tuple[str, str], ...]) -> dict[str, Tensor]:
    renamed = {}
    for name, tensor in weights.items():
        for pattern, replacement in names:
            name = re.sub(pattern, replacement, name)
        renamed[name] = tensor
    return renamed
