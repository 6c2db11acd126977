"""The two layouts of DETR (facebook/detr-resnet-50 and its kin): transformers', and the original repository's.

Source: Carion et al. 2020, https://arxiv.org/abs/2005.12872, and https://github.com/facebookresearch/detr.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor
from torchvision.models.detection import FasterRCNN_ResNet50_FPN_Weights

from visattn.backbones import TimmBackbone
from visattn.checkpoints import transformers
from visattn.checkpoints.native import CheckpointError
from visattn.checkpoints.published_detector import assemble, resnet, resnet_names
from visattn.heads import DetrHead, ObjectDetector

# Names under which the original repository's hubconf.py offers its models. Of those with "dc5" the last stage of the
# ResNet is dilated instead of strided, which their weights don't show.
original_architectures = ("detr_resnet50", "detr_resnet101", "detr_resnet50_dc5", "detr_resnet101_dc5")

_names = (
    (r"^model\.", ""),
    (r"^backbone\.(conv_encoder\.)?model\.", "backbone.network."),
    *((rf"^(backbone\.network.*){pattern}", rf"\1{name}") for pattern, name in resnet_names),
    (r"^(encoder|decoder)\.", r"head.\1."),
    (r"^head\.(encoder|decoder)\.layers\.", r"head.\1."),
    (r"^head\.decoder\.layernorm\.", "head.norm."),
    (r"\.self_attn_layer_norm\.", ".norm1."),
    (r"\.encoder_attn_layer_norm\.", ".norm2."),
    (r"^(head\.encoder\.\d+)\.final_layer_norm\.", r"\1.norm2."),
    (r"^(head\.decoder\.\d+)\.final_layer_norm\.", r"\1.norm3."),
    (r"\.self_attn\.", ".attention."),
    (r"\.encoder_attn\.", ".cross_attention."),
    (r"\.q_proj\.", ".query."),
    (r"\.k_proj\.", ".key."),
    (r"\.v_proj\.", ".value."),
    (r"\.(out|o)_proj\.", ".projection."),
    (r"^(head\.(?:encoder|decoder)\.\d+)\.fc([12])\.", r"\1.mlp.fc\2."),
    (r"^query_position_embeddings\.", "head.query_embedding."),
    (r"^input_projection\.", "head.input_projection."),
    (r"^class_labels_classifier\.", "head.class_head."),
    (r"^bbox_predictor\.layers\.0\.", "head.box_head.0."),
    (r"^bbox_predictor\.layers\.1\.", "head.box_head.2."),
    (r"^bbox_predictor\.layers\.2\.", "head.box_head.4."),
)
_original_names = (
    (r"^backbone\.0\.body\.", "backbone.network."),
    (r"^transformer\.(encoder|decoder)\.layers\.", r"head.\1."),
    (r"^transformer\.decoder\.norm\.", "head.norm."),
    (r"\.self_attn\.in_proj_", ".attention.qkv."),
    (r"\.multihead_attn\.in_proj_", ".cross_attention.joint."),
    (r"\.self_attn\.out_proj\.", ".attention.projection."),
    (r"\.multihead_attn\.out_proj\.", ".cross_attention.projection."),
    (r"\.linear([12])\.", r".mlp.fc\1."),
    (r"^query_embed\.", "head.query_embedding."),
    (r"^input_proj\.", "head.input_projection."),
    (r"^class_embed\.", "head.class_head."),
    (r"^bbox_embed\.layers\.0\.", "head.box_head.0."),
    (r"^bbox_embed\.layers\.1\.", "head.box_head.2."),
    (r"^bbox_embed\.layers\.2\.", "head.box_head.4."),
)
nothing = re.compile(r"(?!)")  # no name is left out


def build(config: Mapping[str, Any], weights: Mapping[str, Tensor], folder: Path) -> ObjectDetector:
    """The detector that DETR's `config.json` describes, with these weights.

    Args:
        config: `config.json`; the content of `preprocessor_config.json`, if there is one, under "preprocessor".
        weights: transformers' names and shapes, of this version or of those before 5.
        folder: names the source in errors.

    Raises:
        CheckpointError: an option has no counterpart, or the weights don't fit.
    """
    refuse_masks(weights, str(folder))
    renamed = renamed_weights(weights)
    backbone = resnet(config, str(folder))
    head = DetrHead(
        backbone.channels,
        backbone.strides,
        classes_of(renamed, str(folder)) - 1,
        no_object_weight=config.get("eos_coefficient", 0.1),
        class_weight=config.get("class_cost", 1),
        l1_weight=config.get("bbox_loss_coefficient", 5),
        giou_weight=config.get("giou_loss_coefficient", 2),
        **head_arguments(config, str(folder)),
    )
    return assemble(backbone, head, renamed, config, str(folder))


def renamed_weights(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """transformers' weights under our names; query, key and value become one matrix, or two."""
    renamed = transformers.rename(weights, _names, nothing)
    transformers.join(renamed, (".attention.query.", ".attention.key.", ".attention.value."), ".attention.qkv.")
    transformers.join(renamed, (".cross_attention.key.", ".cross_attention.value."), ".cross_attention.key_value.")
    return renamed


