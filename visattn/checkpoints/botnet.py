"""timm's class ByobNet, as far as it builds BoTNet: botnet26t_256, botnet50ts_256, eca_botnext26ts_256."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from visattn.attention.relative_position import resample_distances
from visattn.backbones import Backbone, BoTNet
from visattn.checkpoints.native import CheckpointError

_activations = {"ReLU": "relu", "SiLU": "silu", "Swish": "silu"}
# Parts of their names and ours, applied one after the other.
_names = (
    ("head.fc.", "head."),
    ("stem.conv1.", "stem.0."),
    ("stem.conv2.", "stem.1."),
    ("stem.conv3.", "stem.2."),
    (".conv1_1x1.", ".reduce."),
    (".conv2_kxk.", ".spatial."),
    (".conv3_1x1.", ".expand."),
    (".attn.conv.", ".spatial.1.conv."),
    (".self_attn.qkv.", ".spatial.attention.qkv."),
    (".self_attn.pos_embed.height_rel", ".spatial.attention.row_positions"),
    (".self_attn.pos_embed.width_rel", ".spatial.attention.column_positions"),
    (".post_attn.", ".spatial.norm."),
    (".conv.", ".convolution."),
    (".bn.", ".norm."),
)


def botnet_backbone(original: Any, origin: str) -> Backbone:
    """Our BoTNet with the arguments of timm's ByobNet.

    Raises:
        CheckpointError: it is no BoTNet, or a part has no counterpart.
    """
    problem = problem_of(original)
    if problem is not None:
        name = original.pretrained_cfg.get("architecture", "this network")
        raise CheckpointError(f"{origin}: of timm's ByobNet visattn reads BoTNet, but {name} has {problem}")
    stages = [list(stage) for stage in original.stages]
    blocks = [block for stage in stages for block in stage]
    attending = [block for block in blocks if attends(block)]
    convolutions = [block.conv2_kxk.conv for block in blocks if not attends(block)]
    inner, widths = blocks[0].conv1_1x1.out_channels, tuple(stage[-1].conv3_1x1.out_channels for stage in stages)
    first = attending[0].self_attn
    own_keys = any(block.self_attn.dim_head_qk != block.self_attn.dim_head_v for block in attending)
    group_width = convolutions[0].in_channels // convolutions[0].groups if convolutions else None
    return BoTNet(
        image_size=image_size_of(stages),
        patch_size=4,
        depths=tuple(len(stage) for stage in stages),
        widths=widths,
        attention_blocks=tuple(tuple(i for i, block in enumerate(stage) if attends(block)) for stage in stages),
        num_heads=first.num_heads,
        key_dim=first.dim_head_qk if own_keys else None,
        bottleneck=inner / widths[0],
        group_width=group_width if any(convolution.groups > 1 for convolution in convolutions) else None,
        channel_attention="efficient" if channel_attentions(blocks) == {"EcaModule"} else "none",
        last_stride=stride_of(stages[-1][0]),
        stem="tiered" if hasattr(original.stem, "conv3") else "single",
        stem_width=blocks[0].conv1_1x1.in_channels,
        activation=_activations[type(blocks[0].act).__name__],
        in_channels=original.stem.conv1.in_channels,
    )


def problem_of(original: Any) -> str | None:
    """What keeps a ByobNet from being one of our BoTNets."""
    stages = [list(stage) for stage in original.stages]
    blocks = [block for stage in stages for block in stage]
    for block in blocks:
        if type(block).__name__ not in ("BottleneckBlock", "SelfAttnBlock"):
            return f"blocks of type {type(block).__name__}"
    attentions = [block.self_attn for block in blocks if attends(block)]
    convolutions = [block.conv2_kxk.conv for block in blocks if not attends(block)]
    if not attentions:
        return "no blocks with self-attention"
    for attention in attentions:
        if type(attention).__name__ != "BottleneckAttn":
            return f"attention of type {type(attention).__name__}"
    parts = [name for name, _ in original.stem.named_children()]
    if parts not in (["conv1", "conv2", "conv3", "pool"], ["conv1", "pool"]):
        return f"a stem of {', '.join(parts)}"
    if not isinstance(original.final_conv, nn.Identity):
        return "a convolution behind the last stage"
    if original.global_pool != "avg":
        return f"pooling {original.global_pool!r}"
    if len(channel_attentions(blocks)) > 1 or not channel_attentions(blocks) <= {"EcaModule", "Identity"}:
        return f"channel attention of type {', '.join(sorted(channel_attentions(blocks)))}"
    activations = {type(block.act).__name__ for block in blocks}
    if len(activations) > 1 or not activations <= _activations.keys():
        return f"activations {', '.join(sorted(activations))}"
    strides = [stride_of(stage[0]) for stage in stages]
    if strides[:-1] != [1] + [2] * (len(stages) - 2):
        return f"stages of strides {strides}"
    ratio = blocks[0].conv1_1x1.out_channels / blocks[0].conv3_1x1.out_channels
    if any(block.conv1_1x1.out_channels != round(block.conv3_1x1.out_channels * ratio) for block in blocks):
        return "bottlenecks of several ratios"
    if len({attention.num_heads for attention in attentions}) > 1:
        return "attention with several numbers of heads"
    key_dims = {attention.dim_head_qk for attention in attentions}
    if len(key_dims) > 1 and any(attention.dim_head_qk != attention.dim_head_v for attention in attentions):
        return f"heads of {', '.join(map(str, sorted(key_dims)))} channels of keys"
    if (
        len({convolution.in_channels // convolution.groups for convolution in convolutions if convolution.groups > 1})
        > 1
    ):
        return "convolutions with groups of several widths"
    return None


def attends(block: Any) -> bool:
    return type(block).__name__ == "SelfAttnBlock"


def channel_attentions(blocks: list[Any]) -> set[str]:
    """The types of what stands behind the 3x3 convolutions."""
    return {type(block.attn).__name__ for block in blocks if not attends(block)}


def stride_of(block: Any) -> int:
    return 1 if isinstance(block.shortcut, nn.Identity) else block.shortcut.conv.stride[0]


def image_size_of(stages: list[list[Any]]) -> tuple[int, int]:
    """(height, width) in pixels for which the first attention has its positions."""
    stride = 4
    for stage in stages:
        for block in stage:
            if attends(block):
                positions = block.self_attn.pos_embed
                return positions.height * stride, positions.width * stride
            stride *= stride_of(block)
    raise AssertionError("problem_of asks for attention")


def botnet_weights(original: Any, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Renames timm's weights; 1x1 convolutions that make queries are linear layers, and positions have our scale.

    timm scales the products of queries and keys alone, where `relative_position_attention` scales all scores. Positions
    of another image size than the skeleton's are resampled.
    """
    eca = any(channel_attentions(list(stage)) == {"EcaModule"} for stage in original.stages)
    renamed = {}
    for name, tensor in state.items():
        ours = name
        for theirs, new in _names:
            ours = ours.replace(theirs, new)
        if eca and ".conv2_kxk." in name:
            ours = ours.replace(".spatial.", ".spatial.0.")
        if name.endswith("self_attn.qkv.weight"):
            tensor = tensor.flatten(1)
        if ".pos_embed." in name:
            _, stage, block, *_ = name.split(".")
            attention = original.stages[int(stage)][int(block)].self_attn
            positions = attention.pos_embed
            side = positions.height if name.endswith("height_rel") else positions.width
            tensor = resample_distances(tensor, side)
            tensor = tensor if attention.scale_pos_embed else tensor / attention.scale
        ours = ours if ours.startswith("head.") else f"backbone.{ours}"
        renamed[ours] = tensor
        if ours.endswith("running_mean"):
            renamed[ours.replace("running_mean", "num_batches_tracked")] = torch.tensor(0)
    return renamed
