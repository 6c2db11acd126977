"""The model that a command works with: the weights of `--checkpoint`, or those that visattn ships."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, NamedTuple, TypeVar

import typer

if TYPE_CHECKING:
    import torch
    from torch import nn

    Model = TypeVar("Model", bound=nn.Module)


default_weights = {  # by the name of a kind: what is taken where none are named
    "classification": "local_hybrid_tiny_cifar10",
    "captioning": "flickr8k_captioner",
    "detection": "bccd_fcos",
}


class Kind(NamedTuple):
    """What the models of a class are for.

    Attributes:
        name: as `shipped_weights` knows it.
        lack: what is wrong with other models where such a one is wanted.
        use: what such a model is, and how to go on with it.
    """

    name: str
    lack: str
    use: str


kinds = {
    "ImageClassifier": Kind("classification", "has no classes", "it is a classifier: visattn classify, visattn attend"),
    "ImageCaptioner": Kind("captioning", "writes no captions", "it is a captioner: visattn caption, visattn demo"),
    "VisualQuestionAnswerer": Kind("question_answering", "answers no questions", "it answers questions: visattn ask"),
    "ObjectDetector": Kind("detection", "finds no objects", "it finds objects: visattn detect"),
}


def checkpoint_option(model: str, bare_weights: bool = False) -> Any:
    """The option of a command that needs a model of this class."""
    sources = "a model folder, a run's .ckpt, an id on the Hugging Face hub"
    sources += ", a weights file (with --architecture)" if bare_weights else ""
    default = default_weights.get(kinds[model].name)
    first = "" if default is None else f"{default}, or "
    help = f"{sources}, or a name of `visattn models --pretrained`. Default: {first}the only weights shipped."
    return typer.Option("--checkpoint", "-c", metavar="SOURCE", show_default=False, help=help)


CheckpointOption = Annotated[str | None, checkpoint_option("ImageClassifier", bare_weights=True)]
CaptionerOption = Annotated[str | None, checkpoint_option("ImageCaptioner")]
AnswererOption = Annotated[str | None, checkpoint_option("VisualQuestionAnswerer")]
DetectorOption = Annotated[str | None, checkpoint_option("ObjectDetector")]
ArchitectureOption = Annotated[
    str | None,
    typer.Option(
        "--architecture",
        metavar="NAME",
        help="of a bare weights file: its name in timm, e.g. vit_tiny_patch16_224",
    ),
]
DeviceOption = Annotated[str, typer.Option("--device", help="cpu, cuda, cuda:1, mps or auto")]


def open_model(expected: type[Model], checkpoint: str | None, device: str, architecture: str | None = None) -> Model:
    """The model on its device, in eval mode, with a `preprocess`.

    Args:
        expected: its class, one of `kinds`.
        checkpoint: where its weights are; None: those that are shipped for this kind.
        device: see `open_device`.
        architecture: of a bare weights file.

    Raises:
        FileNotFoundError: there is no such source.
        ValueError: nothing is chosen where there is a choice, the source doesn't fit or is a model of another kind, or
            there is no such device.
    """
    from visattn import load_pretrained
    from visattn.checkpoints import shipped_weights

    kind = kinds[expected.__name__]
    place = open_device(device)
    source = checkpoint if checkpoint is not None else default_of(kind.name, list(shipped_weights(kind.name)))
    model = load_pretrained(source, architecture).to(place)
    if not isinstance(model, expected):
        other = type(model).__name__
        use = kinds[other].use if other in kinds else f"it is a {other}, for visattn.load_pretrained"
        raise ValueError(f"{source}: {kind.lack}, {use}")
    prepare(model, source)
    return model


def prepare(model: Any, source: str) -> None:
    """Gives a model that doesn't know how pictures are prepared the usual way.

    Raises:
        ValueError: it reads no pictures of three colours.
    """
    channels = model.backbone.arguments.get("in_channels", 3)
    if channels != 3:
        raise ValueError(f"{source}: reads images of {channels} channels, and pictures have 3")
    if model.preprocess is not None:
        return
    from visattn.cli.errors import report_warning
    from visattn.data import Preprocess
    from visattn.data.detection_preprocess import DetectionPreprocess

    report_warning(f"{source} doesn't say how pictures are prepared for it; they are as for ImageNet")
    detects = type(model).__name__ == "ObjectDetector"
    model.preprocess = DetectionPreprocess() if detects else Preprocess(model.backbone.image_size)


def default_of(kind: str, shipped: list[str]) -> str:
    """The weights to take where none are named.

    Args:
        shipped: all of this kind.

    Raises:
        ValueError: none are shipped, or several without the default one.
    """
    default = default_weights.get(kind)
    if default in shipped:
        return default
    if len(shipped) == 1:
        return shipped[0]
    if shipped:
        raise ValueError(f"several weights are shipped, say which by --checkpoint: {', '.join(sorted(shipped))}")
    raise ValueError(
        f"no weights for {kind.replace('_', ' ')} are shipped with this installation; say --checkpoint, e.g. the "
        "model/ folder of a run"
    )


def open_device(name: str) -> torch.device:
    """The device of this name; "auto" is the first GPU if there is one.

    Raises:
        ValueError: there is no such device here.
    """
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(f"--device {name} is not to be had here: {reason}") from error
    return device