def head_arguments(config: Mapping[str, Any], origin: str) -> dict[str, Any]:
    """What the heads of DETR and Conditional DETR share.

    Raises:
        CheckpointError: encoder and decoder differ, or positions are learned.
    """
    for option, usual in (("attention_heads", 8), ("ffn_dim", 2048)):
        here, there = config.get(f"encoder_{option}", usual), config.get(f"decoder_{option}", usual)
        if here != there:
            raise CheckpointError(
                f"{origin}: encoder_{option} {here} and decoder_{option} {there} differ, which has no counterpart"
            )
    positions = config.get("position_embedding_type", "sine")
    if positions != "sine":
        raise CheckpointError(f"{origin}: positions of type {positions!r} have no counterpart in visattn")
    return {
        "dim": config.get("d_model", 256),
        "num_heads": config.get("encoder_attention_heads", 8),
        "encoder_depth": config.get("encoder_layers", 6),
        "decoder_depth": config.get("decoder_layers", 6),
        "feedforward_dim": config.get("encoder_ffn_dim", 2048),
        "num_queries": config.get("num_queries", 100),
        "dropout": config.get("dropout", 0.1),
        "activation": transformers.activation_of(config.get("activation_function", "relu"), origin),
    }


def is_original(weights: Mapping[str, Any]) -> bool:
    """Whether a file of the original repository has such names."""
    return "transformer.encoder.layers.0.self_attn.in_proj_weight" in weights and "query_embed.weight" in weights


def build_original(weights: Mapping[str, Tensor], origin: str, architecture: str | None = None) -> ObjectDetector:
    """The detector in a weights file of the original repository, such as detr-r50-e632da11.pth.

    The file tells all sizes but for the number of heads, which is 8 in all published ones.

    Args:
        architecture: one of `original_architectures`, or None if it is none of those with "dc5".
        origin: names the source in errors.

    Raises:
        CheckpointError: the weights don't fit.
    """
    refuse_masks(weights, origin)
    if not is_original(weights):
        raise CheckpointError(f"{origin}: holds no weights of the original DETR, such as query_embed.weight")
    options: dict[str, Any] = {"output_stride": 16} if (architecture or "").endswith("dc5") else {}
    name = "resnet101" if "backbone.0.body.layer3.22.conv1.weight" in weights else "resnet50"
    backbone = TimmBackbone(name, 800, frozen_norms=True, **options)
    renamed = transformers.rename(weights, _original_names, nothing)
    for joint in [name for name in renamed if ".cross_attention.joint." in name]:
        tensor = renamed.pop(joint)  # (3 * dim, ...), of query, key and value
        dim = tensor.shape[0] // 3
        renamed[joint.replace("joint", "query")] = tensor[:dim]
        renamed[joint.replace("joint", "key_value")] = tensor[dim:]
    try:
        sizes = original_sizes(renamed)
    except KeyError as error:
        raise CheckpointError(f"{origin}: is a DETR without its weight {error}") from error
    head = DetrHead(backbone.channels, backbone.strides, classes_of(renamed, origin) - 1, **sizes)
    # The transform of the authors' datasets/coco.py, on PIL's images.
    transform = {"size": 800, "max_size": 1333, "image_processor_type": "DetrImageProcessorPil"}
    model = assemble(backbone, head, renamed, {"preprocessor": transform}, origin)
    if model.num_classes == 91:
        model.classes = coco_names()
    return model


def refuse_masks(weights: Mapping[str, Tensor], origin: str) -> None:
    """Refuses the panoptic models, whose boxes are of another number of classes and which draw masks.

    Raises:
        CheckpointError: there are weights of a mask head.
    """
    masks = sorted(name for name in weights if re.match(r"(mask_head|bbox_attention)\.", name))
    if masks:
        raise CheckpointError(
            f"{origin}: is a DETR with masks (panoptic segmentation), which visattn doesn't read: {masks[0]} and others"
        )


def classes_of(renamed: Mapping[str, Tensor], origin: str) -> int:
    """The number of logits of a query.

    Raises:
        CheckpointError: there is no classifier.
    """
    if "head.class_head.weight" not in renamed:
        raise CheckpointError(f"{origin}: holds no classifier of queries; a base model finds no objects")
    return renamed["head.class_head.weight"].shape[0]


def original_sizes(renamed: Mapping[str, Tensor]) -> dict[str, Any]:
    """The arguments of the head that its weights tell, under our names."""
    depths = {
        part: len({name.split(".")[2] for name in renamed if name.startswith(f"head.{part}.")})
        for part in ("encoder", "decoder")
    }
    num_queries, dim = renamed["head.query_embedding.weight"].shape
    return {
        "dim": dim,
        "encoder_depth": depths["encoder"],
        "decoder_depth": depths["decoder"],
        "feedforward_dim": renamed["head.encoder.0.mlp.fc1.weight"].shape[0],
        "num_queries": num_queries,
    }


def coco_names() -> tuple[str, ...]:
    """The names of COCO's categories by their numbers from 0 to 90; "N/A" where there is none."""
    return ("N/A", *FasterRCNN_ResNet50_FPN_Weights.COCO_V1.meta["categories"][1:])
