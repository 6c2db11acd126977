"""The layout of Conditional DETR in transformers, such as microsoft/conditional-detr-resnet-50.

Source: Meng et al. 2021, https://arxiv.org/abs/2108.06152.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from visattn.checkpoints import detr, transformers
from visattn.checkpoints.published_detector import assemble, resnet
from visattn.heads import ConditionalDetrHead, ObjectDetector

# What comes before the names that DETR has, too; the first lines are those of versions before 5.
_names = (
    (r"(decoder\.layers\.\d+)\.sa_([qk])(content|pos)_proj\.", r"\1.self_attn.\2_\3_proj."),
    (r"(decoder\.layers\.\d+)\.sa_v_proj\.", r"\1.self_attn.v_proj."),
    (r"(decoder\.layers\.\d+)\.ca_([qk])(content|pos)_proj\.", r"\1.encoder_attn.\2_\3_proj."),
    (r"(decoder\.layers\.\d+)\.ca_qpos_sine_proj\.", r"\1.encoder_attn.q_pos_sine_proj."),
    (r"(decoder\.layers\.\d+)\.ca_v_proj\.", r"\1.encoder_attn.v_proj."),
    (r"\.([qk])_content_proj\.", r".\1_proj."),
    (r"\.self_attn\.([qk])_pos_proj\.", r".self_attn.place_\1."),
    (r"\.encoder_attn\.q_pos_sine_proj\.", ".encoder_attn.query_place."),
    (r"\.encoder_attn\.q_pos_proj\.", ".encoder_attn.query_position."),
    (r"\.encoder_attn\.k_pos_proj\.", ".encoder_attn.key_place."),
    (r"^model\.decoder\.ref_point_head\.layers\.0\.", "head.reference_head.0."),
    (r"^model\.decoder\.ref_point_head\.layers\.1\.", "head.reference_head.2."),
    (r"^model\.decoder\.query_scale\.layers\.0\.", "head.place_scale.0."),
    (r"^model\.decoder\.query_scale\.layers\.1\.", "head.place_scale.2."),
)


def build(config: Mapping[str, Any], weights: Mapping[str, Tensor], folder: Path) -> ObjectDetector:
    """The detector that Conditional DETR's `config.json` describes, with these weights.

    Args:
        config: `config.json`; the content of `preprocessor_config.json`, if there is one, under "preprocessor".
        weights: transformers' names and shapes, of this version or of those before 5.
        folder: names the source in errors.

    Raises:
        CheckpointError: an option has no counterpart, or the weights don't fit.
    """
    origin = str(folder)
    detr.refuse_masks(weights, origin)
    renamed = detr.renamed_weights(transformers.rename(weights, _names, detr.nothing))
    transformers.join(renamed, (".attention.place_q.", ".attention.place_k."), ".attention.place.")
    backbone = resnet(config, origin)
    head = ConditionalDetrHead(
        backbone.channels,
        backbone.strides,
        detr.classes_of(renamed, origin),
        class_weight=config.get("cls_loss_coefficient", 2),
        l1_weight=config.get("bbox_loss_coefficient", 5),
        giou_weight=config.get("giou_loss_coefficient", 2),
        **detr.head_arguments({"num_queries": 300} | dict(config), origin),
    )
    return assemble(backbone, head, renamed, config, origin)
