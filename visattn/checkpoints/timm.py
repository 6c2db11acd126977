"""timm's layout: every model that timm builds from the classes of `families`.

timm itself says what a name means: its model is built without memory (on the meta device), read off, and its weights
renamed. So every variant that timm knows is known here, at the version of timm that is installed.
"""

from __future__ import annotations

import inspect
import math
import re
import sys
from collections.abc import Callable, Mapping
from typing import Any

import timm
import torch
from torch import Tensor, nn

from visattn.backbones import Backbone, SwinTransformer, VisionTransformer
from visattn.checkpoints.botnet import botnet_backbone, botnet_weights
from visattn.checkpoints.hiera import hiera_backbone, hiera_weights
from visattn.checkpoints.maxvit import maxvit_backbone, maxvit_weights
from visattn.checkpoints.native import CheckpointError, load_strictly
from visattn.checkpoints.pvt_v2 import pvt_v2_backbone, pvt_v2_weights
from visattn.checkpoints.swin_v2 import swin_v2_backbone, swin_v2_weights
from visattn.data.preprocess import Preprocess
from visattn.heads import ImageClassifier

_poolings = {
    "token": "token",
    "avg": "average",
    "avgmax": "average_max",
    "max": "max",
    "map": "attention",
    "": "none",
}
_activations = {
    "GELUTanh": "gelu_tanh",
    "QuickGELU": "quick_gelu",
    "SiLU": "silu",
    "Swish": "silu",
    "ReLU": "relu",
    "GELU": "gelu",
}
_blocks = {
    "Block": "transformer",
    "ResPostBlock": "post_norm",
    "ParallelScalingBlock": "parallel",
    "ParallelThingsBlock": "twin",
}
_fits = {"center": "cover", "squash": "stretch", "border": "contain"}
# Beginnings of their names and ours, applied one after the other.
_vit_names = (
    ("head_dist", "distillation_head"),
    ("cls_token", "class_token"),
    ("dist_token", "distillation_token"),
    ("reg_token", "register_tokens"),
    ("pos_embed", "position_embedding"),
    ("patch_embed.proj.", "patch_embedding.projection."),
    ("patch_embed.norm.", "patch_embedding.norm."),
    ("norm_pre.", "pre_norm."),
    ("fc_norm.", "norm."),
    ("attn_pool.kv.", "attention_pooling.attention.key_value."),
    ("attn_pool.q.", "attention_pooling.attention.query."),
    ("attn_pool.proj.", "attention_pooling.attention.projection."),
    ("attn_pool.", "attention_pooling."),
    ("attns.", "branches."),
    ("ffns.", "branches."),
    ("attn.norm.", "attention.projection.norm."),
    ("attn.proj.", "attention.projection."),
    ("attn.qkv.", "attention.qkv."),
    ("attn.q_norm.", "attention.query_norm."),
    ("attn.k_norm.", "attention.key_norm."),
    ("mlp.norm.", "mlp.fc2.norm."),
    ("ls1.gamma", "layer_scale1"),
    ("ls2.gamma", "layer_scale2"),
    ("in_norm.", "norm1."),
    ("attn_out_proj.", "attention.projection."),
    ("mlp_out_proj.", "mlp.fc2."),
    ("mlp_bias", "mlp.fc1.bias"),
    ("q_norm.", "attention.query_norm."),
    ("k_norm.", "attention.key_norm."),
    ("ls.gamma", "layer_scale1"),
)
_swin_names = (
    ("head.fc.", "head."),
    ("patch_embed.proj.", "patch_embedding.projection."),
    ("patch_embed.norm.", "patch_embedding.norm."),
    ("layers.", "stages."),
    ("attn.relative_position_bias_table", "attention.relative_position_bias"),
    ("attn.proj.", "attention.projection."),
    ("attn.qkv.", "attention.qkv."),
)


