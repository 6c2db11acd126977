"""timm's class MaxxVit: MaxViT and CoAtNet, ported from TensorFlow (maxvit_*_tf_*) or trained by timm (*_rw_*)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from visattn.backbones import Backbone, CoAtNet, MaxViT
from visattn.checkpoints.native import CheckpointError

_activations = {"GELU": "gelu", "GELUTanh": "gelu_tanh", "SiLU": "silu", "ReLU": "relu"}
_norms = {"LayerNorm": "layer", "LayerNorm2d": "layer", "BatchNorm2d": "batch"}
_blocks = ("MbConvBlock", "TransformerBlock2d", "MaxxVitBlock")
# Beginnings of names within a block or the whole network.
_names = {
    "stem.conv1": "stem.first.convolution",
    "stem.norm1": "stem.first.norm",
    "stem.conv2": "stem.second",
    "head.fc": "head",
    "head.norm": "backbone.norm",
    "head.pre_logits.fc": "backbone.pooler",
}
_convolution_names = {
    "shortcut.expand": "shortcut.projection",
    "pre_norm": "norm",
    "conv1_1x1": "expand.convolution",
    "norm1": "expand.norm",
    "conv2_kxk": "depthwise.convolution",
    "norm2": "depthwise.norm",
    "se.fc1": "excitation.squeeze",
    "se.fc2": "excitation.excite",
    "se_early.fc1": "excitation.squeeze",
    "se_early.fc2": "excitation.excite",
    "conv3_1x1": "project",
}
_transformer_names = {
    "shortcut.expand": "shortcut.projection",
    "norm1.norm": "norm1",
    "attn.qkv": "attention.qkv",
    "attn.proj": "attention.projection",
    "attn.rel_pos.relative_position_bias_table": "attention.relative_position_bias",
    "attn.rel_pos.mlp": "attention.continuous_bias",
    "ls1.gamma": "layer_scale1",
    "ls2.gamma": "layer_scale2",
}


def maxvit_backbone(original: Any, origin: str) -> Backbone:
    """Our MaxViT or CoAtNet with the arguments of timm's MaxxVit.

    Raises:
        CheckpointError: a part has no counterpart.
    """
    blocks = [block for stage in original.stages for block in stage.blocks]
    for block in blocks:
        part = getattr(block, "conv", block) if type(block).__name__ == "MaxxVitBlock" else block
        if type(part).__name__ not in _blocks:
            refuse(origin, f"blocks of type {type(part).__name__}")
    mixed = [type(block).__name__ == "MaxxVitBlock" for block in blocks]
    if any(mixed) and not all(mixed):
        refuse(origin, "MaxxVitBlock beside other blocks")
    arguments = {
        "image_size": tuple(original.img_size),
        "patch_size": 4,
        "dims": tuple(out_channels(stage.blocks[-1]) for stage in original.stages),
        "depths": tuple(len(stage.blocks) for stage in original.stages),
        "stem_dims": (original.stem.conv1.out_channels, original.stem.conv2.out_channels),
        "stem_bias": original.stem.conv1.bias is not None,
        "in_channels": original.stem.conv1.in_channels,
        **final_arguments(original, origin),
    }
    if all(mixed):
        convolutions = [block.conv for block in blocks]
        transformers = [part for block in blocks for part in (block.attn_block, block.attn_grid)]
        if None in transformers:
            refuse(origin, "blocks without attention within windows")
        arguments["window_size"] = tuple(transformers[0].partition_size)
        arguments["grid_size"] = tuple(transformers[1].partition_size)
    else:
        convolutions = [block for block in blocks if type(block).__name__ == "MbConvBlock"]
        transformers = [block for block in blocks if type(block).__name__ == "TransformerBlock2d"]
        arguments["layout"] = tuple(
            "".join("C" if type(block).__name__ == "MbConvBlock" else "T" for block in stage.blocks)
            for stage in original.stages
        )
        arguments |= widening_arguments(transformers)
    arguments |= transformer_arguments(transformers, origin) | convolution_arguments(convolutions, origin)
    return MaxViT(**arguments) if all(mixed) else CoAtNet(**arguments)


def refuse(origin: str, part: str) -> None:
    raise CheckpointError(f"{origin}: timm's {part} has no counterpart in visattn")


def out_channels(block: Any) -> int:
    kind = type(block).__name__
    if kind == "MaxxVitBlock":
        block = block.conv
    return block.attn.proj.out_channels if kind == "TransformerBlock2d" else block.conv3_1x1.out_channels


def final_arguments(original: Any, origin: str) -> dict[str, Any]:
    """Norm, pooling and what follows them."""
    head = original.head
    if original.global_pool != "avg":
        refuse(origin, f"pooling {original.global_pool!r}")
    behind = type(head).__name__ == "NormMlpClassifierHead"
    norm = head.norm if behind else original.norm
    if type(norm).__name__ not in _norms:
        refuse(origin, f"norm of type {type(norm).__name__}")
    return {
        "norm": _norms[type(norm).__name__],
        "norm_eps": norm.eps,
        "pooled_dim": head.pre_logits.fc.out_features if behind else None,
    }


def widening_arguments(transformers: list[Any]) -> dict[str, Any]:
    """How the first transformer block of a stage of CoAtNet takes the channels of the one before to its own."""
    widening = [block for block in transformers if not isinstance(block.shortcut, nn.Identity)]
    by_heads = all(block.attn.qkv.out_channels == 3 * block.attn.proj.out_channels for block in widening)
    expansions = [block.shortcut.expand for block in widening if not isinstance(block.shortcut.expand, nn.Identity)]
    return {
        "widen": "heads" if by_heads else "projection",
        "shortcut_bias": all(expansion.bias is not None for expansion in expansions),
    }


def transformer_arguments(blocks: list[Any], origin: str) -> dict[str, Any]:
    """What the blocks of attention and MLP share."""
    block = blocks[-1]
    attention, bias = block.attn, type(block.attn.rel_pos).__name__
    if bias not in ("RelPosBias", "RelPosBiasTf", "RelPosMlp", "NoneType"):
        refuse(origin, f"relative positions of type {bias}")
    if bias == "RelPosMlp" and attention.rel_pos.mode != "cr":
        refuse(origin, f"relative positions in mode {attention.rel_pos.mode!r}")
    if attention.qkv.bias is None:
        refuse(origin, "attention without biases")
    return {
        "head_dim": attention.dim_head,
        "mlp_ratio": block.mlp.fc1.weight.shape[0] / block.mlp.fc1.weight.shape[1],
        "activation": activation_of(block.mlp.act, origin),
        "relative_position_bias": bias != "NoneType",
        "bias_hidden_dim": attention.rel_pos.mlp.fc1.out_features if bias == "RelPosMlp" else None,
        "layer_scale": None if isinstance(block.ls1, nn.Identity) else 1.0,
    }


def convolution_arguments(blocks: list[Any], origin: str) -> dict[str, Any]:
    """What the inverted bottlenecks share."""
    block, halving = blocks[-1], next(block for block in blocks if not isinstance(block.shortcut, nn.Identity))
    excitation, pool = block.se if block.se_early is None else block.se_early, halving.shortcut.pool
    if type(excitation).__name__ != "SEModule":
        refuse(origin, f"channel attention of type {type(excitation).__name__}")
    if block.conv2_kxk.groups != block.conv2_kxk.in_channels or block.conv2_kxk.kernel_size != (3, 3):
        refuse(origin, "inverted bottleneck without depthwise 3x3 convolutions")
    if halving.conv1_1x1.stride != (1, 1):
        refuse(origin, "stride of the first 1x1 convolution")
    pools = {"average": ("AvgPool", 2), "max": ("MaxPool", 3)}
    pooled_first = not isinstance(halving.down, nn.Identity)
    pooling = next((name for name, kind in pools.items() if is_pool(pool, *kind)), None)
    if pooling is None or (pooled_first and not is_pool(halving.down.pool, *pools["average"])):
        refuse(origin, f"pooling by {pool}")
    expand_from, expansion = expansion_of(blocks, origin)
    base = block.conv3_1x1.out_channels if expand_from == "output" else block.conv1_1x1.out_channels
    return {
        "expand_from": expand_from,
        "expansion": expansion,
        "convolution_activation": activation_of(block.norm1.act, origin),
        "norm_activation": not isinstance(block.pre_norm.act, nn.Identity),
        "excitation_ratio": excitation.fc1.out_channels / base,
        "excitation_activation": activation_of(excitation.act, origin),
        "excitation_first": block.se_early is not None,
        "stride_by": "pooling" if pooled_first else "depthwise",
        "pooling": pooling,
        "output_bias": block.conv3_1x1.bias is not None,
        "padding": "same" if any(type(block.conv2_kxk).__name__ == "Conv2dSame" for block in blocks) else "symmetric",
        "batch_norm_eps": block.norm1.eps,
    }


def is_pool(module: Any, kind: str, size: int) -> bool:
    """Whether it is timm's or torch's pooling of this kind over squares of this size."""
    sizes = (size, (size, size))
    return type(module).__name__.startswith(f"{kind}2d") and module.kernel_size in sizes


def expansion_of(blocks: list[Any], origin: str) -> tuple[str, float]:
    """Which channels of all bottlenecks are multiplied for the inner ones, and by how much."""
    for source, layer in (("output", "conv3_1x1"), ("input", "conv1_1x1")):
        factors = set()
        for block in blocks:
            channels = block.conv3_1x1.out_channels if layer == "conv3_1x1" else block.conv1_1x1.in_channels
            factors.add(block.conv1_1x1.out_channels / channels)
        if len(factors) == 1:
            return source, factors.pop()
    raise CheckpointError(f"{origin}: timm's bottlenecks of different expansion have no counterpart in visattn")


def activation_of(module: Any, origin: str) -> str:
    name = type(module).__name__
    if name not in _activations:
        refuse(origin, f"activation {name}")
    return _activations[name]


def maxvit_weights(original: Any, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Renames timm's weights; queries, keys and values, and the tables of relative positions, in our order."""
    modules = dict(original.named_modules())
    renamed = {}
    for name, tensor in state.items():
        tensor = in_our_order(name, tensor, modules)
        if name.endswith("running_var"):
            renamed[our_name(name.replace("running_var", "num_batches_tracked"), modules)] = torch.tensor(0)
        if ".attn" in name or ".mlp." in name or ".se" in name:  # 1x1 convolutions there, linear layers here
            tensor = tensor.flatten(1) if tensor.ndim == 4 else tensor
        if name.endswith(("ls1.gamma", "ls2.gamma")):
            tensor = tensor.flatten()
        renamed[our_name(name, modules)] = tensor
    return renamed


