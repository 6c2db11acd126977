"""Hiera in timm's layout (its class Hiera) and in that of transformers (model_type "hiera")."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from visattn.backbones import Hiera
from visattn.backbones.embedding import resample_positions
from visattn.backbones.features import as_pair
from visattn.checkpoints.native import CheckpointError

# Patterns of names and ours, applied one after the other.
_timm_names = (
    (r"^head\.norm\.", "norm."),
    (r"^head\.fc\.", "head."),
    (r"^pos_embed$", "position_embedding"),
    (r"^pos_embed_win$", "unit_position_embedding"),
    (r"^patch_embed\.proj\.", "patch_embedding.projection."),
    (r"^(blocks\.\d+)\.proj\.", r"\1.expansion."),
    (r"\.attn\.proj\.", ".attention.projection."),
    (r"\.attn\.qkv\.", ".attention.qkv."),
    (r"\.ls([12])\.gamma$", r".layer_scale\1"),
)
_transformers_names = (
    (r"^hiera\.", ""),
    (r"^pooler\.layernorm\.", "norm."),
    (r"^embeddings\.position_embeddings$", "position_embedding"),
    (r"^embeddings\.patch_embeddings\.projection\.", "patch_embedding.projection."),
    (r"^(blocks\.\d+)\.proj\.", r"\1.expansion."),
    (r"\.attn\.proj\.", ".attention.projection."),
    (r"\.attn\.qkv\.", ".attention.qkv."),
    (r"\.layernorm_before\.", ".norm1."),
    (r"\.layernorm_after\.", ".norm2."),
)


def hiera_backbone(original: Any, origin: str) -> Hiera:
    """Our Hiera with the arguments of timm's.

    Raises:
        CheckpointError: a part has no counterpart.
    """
    blocks, patches = list(original.blocks), original.patch_embed.proj
    firsts = [blocks[0], *(blocks[end + 1] for end in original.stage_ends[:-1])]  # of each stage
    depths = [end - start for start, end in zip([-1, *original.stage_ends[:-1]], original.stage_ends, strict=True)]
    dims, stride = [block.dim_out for block in firsts], patches.stride[0]
    unsupported = None
    if patches.kernel_size != (2 * stride - 1,) * 2 or patches.padding != (stride - 1,) * 2:
        unsupported = f"patches of {patches.kernel_size} pixels and stride {patches.stride}"
    elif original.pos_embed is None:
        unsupported = "position embedding of space and time apart"
    elif tuple(original.q_stride) != (2, 2) or original.q_pool != len(depths) - 1:
        unsupported = f"pooling of queries by {original.q_stride} in {original.q_pool} of {len(depths)} stages"
    elif any(wide != 2 * dim for dim, wide in itertools.pairwise(dims)):
        unsupported = f"stages of {dims} channels"
    elif len(set(original.mask_unit_size)) > 1:
        unsupported = f"mask units of {original.mask_unit_size} tokens"
    elif original.head.pool_type != "avg":
        unsupported = f"pooling {original.head.pool_type!r}"
    if unsupported:
        raise CheckpointError(f"{origin}: timm's {unsupported} has no counterpart in visattn's Hiera")
    within_units = [block.attn.use_mask_unit_attn for block in [*firsts[1:], blocks[-1]]]  # the first lags by one
    stretched = original.pos_embed_win is not None
    return Hiera(
        tuple(side * stride for side in original.tokens_spatial_shape),
        stride,
        dims[0],
        depths,
        tuple(block.attn.heads for block in firsts),
        unit_size=original.mask_unit_size[0],
        unit_attention=within_units,
        widening="pooling" if len(firsts) > 1 and firsts[1].proj is None else "projection",
        position_grid=tuple(original.pos_embed.shape[2:]) if stretched else None,
        unit_positions=stretched,
        mlp_ratio=blocks[0].mlp.fc1.out_features / dims[0],
        layer_scale=None if isinstance(blocks[0].ls1, nn.Identity) else 1.0,
        in_channels=patches.in_channels,
        norm_eps=blocks[0].norm1.eps,
    )


def hiera_weights(original: Any, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """timm's weights under the names of an `ImageClassifier`; positions resampled where its model has other sizes."""
    renamed = {}
    for name, tensor in state.items():
        if name.startswith("pos_embed") and tensor.ndim == 4:  # (1, dim, height, width)
            tensor = tensor.flatten(2).transpose(1, 2)
        elif name == "pos_embed" and tensor.shape[1] != original.pos_embed.shape[1]:
            side = round(tensor.shape[1] ** 0.5)
            tensor = resample_positions(tensor, (side, side), tuple(original.tokens_spatial_shape))
        for pattern, replacement in _timm_names:
            name = re.sub(pattern, replacement, name)
        renamed[name if name.startswith("head.") else f"backbone.{name}"] = tensor
    return renamed


def transformers_hiera_backbone(config: Mapping[str, Any], origin: str) -> Hiera:
    """The backbone that a `config.json` of model_type "hiera" describes.

    Raises:
        CheckpointError: a part has no counterpart.
    """
    depths, stride = config["depths"], as_pair(config["patch_stride"])
    unit, within_units = as_pair(config["masked_unit_size"]), [bool(flag) for flag in config["masked_unit_attention"]]
    unsupported = None
    if (
        as_pair(config["patch_size"]) != (2 * stride[0] - 1,) * 2
        or as_pair(config["patch_padding"]) != (stride[0] - 1,) * 2
    ):
        unsupported = f"patches of {config['patch_size']} pixels and stride {stride}"
    elif as_pair(config["query_stride"]) != (2, 2) or config["num_query_pool"] != len(depths) - 1:
        unsupported = f"pooling of queries by {config['query_stride']} in {config['num_query_pool']} stages"
    elif config["embed_dim_multiplier"] != 2:
        unsupported = f"stages {config['embed_dim_multiplier']} times as wide as those before them"
    elif unit[0] != unit[1] or within_units != sorted(within_units, reverse=True):
        unsupported = f"mask units of {unit} tokens in stages {within_units}"
    elif config.get("hidden_act", "gelu") != "gelu":
        unsupported = f"activation {config['hidden_act']!r}"
    if unsupported:
        raise CheckpointError(f"{origin}: Hiera with {unsupported} has no counterpart in visattn")
    return Hiera(
        as_pair(config["image_size"]),
        stride[0],
        config["embed_dim"],
        depths,
        config["num_heads"],
        unit_size=unit[0],
        unit_attention=within_units,
        position_antialias=False,
        mlp_ratio=config.get("mlp_ratio", 4.0),
        in_channels=config.get("num_channels", 3),
        norm_eps=config.get("layer_norm_eps", 1e-6),
    )


def transformers_hiera_weights(weights: Mapping[str, Tensor], backbone: Hiera) -> dict[str, Tensor]:
    """The backbone's weights under our names; blocks are counted through all stages."""
    starts, renamed = (0, *backbone.stage_ends), {}
    for name, tensor in weights.items():
        name = re.sub(
            r"^(?:hiera\.)?encoder\.stages\.(\d+)\.layers\.(\d+)\.",
            lambda found: f"blocks.{starts[int(found[1])] + int(found[2])}.",
            name,
        )
        for pattern, replacement in _transformers_names:
            name = re.sub(pattern, replacement, name)
        renamed[name] = tensor
    return renamed