def build(
    config: Mapping[str, Any], weights: Mapping[str, Tensor], origin: str, image_size: tuple[int, int] | None = None
) -> ImageClassifier:
    """The model that timm's `config.json` describes, with these weights.

    Args:
        config: `architecture`, and if present `num_classes`, `model_args`, `pretrained_cfg`, `label_names`.
        weights: timm's names and shapes.
        origin: names the source in errors.
        image_size: (height, width) in pixels to make the model for; None is the source's own.

    Raises:
        CheckpointError: timm doesn't know the architecture, it is of none of the classes or a variant of them that
            visattn doesn't build, or the weights don't fit.
    """
    original = skeleton(config, weights, origin, image_size)
    published = dict(config.get("pretrained_cfg") or {}) or dict(original.pretrained_cfg)
    make_backbone, rename_weights = families[type(original).__name__]
    backbone = make_backbone(original, origin)  # first, since what isn't supported has other weights too
    model = ImageClassifier(backbone, original.num_classes or None)
    load_strictly(model, rename_weights(original, filled(original, weights, origin)), origin)
    model.preprocess = preprocess_of(published, backbone.image_size)
    names = config.get("label_names") or published.get("label_names")
    model.classes = tuple(names) if names and len(names) == model.num_classes else None
    return model


def skeleton(
    config: Mapping[str, Any], weights: Mapping[str, Tensor], origin: str, image_size: tuple[int, int] | None
) -> Any:
    """timm's own model without memory for weights."""
    name = str(config["architecture"]).removeprefix("timm/").split(".")[0]
    if not timm.is_model(name):
        raise CheckpointError(f"{origin}: timm {timm.__version__} knows no architecture {name!r}")
    arguments = dict(config.get("model_args") or {})
    num_classes = config.get("num_classes", arguments.pop("num_classes", None))
    if num_classes is None:
        head = weights.get("head.weight", weights.get("head.fc.weight"))
        num_classes = 0 if head is None else head.shape[0]
    with torch.device("meta"):
        original = timm.create_model(name, pretrained=False, num_classes=num_classes, **arguments)
        if image_size is not None and "img_size" in inspect.signature(type(original)).parameters:
            arguments["img_size"] = image_size
            original = timm.create_model(name, pretrained=False, num_classes=num_classes, **arguments)
    if type(original).__name__ not in families:
        raise CheckpointError(
            f"{origin}: {name} is a {type(original).__name__}; visattn reads timm's {', '.join(families)}"
        )
    return original


def filled(original: Any, weights: Mapping[str, Tensor], origin: str) -> dict[str, Tensor]:
    """The weights by the names of the installed timm, resampled by timm where its model has other sizes."""
    buffers = ("relative_position_index", "attn_mask", "relative_coords_table", "num_batches_tracked")
    given = {name: tensor for name, tensor in weights.items() if not name.endswith(buffers)}
    module = sys.modules[type(original).__module__]
    converted = module.checkpoint_filter_fn(given, original) if hasattr(module, "checkpoint_filter_fn") else given
    converted = {name: tensor for name, tensor in converted.items() if not name.endswith(buffers)}
    expected = {name: tensor for name, tensor in original.state_dict().items() if not name.endswith(buffers)}
    for problem, names in (
        ("missing", expected.keys() - converted.keys()),
        ("unexpected", converted.keys() - expected.keys()),
    ):
        if names:
            shown = sorted(names)
            rest = f" and {len(shown) - 8} more" if len(shown) > 8 else ""
            raise CheckpointError(f"{origin}: {len(shown)} weights are {problem}: {', '.join(shown[:8])}{rest}")
    return converted