def in_our_order(name: str, tensor: Tensor, modules: Mapping[str, Any]) -> Tensor:
    """A weight of attention whose rows or positions timm arranges otherwise; all others as they are."""
    if ".attn.qkv." in name or name.endswith("bias_table"):
        attention = modules[name[: name.index(".attn.") + len(".attn")]]
        if ".qkv." in name:
            if not attention.head_first:
                return tensor
            rows = tensor.unflatten(0, (attention.num_heads, 3, attention.dim_head))
            return rows.transpose(0, 1).flatten(0, 2)
        height, width = attention.rel_pos.window_size
        if type(attention.rel_pos).__name__ == "RelPosBiasTf":
            return tensor.flip(1, 2)  # by the position of the key relative to the query
        return tensor.T.reshape(-1, 2 * height - 1, 2 * width - 1)  # (heads, 2 height - 1, 2 width - 1)
    return tensor


def our_name(name: str, modules: Mapping[str, Any]) -> str:
    """A weight's name in an ImageClassifier."""
    if not name.startswith("stages."):
        renamed = replaced(name, _names)
        return renamed if renamed.startswith(("head.", "backbone.")) else f"backbone.{renamed}"
    _, stage, _, block, rest = name.split(".", 4)
    prefix = f"backbone.stages.{stage}.{block}."
    kind = type(modules[f"stages.{stage}.blocks.{block}"]).__name__
    if kind == "MaxxVitBlock":
        part, rest = rest.split(".", 1)
        prefix += {"conv": "convolution.", "attn_block": "window.", "attn_grid": "grid."}[part]
        kind = "MbConvBlock" if part == "conv" else "TransformerBlock2d"
    return prefix + replaced(rest, _convolution_names if kind == "MbConvBlock" else _transformer_names)


def replaced(name: str, names: Mapping[str, str]) -> str:
    """The name with its beginning, a whole part of it, exchanged; as it is if there is none to exchange."""
    for theirs, ours in names.items():
        if name == theirs or name.startswith(f"{theirs}."):
            return ours + name[len(theirs) :]
    return name
