"""Our own format: a folder with `config.json` and `model.safetensors`; and the door by which weights come in."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from visattn import backbones
from visattn.data.detection_preprocess import DetectionPreprocess
from visattn.data.preprocess import Preprocess
from visattn.files import atomic_path
from visattn.heads import (
    CaptionDecoder,
    ConditionalDetrHead,
    DeformableDetrHead,
    DetrHead,
    FasterRcnnHead,
    FcosHead,
    ImageCaptioner,
    ImageClassifier,
    MaskRcnnHead,
    ObjectDetector,
    QuestionEncoder,
    RetinaNetHead,
    RtDetrHead,
    VisualQuestionAnswerer,
)
from visattn.text import CaptionTokenizer

Model = ImageClassifier | ImageCaptioner | VisualQuestionAnswerer | ObjectDetector

_format = "visattn-1"
_backbones = {
    cls.__name__: cls
    for cls in (
        backbones.VisionTransformer,
        backbones.SwinTransformer,
        backbones.LocalHybrid,
        backbones.TimmBackbone,
        backbones.ResNetD,
        backbones.BoTNet,
        backbones.AugmentedResNet,
        backbones.PyramidVisionTransformer,
        backbones.Hiera,
        backbones.MaxViT,
        backbones.CoAtNet,
        backbones.NeighborhoodAttentionTransformer,
        backbones.CompactConvolutionalTransformer,
    )
}
_detection_heads: dict[str, Any] = {
    cls.__name__: cls
    for cls in (
        ConditionalDetrHead,
        DeformableDetrHead,
        DetrHead,
        FasterRcnnHead,
        FcosHead,
        MaskRcnnHead,
        RetinaNetHead,
        RtDetrHead,
    )
}


class CheckpointError(ValueError):
    """A checkpoint cannot be read or doesn't fit; the message names the file and what is wrong with it."""


def save_pretrained(
    model: Model,
    folder: str | os.PathLike[str],
    *,
    precision: str | None = None,
    backbone_source: str | None = None,
) -> None:
    """Writes `config.json` and `model.safetensors`, which `visattn.load_pretrained(folder)` reads.

    Beside them stand the two files of the tokenizer, if the model reads or writes words. The weights are written first
    and the configuration, without which no folder is read, last; each in one step.

    Args:
        folder: created if missing.
        precision: "float16" or "bfloat16" to store floating-point weights so; they are read back as float32.
        backbone_source: "efficientnet_lite0" to 2 if the backbone still has the weights of this package: they are left
            out of the file, and taken from the package again when the folder is loaded.

    Raises:
        ValueError: precision is something else, or the backbone's weights are not those of its source.
    """
    if precision not in (None, "float16", "bfloat16"):
        raise ValueError(f"precision {precision!r} is unknown; choose float16, bfloat16 or None")
    state = model.state_dict()
    if backbone_source is not None:
        state = without_backbone(state, backbone_source)
    weights = {}
    for name, tensor in state.items():
        kept = tensor.detach().cpu()
        if precision is not None and kept.is_floating_point():
            kept = kept.to(getattr(torch, precision))
        weights[name] = kept.clone(memory_format=torch.contiguous_format)
    with atomic_path(Path(folder) / "model.safetensors") as temporary:
        save_file(weights, temporary, metadata={"format": "pt"})
    config = model_config(model) | ({} if backbone_source is None else {"backbone_source": backbone_source})
    if isinstance(model, ImageCaptioner | VisualQuestionAnswerer):
        del config["tokenizer"]
        model.tokenizer.save(folder)
    with atomic_path(Path(folder) / "config.json") as temporary:
        temporary.write_text(json.dumps(config, indent=2) + "\n")


def without_backbone(state: dict[str, Tensor], source: str) -> dict[str, Tensor]:
    """The weights that are not those of a backbone's source.

    Raises:
        ValueError: the backbone has other weights than its source.
    """
    from visattn.checkpoints.efficientnet_lite import backbone_weights  # which imports this file

    published = backbone_weights(source, "save_pretrained")
    ours = {name: tensor.cpu() for name, tensor in state.items() if name.startswith("backbone.")}
    if ours.keys() != published.keys() or not all(torch.equal(ours[name], published[name]) for name in ours):
        raise ValueError(f"the backbone's weights are not those of {source}: leave backbone_source out, to save them")
    return {name: tensor for name, tensor in state.items() if name not in ours}


def model_config(model: Model) -> dict[str, Any]:
    """All that is needed to build the model again, as plain data: what `config.json` holds, and the tokenizer."""
    kind = next(name for name, (model_class, _) in _kinds.items() if isinstance(model, model_class))
    config = {
        "format": _format,
        "kind": kind,
        "backbone": type(model.backbone).__name__,
        "arguments": _plain(model.backbone.arguments),
    }
    preprocess = None if model.preprocess is None else _plain(model.preprocess.arguments)
    if isinstance(model, ImageClassifier):
        config |= {"num_classes": model.num_classes, "dropout": model.dropout}
        return config | {"classes": None if model.classes is None else list(model.classes), "preprocess": preprocess}
    if isinstance(model, ObjectDetector):
        config |= {"head": type(model.head).__name__, "head_arguments": _plain(model.head.arguments)}
        config |= {"num_classes": model.num_classes, "classes": _plain(model.classes)}
        return config | {"category_ids": _plain(model.category_ids), "preprocess": preprocess}
    if isinstance(model, ImageCaptioner):
        config |= {"decoder": _plain(model.decoder.arguments)}
    else:
        config |= {"questions": _plain(model.questions.arguments), "answers": list(model.answers)}
    return config | model.arguments | {"preprocess": preprocess, "tokenizer": model.tokenizer.arguments}