def vit_backbone(original: Any, origin: str) -> Backbone:
    """Our VisionTransformer with the arguments of timm's.

    Raises:
        CheckpointError: a part has no counterpart.
    """
    block = original.blocks[0]
    kind, embedding = type(block).__name__, original.patch_embed
    unsupported = None
    if kind not in _blocks:
        unsupported = f"blocks of type {kind}"
    elif type(embedding).__name__ != "PatchEmbed":
        unsupported = f"a stem of type {type(embedding).__name__}"
    elif original.global_pool not in _poolings:
        unsupported = f"pooling {original.global_pool!r}"
    elif embedding.patch_size[0] != embedding.patch_size[1]:
        unsupported = f"patches of {embedding.patch_size} pixels"
    elif type(getattr(block, "attn", None)).__name__ not in ("Attention", "NoneType"):
        unsupported = f"attention of type {type(block.attn).__name__}"
    if unsupported:
        raise CheckpointError(f"{origin}: timm's {unsupported} has no counterpart in visattn")
    unit = {"parallel": block, "twin": None}.get(_blocks[kind], getattr(block, "attn", None))
    if unit is None:
        unit = block.attns[0].attn
    arguments = {
        "image_size": tuple(embedding.img_size),
        "patch_size": embedding.patch_size[0],
        "dim": original.embed_dim,
        "depth": len(original.blocks),
        "num_heads": unit.num_heads,
        "block": _blocks[kind],
        "in_channels": embedding.proj.in_channels,
        "patch_bias": embedding.proj.bias is not None,
        "patch_norm": not isinstance(embedding.norm, nn.Identity),
        "pre_norm": not isinstance(original.norm_pre, nn.Identity),
        "class_token": original.cls_token is not None,
        "distillation_token": getattr(original, "dist_token", None) is not None,
        "num_registers": original.num_reg_tokens,
        "position": "none" if original.pos_embed is None else "learned",
        "prefix_positions": not original.no_embed_class,
        "pooling": _poolings[original.global_pool],
        "pooling_prefix": bool(original.pool_include_prefix),
        "final_norm": final_norm(original),
        "qk_norm": not isinstance(unit.q_norm, nn.Identity),
    }
    return VisionTransformer(**arguments, **design_arguments(original, block, unit, origin))


def design_arguments(original: Any, block: Any, unit: Any, origin: str) -> dict[str, Any]:
    """What the blocks share: MLP, norms, biases, layer scale."""
    parallel, twin = type(block).__name__ == "ParallelScalingBlock", hasattr(block, "attns")
    if parallel:
        norm, activation, hidden = block.in_norm, block.mlp_act, block.mlp_out_proj.in_features
        biases = {"qkv_bias": block.in_proj.bias is not None}
        gated, sub_norm, scale = False, False, getattr(block, "ls", None)
    else:
        branch, mlp = (block.attns[0], block.ffns[0].mlp) if twin else (block, block.mlp)
        norm = branch.norm if twin else branch.norm1
        gated = type(mlp).__name__ in ("SwiGLU", "GluMlp")
        activation, hidden = mlp.act, mlp.fc2.in_features
        if getattr(mlp, "gate_last", False):
            raise CheckpointError(f"{origin}: a gated MLP whose gate comes last has no counterpart in visattn")
        biases = {
            "qkv_bias": unit.qkv.bias is not None,
            "projection_bias": unit.proj.bias is not None,
            "mlp_bias": mlp.fc2.bias is not None,
        }
        norms = [not isinstance(getattr(part, "norm", nn.Identity()), nn.Identity) for part in (unit, mlp)]
        if norms[0] != norms[1]:
            raise CheckpointError(
                f"{origin}: a norm within only one of attention and MLP has no counterpart in visattn"
            )
        sub_norm = norms[0]
        scale = getattr(branch, "ls" if twin else "ls1", None)
    activation_name = type(activation).__name__
    if activation_name == "GELU" and getattr(activation, "approximate", "none") == "tanh":
        activation_name = "GELUTanh"
    if activation_name not in _activations:
        raise CheckpointError(f"{origin}: activation {activation_name} has no counterpart in visattn")
    return biases | {
        "mlp": "gated" if gated else "plain",
        "mlp_ratio": hidden / original.embed_dim,
        "activation": _activations[activation_name],
        "norm": "rms" if "rms" in type(norm).__name__.lower() else "layer",
        "norm_eps": norm.eps,
        "sub_norm": sub_norm,
        "layer_scale": 1.0 if scale is not None and not isinstance(scale, nn.Identity) else None,
    }


def final_norm(original: Any) -> str:
    if not isinstance(original.fc_norm, nn.Identity):
        return "after_pooling"
    return "none" if isinstance(original.norm, nn.Identity) else "before_pooling"


