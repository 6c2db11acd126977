"""The layout of Deformable DETR in transformers: SenseTime/deformable-detr, also with box refinement and two stages.

Source: Zhu et al. 2021, https://arxiv.org/abs/2010.04159.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from visattn.checkpoints import transformers
from visattn.checkpoints.detr import nothing
from visattn.checkpoints.native import CheckpointError
from visattn.checkpoints.published_detector import assemble, resnet, resnet_names
from visattn.heads import DeformableDetrHead, ObjectDetector

# The first lines are those of versions before 5; the second of weights that are stored under two names.
_names = (
    (r"^model\.backbone\.(conv_encoder\.)?model\.", "backbone.network."),
    *((rf"^(backbone\.network.*){pattern}", rf"\1{name}") for pattern, name in resnet_names),
    (r"^model\.decoder\.(class|bbox)_embed\.", r"\1_embed."),
    (r"^model\.input_proj\.", "head.neck.projections."),
    (r"^model\.level_embed$", "head.level_embedding"),
    (r"^model\.(encoder|decoder)\.layers\.", r"head.\1."),
    (r"\.self_attn_layer_norm\.", ".norm1."),
    (r"\.encoder_attn_layer_norm\.", ".norm2."),
    (r"^(head\.encoder\.\d+)\.final_layer_norm\.", r"\1.norm2."),
    (r"^(head\.decoder\.\d+)\.final_layer_norm\.", r"\1.norm3."),
    (r"\.self_attn\.", ".attention."),
    (r"\.encoder_attn\.", ".cross_attention."),
    (r"\.sampling_offsets\.", ".offsets."),
    (r"\.attention_weights\.", ".weights."),
    (r"\.value_proj\.", ".value."),
    (r"\.q_proj\.", ".query."),
    (r"\.k_proj\.", ".key."),
    (r"\.v_proj\.", ".own_value."),
    (r"\.(output|out|o)_proj\.", ".projection."),
    (r"^(head\.(?:encoder|decoder)\.\d+)\.fc([12])\.", r"\1.mlp.fc\2."),
    (r"^model\.query_position_embeddings\.weight$", "head.queries.embedding"),
    (r"^model\.reference_points\.", "head.queries.reference."),
    (r"^model\.pos_trans\.", "head.queries.projection."),
    (r"^model\.pos_trans_norm\.", "head.queries.norm."),
    (r"^model\.enc_output\.", "head.proposer.projection."),
    (r"^model\.enc_output_norm\.", "head.proposer.norm."),
)


def build(config: Mapping[str, Any], weights: Mapping[str, Tensor], folder: Path) -> ObjectDetector:
    """The detector that Deformable DETR's `config.json` describes, with these weights.

    Args:
        config: `config.json`; the content of `preprocessor_config.json`, if there is one, under "preprocessor".
        weights: transformers' names and shapes, of this version or of those before 5.
        folder: names the source in errors.

    Raises:
        CheckpointError: an option has no counterpart, or the weights don't fit.
    """
    origin = str(folder)
    two_stage, refined = config.get("two_stage", False), config.get("with_box_refine", False)
    decoder_depth = config.get("decoder_layers", 6)
    renamed = renamed_weights(weights, decoder_depth, two_stage, refined)
    if "head.predictors.0.classes.weight" not in renamed:
        raise CheckpointError(f"{origin}: holds no classifier of queries; a base model finds no objects")
    backbone = resnet(config, origin)
    head = DeformableDetrHead(
        backbone.channels,
        backbone.strides,
        renamed["head.predictors.0.classes.weight"].shape[0],
        levels=levels_of(config, renamed, backbone.strides, origin),
        neck="projection",
        decoder_depth=decoder_depth,
        num_queries=config.get("two_stage_num_proposals" if two_stage else "num_queries", 300),
        query_selection="pure" if two_stage else "static",
        box_refinement=refined,
        class_agnostic_proposals=two_stage,
        denoising=0,
        l1_weight=config.get("bbox_loss_coefficient", 5),
        giou_weight=config.get("giou_loss_coefficient", 2),
        **layer_arguments(config, origin),
    )
    return assemble(backbone, head, renamed, config, origin)


def renamed_weights(
    weights: Mapping[str, Tensor], decoder_depth: int, two_stage: bool, refined: bool
) -> dict[str, Tensor]:
    """transformers' weights under our names; query, key and value become one matrix.

    Prediction layers that several decoder layers share may be stored once, or once for each of them.
    """
    renamed = transformers.rename(weights, _names, nothing)
    transformers.join(renamed, (".attention.query.", ".attention.key.", ".attention.own_value."), ".attention.qkv.")
    heads = {name: renamed.pop(name) for name in list(renamed) if re.match(r"(class|bbox)_embed\.", name)}
    places = [(f"head.predictors.{index}", index) for index in range(decoder_depth if refined else 1)]
    if two_stage:
        places.append(("head.proposer.predictor", decoder_depth))
    for place, index in places:
        for name, tensor in heads.items():
            part = re.match(r"(?:class_embed\.0|bbox_embed\.0\.layers\.(\d))\.(weight|bias)$", name)
            if part is not None:
                stored = heads.get(name.replace("embed.0", f"embed.{index}", 1), tensor)
                layer = "classes" if part[1] is None else f"box.{2 * int(part[1])}"
                renamed[f"{place}.{layer}.{part[2]}"] = stored
    return renamed


def levels_of(
    config: Mapping[str, Any], renamed: Mapping[str, Tensor], strides: Sequence[int], origin: str
) -> tuple[int, ...]:
    """The levels of the maps that are read: the last of the backbone's, as many as have 1x1 kernels, and those behind.

    Raises:
        CheckpointError: there are no such kernels, or fewer maps.
    """
    count = config.get("num_feature_levels", 4)
    kernels = [renamed.get(f"head.neck.projections.{level}.0.weight") for level in range(count)]
    present = sum(kernel is not None and kernel.shape[-1] == 1 for kernel in kernels)
    if not 0 < present <= len(strides):
        raise CheckpointError(f"{origin}: {present} maps of a backbone that has {len(strides)} are projected")
    first = strides[-present].bit_length() - 1
    return tuple(range(first, first + count))


def layer_arguments(config: Mapping[str, Any], origin: str) -> dict[str, Any]:
    """What encoder and decoder share.

    Raises:
        CheckpointError: they differ, or an option has no counterpart.
    """
    for option in ("encoder_attention_heads", "encoder_ffn_dim", "encoder_n_points"):
        other = option.replace("encoder", "decoder")
        if config.get(option) != config.get(other):
            raise CheckpointError(
                f"{origin}: {option} {config.get(option)} and {other} {config.get(other)} differ, in no known one"
            )
    for option, value in (("position_embedding_type", "sine"), ("activation_function", "relu")):
        if config.get(option, value) != value:
            raise CheckpointError(f"{origin}: {option} {config[option]!r} has no counterpart in visattn")
    return {
        "dim": config.get("d_model", 256),
        "num_heads": config.get("encoder_attention_heads", 8),
        "encoder_depth": config.get("encoder_layers", 6),
        "hidden_dim": config.get("encoder_ffn_dim", 1024),
        "points": config.get("encoder_n_points", 4),
        "dropout": config.get("dropout", 0.1),
    }
