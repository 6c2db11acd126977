"""transformers' layout of NAT and DiNAT, from its releases up to 4.40 that had both."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from visattn.backbones import NeighborhoodAttentionTransformer
from visattn.checkpoints.native import CheckpointError

# Beginnings or middles of their names and ours, applied one after the other.
_names = (
    (r"^(nat|dinat)\.", ""),
    (r"^embeddings\.patch_embeddings\.", "patch_embedding."),
    (r"^embeddings\.norm\.", "patch_embedding.norm."),
    (r"^encoder\.levels\.(\d+)\.layers\.", r"stages.\1.blocks."),
    (r"^layernorm\.", "norm."),
    (r"\.attention\.self\.rpb$", ".attention.relative_position_bias"),
    (r"\.attention\.self\.", ".attention."),
    (r"\.attention\.output\.dense\.", ".attention.projection."),
    (r"\.intermediate\.dense\.", ".mlp.fc1."),
    (r"(blocks\.\d+)\.output\.dense\.", r"\1.mlp.fc2."),
    (r"\.layernorm_before\.", ".norm1."),
    (r"\.layernorm_after\.", ".norm2."),
)


def nat_backbone(config: Mapping[str, Any], origin: str) -> NeighborhoodAttentionTransformer:
    """The backbone that a `config.json` of model_type "nat" or "dinat" describes.

    Raises:
        CheckpointError: the patches are not of 4 pixels, or the activation has no counterpart.
    """
    if config.get("patch_size", 4) != 4:
        raise CheckpointError(f"{origin}: NAT with patches of {config['patch_size']} pixels was never published")
    if config.get("hidden_act", "gelu") != "gelu":
        raise CheckpointError(f"{origin}: NAT with activation {config['hidden_act']!r} has no counterpart in visattn")
    scale = config.get("layer_scale_init_value", 0.0)
    return NeighborhoodAttentionTransformer(
        config.get("image_size", 224),
        dim=config["embed_dim"],
        depths=config["depths"],
        num_heads=config["num_heads"],
        kernel_size=config["kernel_size"],
        dilation=config["dilations"] if config["model_type"] == "dinat" else 1,
        pad_small_maps=True,
        mlp_ratio=config["mlp_ratio"],
        qkv_bias=config.get("qkv_bias", True),
        layer_scale=scale if scale > 0 else None,
        in_channels=config.get("num_channels", 3),
        norm_eps=config.get("layer_norm_eps", 1e-5),
    )


def nat_weights(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The backbone's weights under our names; query, key and value become one matrix, both layer scales two vectors."""
    renamed: dict[str, Tensor] = {}
    for name, tensor in weights.items():
        for pattern, replacement in _names:
            name = re.sub(pattern, replacement, name)
        downsampling = re.match(r"encoder\.levels\.(\d+)\.(downsample\..*)", name)
        if downsampling:  # theirs ends a stage, ours begins the next
            name = f"stages.{int(downsampling[1]) + 1}.{downsampling[2]}"
        if name.endswith(".layer_scale_parameters"):
            block = name.removesuffix("_parameters")
            renamed[f"{block}1"], renamed[f"{block}2"] = tensor.unbind(0)
        else:
            renamed[name] = tensor
    for name in [name for name in renamed if ".attention.query." in name]:
        parts = (name.replace(".query.", f".{part}.") for part in ("query", "key", "value"))
        renamed[name.replace(".query.", ".qkv.")] = torch.cat([renamed.pop(part) for part in parts])
    return renamed