def swin_backbone(original: Any, origin: str) -> Backbone:
    """Our SwinTransformer with the arguments of timm's."""
    first = [stage.blocks[0] for stage in original.layers]
    return SwinTransformer(
        image_size=tuple(original.patch_embed.img_size),
        patch_size=original.patch_embed.patch_size[0],
        dim=original.embed_dim,
        depths=tuple(len(stage.blocks) for stage in original.layers),
        num_heads=tuple(block.attn.num_heads for block in first),
        window_size=tuple(tuple(block.window_size) for block in first),
        mlp_ratio=first[0].mlp.fc1.out_features / original.embed_dim,
        qkv_bias=first[0].attn.qkv.bias is not None,
        in_channels=original.patch_embed.proj.in_channels,
        norm_eps=original.norm.eps,
    )


def vit_weights(original: Any, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Renames timm's weights; linear layers that one side keeps apart are cut or joined."""
    renamed = {}
    for name, tensor in state.items():
        if "fc1_x" in name:
            continue
        if "fc1_g" in name:
            tensor = torch.cat([tensor, state[name.replace("fc1_g", "fc1_x")]])
            name = name.replace("fc1_g", "fc1")
        if ".attns." in name:
            name = name.replace(".norm.", ".norm1.").replace(".ls.gamma", ".layer_scale1")
            name = name.replace(".attn.norm1.", ".attn.norm.")
        if ".ffns." in name:
            name = name.replace(".norm.", ".norm2.").replace(".ls.gamma", ".layer_scale2")
            name = name.replace(".mlp.norm2.", ".mlp.norm.")
        name = rename(name, _vit_names)
        if ".in_proj." in name:
            split = tensor.shape[0] - 3 * original.embed_dim
            renamed[name.replace("in_proj", "mlp.fc1")] = tensor[:split]
            renamed[name.replace("in_proj", "attention.qkv")] = tensor[split:]
        else:
            renamed[name] = tensor
    return renamed


def swin_weights(original: Any, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Renames timm's weights; tables of relative positions get their two axes back."""
    renamed = {}
    for name, tensor in state.items():
        if name.endswith("relative_position_bias_table"):
            _, stage, _, block, *_ = name.split(".")
            height, width = original.layers[int(stage)].blocks[int(block)].attn.window_size
            tensor = tensor.T.reshape(-1, 2 * height - 1, 2 * width - 1)  # (heads, 2 height - 1, 2 width - 1)
        renamed[rename(name, _swin_names)] = tensor
    return renamed


def rename(name: str, pairs: tuple[tuple[str, str], ...]) -> str:
    for theirs, ours in pairs:
        name = re.sub(rf"(^|\.){re.escape(theirs)}", rf"\1{ours}", name)
    return name if name.startswith(("head.", "distillation_head.")) else f"backbone.{name}"


def preprocess_of(published: Mapping[str, Any], image_size: tuple[int, int]) -> Preprocess:
    """timm's evaluation transform at this image size."""
    crop = published.get("crop_pct") or 0.875
    height, width = image_size
    return Preprocess(
        image_size,
        resize=(math.floor(height / crop), math.floor(width / crop)),
        fit=_fits[published.get("crop_mode") or "center"],
        interpolation=published.get("interpolation") or "bicubic",
        mean=published.get("mean") or (0.485, 0.456, 0.406),
        std=published.get("std") or (0.229, 0.224, 0.225),
    )


# By the class that timm builds: what makes our backbone of its skeleton, and what renames its weights to those of an
# `ImageClassifier`.
families: dict[str, tuple[Callable[[Any, str], Backbone], Callable[[Any, Mapping[str, Tensor]], dict[str, Tensor]]]] = {
    "VisionTransformer": (vit_backbone, vit_weights),
    "VisionTransformerDistilled": (vit_backbone, vit_weights),
    "SwinTransformer": (swin_backbone, swin_weights),
    "SwinTransformerV2": (swin_v2_backbone, swin_v2_weights),
    "ByobNet": (botnet_backbone, botnet_weights),
    "MaxxVit": (maxvit_backbone, maxvit_weights),
    "PyramidVisionTransformerV2": (pvt_v2_backbone, pvt_v2_weights),
    "Hiera": (hiera_backbone, hiera_weights),
}
