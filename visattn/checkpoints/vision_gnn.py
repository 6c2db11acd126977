"""The layout of the Vision GNN that its authors publish, such as pyramid_vig_ti_78.5.pth.tar.

Source: Han et al. 2022, https://arxiv.org/abs/2206.00272, and the folder vig_pytorch of
https://github.com/huawei-noah/Efficient-AI-Backbones.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from timm.data import ImageNetInfo
from torch import Tensor

from visattn.attention.map_graph import grid_closeness
from visattn.backbones import VisionGNN
from visattn.checkpoints.native import CheckpointError, load_strictly
from visattn.checkpoints.timm import preprocess_of
from visattn.heads import ImageClassifier

_isotropic: dict[str, Any] = {"patch_size": 16, "neighbors": (9, 18), "max_dilation": 10, "closeness": False}
_pyramid: dict[str, Any] = {"patch_size": 4, "neighbors": (9, 9), "max_dilation": 5}
# By the names under which the repository registers them: what the weights don't show.
original_architectures: dict[str, dict[str, Any]] = {
    "vig_ti_224_gelu": _isotropic,
    "vig_s_224_gelu": _isotropic,
    "vig_b_224_gelu": _isotropic,
    "pvig_ti_224_gelu": _pyramid,
    "pvig_s_224_gelu": _pyramid,
    "pvig_m_224_gelu": _pyramid,
    "pvig_b_224_gelu": _pyramid,
}
# Beginnings of the names of convolutions, whose norms have the next number; "0." is the graph convolution of a block,
# "1." what follows.
_parts = (
    ("0.fc1", "before"),
    ("0.graph_conv.gconv.nn", "update"),
    ("0.fc2", "after"),
    ("1.fc1", "mlp.0"),
    ("1.fc2", "mlp.1"),
)
_classifier = "prediction.4."


def build_original(weights: Mapping[str, Tensor], origin: str, architecture: str) -> ImageClassifier:
    """The classifier of one of `original_architectures` with these weights.

    Args:
        weights: the repository's names and shapes.
        origin: names the source in errors.

    Raises:
        CheckpointError: the weights are none of this network, or their table of distances isn't the published one.
    """
    arguments = original_architectures[architecture]
    table, classifier = weights.get("pos_embed"), weights.get(f"{_classifier}weight")
    if table is None or classifier is None or table.ndim != 4:
        raise CheckpointError(f"{origin}: pos_embed or {_classifier}weight is missing: it is no {architecture}")
    dims, depths = stages_of(weights, first=table.shape[1])
    if (len(dims) == 1) != (arguments is _isotropic) or len(dims) > 4:
        raise CheckpointError(f"{origin}: the weights are of {len(dims)} stages: it is no {architecture}")
    height, width = (side * arguments["patch_size"] for side in table.shape[2:])
    reductions = (1,) if arguments is _isotropic else (4, 2, 1, 1)[: len(dims)]
    ones = (1,) * len(dims)  # heads, of which there is no use
    backbone = VisionGNN((height, width), dims=dims, depths=depths, num_heads=ones, reductions=reductions, **arguments)
    model = ImageClassifier(backbone, classifier.shape[0])
    load_strictly(model, renamed(weights, backbone, origin), origin)
    published = {"crop_pct": 0.95 if architecture == "pvig_b_224_gelu" else 0.9, "mean": (0.5,) * 3, "std": (0.5,) * 3}
    model.preprocess = preprocess_of(published, backbone.image_size)
    if model.num_classes == 1000:
        information = ImageNetInfo("imagenet-1k")
        model.classes = tuple(information.index_to_description(index) for index in range(1000))
    return model


def stages_of(weights: Mapping[str, Tensor], first: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The channels and the number of blocks of each stage, of which the first has `first` channels."""
    dims, depths = [first], [0]
    numbers = {int(name.split(".")[1]) for name in weights if re.match(r"backbone\.\d+\.", name)}
    for number in range(len(numbers)):
        downsampling = weights.get(f"backbone.{number}.conv.0.weight")
        if downsampling is None:
            depths[-1] += 1
        else:
            dims, depths = [*dims, downsampling.shape[0]], [*depths, 0]
    return tuple(dims), tuple(depths)


def renamed(weights: Mapping[str, Tensor], backbone: VisionGNN, origin: str) -> dict[str, Tensor]:
    """The weights by our names.

    Raises:
        CheckpointError: a table of distances isn't the one that follows from the size of the map.
    """
    places = stage_places(backbone.depths)
    result = {}
    for name, tensor in weights.items():
        number = re.match(r"backbone\.(\d+)\.(.*)", name)
        if name == "pos_embed":
            result["backbone.position_embedding"] = tensor.flatten(2).transpose(1, 2)
        elif name.startswith(_classifier):
            result[name.replace(_classifier, "head.")] = tensor.flatten(1) if tensor.ndim > 1 else tensor
        elif name.startswith("prediction."):
            result[f"backbone.widen.{layer(name.removeprefix('prediction.'), name)}"] = tensor
        elif name.startswith("stem.convs."):
            index, rest = name.removeprefix("stem.convs.").split(".", 1)
            result[f"backbone.stem.{int(index) // 3}.{layer(f'{int(index) % 3}.{rest}', name)}"] = tensor
        elif number is None or int(number[1]) >= len(places):
            result[name] = tensor  # which is then refused by its own name
        elif number[2] == "0.relative_pos":
            check_distances(tensor, backbone, int(places[int(number[1])].split(".")[1]), f"{origin}: {name}")
        else:
            result[f"backbone.{places[int(number[1])]}.{block_name(number[2], name)}"] = tensor
    return result


def stage_places(depths: tuple[int, ...]) -> list[str]:
    """What the numbers of the published list of blocks and downsamplings are with us."""
    places = []
    for stage, depth in enumerate(depths):
        places += [f"downsamples.{stage - 1}"] if stage else []
        places += [f"stages.{stage}.{block}" for block in range(depth)]
    return places


def block_name(rest: str, name: str) -> str:
    """A name within a block or downsampling."""
    for theirs, ours in _parts:
        if rest.startswith(f"{theirs}."):
            return f"{ours}.{layer(rest.removeprefix(f'{theirs}.'), name)}"
    return layer(rest.removeprefix("conv."), name)


def layer(rest: str, name: str) -> str:
    """A name within a pair of convolution, 0, and norm, 1; an unknown one as it is."""
    number, _, tensor = rest.partition(".")
    return f"{('convolution', 'norm')[int(number)]}.{tensor}" if number in ("0", "1") else name


def check_distances(table: Tensor, backbone: VisionGNN, stage: int, origin: str) -> None:
    """Refuses a table that isn't minus the closeness that the backbone computes: (1, cells, squares).

    Raises:
        CheckpointError: it isn't.
    """
    stride = backbone.strides[stage]
    grid = (-(-backbone.image_size[0] // stride), -(-backbone.image_size[1] // stride))
    expected = -grid_closeness(grid, backbone.channels[stage], backbone.arguments["reductions"][stage])[None]
    if table.shape != expected.shape or not torch.allclose(table.to(expected), expected, atol=1e-4):
        raise CheckpointError(f"{origin} isn't the published table of distances for a {grid[0]}x{grid[1]} map")