def build_model(config: Mapping[str, Any], origin: str = "the configuration") -> Model:
    """The model that `model_config` describes, with new weights.

    Args:
        origin: names the source in errors.

    Raises:
        CheckpointError: the format, the kind of model or the class of the backbone is unknown, or arguments don't fit.
    """
    if config.get("format") != _format:
        raise CheckpointError(
            f"{origin}: format {config.get('format')!r} is not {_format!r}; a newer visattn may know it"
        )
    kind = config.get("kind", "classification")  # older configurations don't say it
    if kind not in _kinds:
        raise CheckpointError(f"{origin}: kind {kind!r} is unknown; a newer visattn may know it")
    name = config.get("backbone")
    if name not in _backbones:
        raise CheckpointError(f"{origin}: backbone {name!r} is none of {', '.join(_backbones)}")
    try:
        backbone = _backbones[name](**config["arguments"])
        model = _kinds[kind][1](backbone, config)
        if config.get("preprocess"):
            make = DetectionPreprocess if isinstance(model, ObjectDetector) else Preprocess
            model.preprocess = make(**config["preprocess"])
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{origin}: doesn't describe a model: {error!r}") from error
    return model


def classifier_of(backbone: backbones.Backbone, config: Mapping[str, Any]) -> ImageClassifier:
    model = ImageClassifier(backbone, config["num_classes"], dropout=config.get("dropout", 0.0))
    model.classes = tuple(config["classes"]) if config.get("classes") else None
    return model


def captioner_of(backbone: backbones.Backbone, config: Mapping[str, Any]) -> ImageCaptioner:
    return ImageCaptioner(
        backbone,
        CaptionDecoder(**config["decoder"]),
        CaptionTokenizer(**config["tokenizer"]),
        encoder_depth=config["encoder_depth"],
        encoder_heads=config["encoder_heads"],
        dropout=config["dropout"],
    )


def question_answerer_of(backbone: backbones.Backbone, config: Mapping[str, Any]) -> VisualQuestionAnswerer:
    return VisualQuestionAnswerer(
        backbone,
        QuestionEncoder(**config["questions"]),
        CaptionTokenizer(**config["tokenizer"]),
        config["answers"],
        encoder_depth=config["encoder_depth"],
        encoder_heads=config["encoder_heads"],
        dropout=config["dropout"],
    )


def detector_of(backbone: backbones.Backbone, config: Mapping[str, Any]) -> ObjectDetector:
    name = config["head"]
    if name not in _detection_heads:
        raise ValueError(f"head {name!r} is none of {', '.join(_detection_heads)}")
    head = _detection_heads[name](
        backbone.channels, backbone.strides, config["num_classes"], **config["head_arguments"]
    )
    model = ObjectDetector(backbone, head, config.get("classes"))
    model.category_ids = tuple(config["category_ids"]) if config.get("category_ids") else None
    return model


_kinds: dict[str, tuple[type[Model], Callable[[backbones.Backbone, Mapping[str, Any]], Model]]] = {
    "classification": (ImageClassifier, classifier_of),
    "captioning": (ImageCaptioner, captioner_of),
    "question_answering": (VisualQuestionAnswerer, question_answerer_of),
    "detection": (ObjectDetector, detector_of),
}


def load_strictly(model: torch.nn.Module, weights: Mapping[str, Tensor], origin: str) -> None:
    """Puts weights into the model, all of them and nothing else.

    Raises:
        CheckpointError: names are missing or unexpected, or shapes differ; the message names them.
    """
    expected = model.state_dict()
    missing = sorted(expected.keys() - weights.keys())
    unexpected = sorted(weights.keys() - expected.keys())
    misshapen = [
        f"{name} is {tuple(weights[name].shape)} instead of {tuple(tensor.shape)}"
        for name, tensor in expected.items()
        if name in weights and weights[name].shape != tensor.shape
    ]
    for problem, names in (("missing", missing), ("unexpected", unexpected), ("of another shape", misshapen)):
        if names:
            shown = ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
            raise CheckpointError(f"{origin}: {len(names)} weights are {problem}: {shown}")
    model.load_state_dict({name: tensor.to(expected[name].dtype) for name, tensor in weights.items()})


def read_weights(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """The tensors of a .safetensors file, or of a PyTorch file that holds nothing but data.

    A PyTorch file may be a dict of tensors, or hold one under `model`, `state_dict` or `model_state_dict`.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: the file is damaged, holds no weights, or wants to execute code.
    """
    path = Path(path)
    if path.suffix == ".safetensors":
        if not path.is_file():
            raise FileNotFoundError(f"{path}: there is no such file")
        try:
            return load_file(path)
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{path}: no whole safetensors file: {error}") from error
    content: Any = read_checkpoint(path)
    for key in ("model", "state_dict", "model_state_dict"):
        if isinstance(content.get(key), Mapping):
            content = content[key]
            break
    weights = {name: tensor for name, tensor in content.items() if isinstance(tensor, Tensor)}
    if not weights:
        raise CheckpointError(f"{path}: holds no weights, only {', '.join(map(str, list(content)[:8]))}")
    return weights


def read_checkpoint(path: str | os.PathLike[str]) -> dict[str, Any]:
    """All that a PyTorch file holds: tensors and plain data. This is the one `torch.load` of the house.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: the file is damaged, or is a pickle that wants to execute code, which is refused.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: there is no such file")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path}: refused, since reading it could execute code that it brings (only tensors and plain data are "
            "read). Ask its author for a .safetensors file."
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError) as error:
        raise CheckpointError(f"{path}: no whole PyTorch checkpoint: {error}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: holds a {type(content).__name__}, not a dict of weights")
    return content


def _plain(value: Any) -> Any:
    """Tuples as lists, as JSON and weights-only checkpoints have them."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value
