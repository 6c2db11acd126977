"""RT-DETR, both versions, in the layout of transformers, such as PekingU/rtdetr_r18vd and PekingU/rtdetr_v2_r18vd.

Source: Zhao et al. 2024, https://arxiv.org/abs/2304.08069; Lv et al. 2024, https://arxiv.org/abs/2407.17140.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from visattn.backbones import ResNetD
from visattn.checkpoints import transformers
from visattn.checkpoints.native import CheckpointError
from visattn.checkpoints.published_detector import assemble
from visattn.heads import ObjectDetector, RtDetrHead

_samplings = {"default": "bilinear", "discrete": "nearest"}
# Options of which one value is read, that of everything published.
_fixed: dict[str, Any] = {
    "normalize_before": False,
    "learn_initial_query": False,
    "eval_size": None,
    "positional_encoding_temperature": 10_000,
    "layer_norm_eps": 1e-5,
    "batch_norm_eps": 1e-5,
}
_fixed_of_backbone: dict[str, Any] = {
    "model_type": "rt_detr_resnet",
    "hidden_act": "relu",
    "downsample_in_first_stage": False,
    "downsample_in_bottleneck": False,
}
_names = (
    (r"^model\.backbone\.model\.embedder\.embedder\.", "backbone.stem."),
    (r"^model\.backbone\.model\.encoder\.stages\.(\d+)\.layers\.", r"backbone.stages.\1."),
    (r"^(backbone\..*)\.layer\.0\.", r"\1.conv1."),
    (r"^(backbone\..*)\.layer\.1\.", r"\1.conv2."),
    (r"^(backbone\..*)\.layer\.2\.", r"\1.conv3."),
    (r"\.shortcut\.(1\.)?(?=convolution|normalization)", ".shortcut.projection."),
    (r"\.normalization\.", ".norm."),
    (r"^model\.encoder_input_proj\.(\d+)\.0\.", r"head.encoder.projections.\1.convolution."),
    (r"^model\.encoder_input_proj\.(\d+)\.1\.", r"head.encoder.projections.\1.norm."),
    (r"^model\.decoder_input_proj\.(\d+)\.0\.", r"head.projections.\1.convolution."),
    (r"^model\.decoder_input_proj\.(\d+)\.1\.", r"head.projections.\1.norm."),
    (r"^model\.encoder\.(encoder|aifi)\.0\.layers\.", "head.encoder.layers."),  # before version 5, and since
    (r"^model\.encoder\.lateral_convs\.", "head.encoder.laterals."),
    (r"^model\.encoder\.fpn_blocks\.", "head.encoder.top_down."),
    (r"^model\.encoder\.downsample_convs\.", "head.encoder.downsamples."),
    (r"^model\.encoder\.pan_blocks\.", "head.encoder.bottom_up."),
    (r"\.bottlenecks\.", ".blocks."),
    (r"\.conv\.", ".convolution."),
    (r"^model\.enc_output\.0\.", "head.selection.projection."),
    (r"^model\.enc_output\.1\.", "head.selection.norm."),
    (r"^model\.enc_score_head\.", "head.selection.class_head."),
    (r"^model\.enc_bbox_head\.", "head.selection.box_head."),
    (r"^model\.denoising_class_embed\.", "head.label_embedding."),
    (r"^model\.decoder\.query_pos_head\.", "head.decoder.query_position."),
    (r"^(model\.decoder\.)?bbox_embed\.", "head.decoder.box_heads."),
    (r"^(model\.decoder\.)?class_embed\.", "head.decoder.class_heads."),
    (r"^model\.decoder\.layers\.", "head.decoder.layers."),
    (r"^(head\.(?:selection|decoder)\..*(?:box_head|box_heads\.\d+|query_position))\.layers\.0\.", r"\1.0."),
    (r"^(head\.(?:selection|decoder)\..*(?:box_head|box_heads\.\d+|query_position))\.layers\.1\.", r"\1.2."),
    (r"^(head\.(?:selection|decoder)\..*(?:box_head|box_heads\.\d+|query_position))\.layers\.2\.", r"\1.4."),
    (r"\.self_attn\.", ".attention."),
    (r"\.attention\.q_proj\.", ".attention.query."),
    (r"\.attention\.k_proj\.", ".attention.key."),
    (r"\.attention\.v_proj\.", ".attention.value."),
    (r"\.attention\.(out|o)_proj\.", ".attention.projection."),
    (r"\.encoder_attn\.sampling_offsets\.", ".cross_attention.offsets."),
    (r"\.encoder_attn\.attention_weights\.", ".cross_attention.weights."),
    (r"\.encoder_attn\.value_proj\.", ".cross_attention.value."),
    (r"\.encoder_attn\.output_proj\.", ".cross_attention.projection."),
    (r"\.self_attn_layer_norm\.", ".norm1."),
    (r"\.encoder_attn_layer_norm\.", ".norm2."),
    (r"^(head\.encoder\.layers\.\d+)\.final_layer_norm\.", r"\1.norm2."),
    (r"^(head\.decoder\.layers\.\d+)\.final_layer_norm\.", r"\1.norm3."),
    (r"^(head\.(?:encoder|decoder)\.layers\.\d+)\.(fc[12])\.", r"\1.mlp.\2."),
)
_unused = re.compile(r"\.n_points_scale$")  # follows from the numbers of points


def build(config: Mapping[str, Any], weights: Mapping[str, Tensor], folder: Path) -> ObjectDetector:
    """The detector that `config.json` describes, with these weights.

    Args:
        config: `config.json`; the content of `preprocessor_config.json`, if there is one, under "preprocessor".
        weights: transformers' names and shapes, of this version or of those before 5.
        folder: names the source in errors.

    Raises:
        CheckpointError: an option has no counterpart, or the weights don't fit.
    """
    origin = str(folder)
    if "model.enc_score_head.weight" not in weights:
        raise CheckpointError(f"{origin}: holds no classifier of queries, model.enc_score_head.weight")
    refuse_unknown(config, _fixed, "an RT-DETR", origin)
    renamed = renamed_weights(weights)
    num_classes = renamed["head.selection.class_head.weight"].shape[0]
    try:
        backbone = resnet(config, origin)
        head = RtDetrHead(backbone.channels, backbone.strides, num_classes, **head_arguments(config, origin))
    except CheckpointError:
        raise
    except (IndexError, ValueError) as error:
        raise CheckpointError(f"{origin}: {error}") from error
    # Behind the labels stands one more row, for places without an object.
    if "head.label_embedding.weight" in renamed:
        renamed["head.label_embedding.weight"] = renamed["head.label_embedding.weight"][:num_classes]
    published = {"do_normalize": False, "size": {"height": 640, "width": 640}} | config.get("preprocessor", {})
    return assemble(backbone, head, renamed, dict(config) | {"preprocessor": published}, origin)


def renamed_weights(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """transformers' weights under our names; query, key and value become one matrix.

    The decoder's classifiers and boxes stand in a file under one name or under two.
    """
    renamed = transformers.rename(weights, _names, _unused)
    transformers.join(renamed, (".attention.query.", ".attention.key.", ".attention.value."), ".attention.qkv.")
    return renamed


def resnet(config: Mapping[str, Any], origin: str) -> ResNetD:
    """The backbone that `config.json` describes under "backbone_config".

    Raises:
        CheckpointError: it is another network than a ResNet-D, or an option has no counterpart.
        ValueError: stages don't fit each other.
    """
    inner = config.get("backbone_config")
    if inner is None:
        raise CheckpointError(f"{origin}: doesn't describe its backbone in backbone_config; known is rt_detr_resnet")
    refuse_unknown(inner, _fixed_of_backbone, "a backbone", origin)
    stages = inner.get("out_indices") or inner.get("_out_indices") or (2, 3, 4)  # of which 0 is the stem
    return ResNetD(
        image_size=640,
        depths=inner.get("depths", (3, 4, 6, 3)),
        widths=inner.get("hidden_sizes", (256, 512, 1024, 2048)),
        bottleneck=inner.get("layer_type", "bottleneck") == "bottleneck",
        stem_width=inner.get("embedding_size", 64),
        out_stages=[stage - 1 for stage in stages],
        frozen_norms=config.get("freeze_backbone_batch_norms", True),
        in_channels=inner.get("num_channels", 3),
    )


def head_arguments(config: Mapping[str, Any], origin: str) -> dict[str, Any]:
    """The options of our head.

    Raises:
        CheckpointError: an option has no counterpart.
    """
    strides = config.get("feat_strides", (8, 16, 32))
    maps = len(strides)
    for option, value in (("num_feature_levels", maps), ("decoder_n_levels", maps)):
        if config.get(option, 3) != value:
            raise CheckpointError(f"{origin}: {option} {config.get(option, 3)} differs from the {value} feat_strides")
    if list(config.get("encode_proj_layers", (maps - 1,))) != [maps - 1]:
        raise CheckpointError(
            f"{origin}: self-attention on the maps {config['encode_proj_layers']} (encode_proj_layers) has no "
            f"counterpart in visattn, where only the coarsest has it, {maps - 1} here"
        )
    method = config.get("decoder_method", "default")
    if method not in _samplings:
        raise CheckpointError(f"{origin}: decoder_method {method!r} is unknown; known are {', '.join(_samplings)}")
    points = config.get("decoder_n_points", 4)
    return {
        "levels": [stride.bit_length() - 1 for stride in strides],
        "encoder_dim": config.get("encoder_hidden_dim", 256),
        "encoder_depth": config.get("encoder_layers", 1),
        "encoder_heads": config.get("encoder_attention_heads", 8),
        "encoder_hidden_dim": config.get("encoder_ffn_dim", 1024),
        "expansion": config.get("hidden_expansion", 1.0),
        "activation": transformers.activation_of(config.get("activation_function", "silu"), origin),
        "attention_activation": transformers.activation_of(config.get("encoder_activation_function", "gelu"), origin),
        "dim": config.get("d_model", 256),
        "num_queries": config.get("num_queries", 300),
        "depth": config.get("decoder_layers", 6),
        "num_heads": config.get("decoder_attention_heads", 8),
        "hidden_dim": config.get("decoder_ffn_dim", 1024),
        "decoder_activation": transformers.activation_of(config.get("decoder_activation_function", "relu"), origin),
        "points": points,
        "offset_scale": config.get("decoder_offset_scale", 0.5),
        "sampling": _samplings[method],
        "dropout": config.get("dropout", 0.0),
        "denoising_queries": config.get("num_denoising", 100),
        "label_noise": config.get("label_noise_ratio", 0.5),
        "box_noise": config.get("box_noise_scale", 1.0),
    }


def refuse_unknown(config: Mapping[str, Any], fixed: Mapping[str, Any], what: str, origin: str) -> None:
    """Refuses options of which only one value has a counterpart.

    Raises:
        CheckpointError: one has another value.
    """
    for option, value in fixed.items():
        if config.get(option, value) != value:
            raise CheckpointError(
                f"{origin}: {what} with {option} {config[option]!r} has no counterpart in visattn, only with {value!r}"
            )
