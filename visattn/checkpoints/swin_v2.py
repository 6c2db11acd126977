"""Swin V2 in timm's layout (its class SwinTransformerV2) and in that of transformers (model_type "swinv2")."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from visattn.backbones import SwinTransformerV2
from visattn.backbones.features import as_pair
from visattn.checkpoints.native import CheckpointError

# Patterns of names and ours, applied one after the other.
_timm_names = (
    (r"^patch_embed\.proj\.", "patch_embedding.projection."),
    (r"^patch_embed\.norm\.", "patch_embedding.norm."),
    (r"^layers\.", "stages."),
    (r"\.attn\.cpb_mlp\.", ".attention.position_mlp."),
    (r"\.attn\.q_bias$", ".attention.qkv.query_bias"),
    (r"\.attn\.v_bias$", ".attention.qkv.value_bias"),
    (r"\.attn\.proj\.", ".attention.projection."),
    (r"\.attn\.", ".attention."),
    (r"^head\.fc\.", "head."),
)
_transformers_names = (
    (r"^swinv2\.", ""),
    (r"^embeddings\.patch_embeddings\.projection\.", "patch_embedding.projection."),
    (r"^embeddings\.norm\.", "patch_embedding.norm."),
    (r"^encoder\.layers\.", "stages."),
    (r"^layernorm\.", "norm."),
    (r"\.attention\.self\.continuous_position_bias_mlp\.", ".attention.position_mlp."),
    (r"\.attention\.self\.(query|value)\.bias$", r".attention.qkv.\1_bias"),
    (r"\.attention\.self\.", ".attention."),
    (r"\.attention\.output\.dense\.", ".attention.projection."),
    (r"\.intermediate\.dense\.", ".mlp.fc1."),
    (r"(blocks\.\d+)\.output\.dense\.", r"\1.mlp.fc2."),
    (r"\.layernorm_before\.", ".norm1."),
    (r"\.layernorm_after\.", ".norm2."),
)
# Used by masked image modelling, or made anew by the model.
_transformers_unused = re.compile(r"(^|\.)(embeddings\.mask_token|relative_position_index|relative_coords_table)$")


def swin_v2_backbone(original: Any, origin: str) -> SwinTransformerV2:
    """Our SwinTransformerV2 with the arguments of timm's.

    Raises:
        CheckpointError: pooling, activation, or how maps smaller than a window are treated has no counterpart.
    """
    first = [stage.blocks[0] for stage in original.layers]
    patch_size = original.patch_embed.patch_size
    unsupported = None
    if original.global_pool != "avg":
        unsupported = f"pooling {original.global_pool!r}"
    elif type(first[0].mlp.act).__name__ != "GELU":
        unsupported = f"activation {type(first[0].mlp.act).__name__}"
    elif any(block.always_partition for block in first):
        unsupported = "windows larger than the map (always_partition)"
    elif patch_size[0] != patch_size[1]:
        unsupported = f"patches of {patch_size} pixels"
    if unsupported:
        raise CheckpointError(f"{origin}: Swin V2 with timm's {unsupported} has no counterpart in visattn")
    return SwinTransformerV2(
        tuple(original.patch_embed.img_size),
        patch_size[0],
        original.embed_dim,
        tuple(len(stage.blocks) for stage in original.layers),
        tuple(block.attn.num_heads for block in first),
        window_size=tuple(tuple(block.window_size) for block in first),
        reference_window_size=reference([block.attn.pretrained_window_size[0] for block in first]),
        mlp_ratio=first[0].mlp.fc1.out_features / original.embed_dim,
        qkv_bias=first[0].attn.q_bias is not None,
        in_channels=original.patch_embed.proj.in_channels,
        norm_eps=original.norm.eps,
    )


def reference(windows: Sequence[int]) -> tuple[int | None, ...]:
    """The windows of an earlier training, where 0 stands for none."""
    return tuple(side or None for side in windows)


def swin_v2_weights(original: Any, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """timm's weights under the names of an `ImageClassifier`."""
    renamed = renamed_by(state, _timm_names)
    return {name if name.startswith("head.") else f"backbone.{name}": tensor for name, tensor in renamed.items()}


def transformers_swin_v2_backbone(config: Mapping[str, Any], origin: str) -> SwinTransformerV2:
    """The backbone that a `config.json` of model_type "swinv2" describes.

    Raises:
        CheckpointError: positions, patches or the activation have no counterpart.
    """
    patch_size, activation = as_pair(config.get("patch_size", 4)), config.get("hidden_act", "gelu")
    unsupported = None
    if config.get("use_absolute_embeddings"):
        unsupported = "absolute position embeddings"
    elif activation != "gelu":
        unsupported = f"activation {activation!r}"
    elif patch_size[0] != patch_size[1]:
        unsupported = f"patches of {patch_size} pixels"
    if unsupported:
        raise CheckpointError(f"{origin}: Swin V2 with {unsupported} has no counterpart in visattn")
    return SwinTransformerV2(
        as_pair(config.get("image_size", 224)),
        patch_size[0],
        config["embed_dim"],
        config["depths"],
        config["num_heads"],
        window_size=config["window_size"],
        reference_window_size=reference(config.get("pretrained_window_sizes") or (0,) * len(config["depths"])),
        mlp_ratio=config.get("mlp_ratio", 4.0),
        qkv_bias=config.get("qkv_bias", True),
        in_channels=config.get("num_channels", 3),
        norm_eps=config.get("layer_norm_eps", 1e-5),
        padding="before_shift",
    )


def transformers_swin_v2_weights(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights of transformers under our names; query, key and value become one matrix."""
    used = {name: tensor for name, tensor in weights.items() if not _transformers_unused.search(name)}
    renamed: dict[str, Tensor] = {}
    for name, tensor in renamed_by(used, _transformers_names).items():
        stage = re.match(r"stages\.(\d+)\.downsample\.", name)
        if stage:  # theirs ends a stage, ours begins the next
            name = name.replace(f"stages.{stage[1]}.", f"stages.{int(stage[1]) + 1}.", 1)
        renamed[name] = tensor
    for name in [name for name in renamed if name.endswith(".attention.query.weight")]:
        parts = [name.replace(".query.", f".{part}.") for part in ("query", "key", "value")]
        renamed[name.replace(".query.", ".qkv.")] = torch.cat([renamed.pop(part) for part in parts])
    return renamed


def renamed_by(weights: Mapping[str, Tensor], names: Sequence[tuple[str, str]]) -> dict[str, Tensor]:
    """Weights under our names, with one scale of the cosines for each head."""
    renamed = {}
    for name, tensor in weights.items():
        for pattern, replacement in names:
            name = re.sub(pattern, replacement, name)
        renamed[name] = tensor.flatten() if name.endswith(".logit_scale") else tensor
    return renamed
