"""The model that a command works with: the weights of `--checkpoint`, or those that visattn ships."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

if TYPE_CHECKING:
    import torch

    from visattn.heads import ImageCaptioner, ImageClassifier, VisualQuestionAnswerer

Kind = Literal["classification", "captioning", "question_answering"]
default_weights: dict[Kind, str] = {
    "classification": "local_hybrid_tiny_cifar10",
    "captioning": "flickr8k_captioner",
}
_sources = (
    "a model folder, a run's .ckpt, an id on the Hugging Face hub, {}or a name of `visattn models --pretrained`. "
    "Default: {}, or the only weights shipped."
)

CheckpointOption = Annotated[
    str | None,
    typer.Option(
        "--checkpoint",
        "-c",
        metavar="SOURCE",
        show_default=False,
        help=_sources.format("a weights file (with --architecture), ", default_weights["classification"]),
    ),
]
CaptionerOption = Annotated[
    str | None,
    typer.Option(
        "--checkpoint",
        "-c",
        metavar="SOURCE",
        show_default=False,
        help=_sources.format("", default_weights["captioning"]),
    ),
]
AnswererOption = Annotated[
    str | None,
    typer.Option(
        "--checkpoint",
        "-c",
        metavar="SOURCE",
        show_default=False,
        help="a model folder, a run's .ckpt or an id on the Hugging Face hub",
    ),
]
ArchitectureOption = Annotated[
    str | None,
    typer.Option(
        "--architecture",
        metavar="NAME",
        help="of a bare weights file: its name in timm, e.g. vit_tiny_patch16_224",
    ),
]
DeviceOption = Annotated[str, typer.Option("--device", help="cpu, cuda, cuda:1, mps or auto")]


def open_classifier(checkpoint: str | None, architecture: str | None, device: str) -> ImageClassifier:
    """The classifier on its device, in eval mode, with a `preprocess`.

    Raises:
        FileNotFoundError: there is no such source.
        ValueError: nothing is chosen where there is a choice, the source doesn't fit or is no classifier, or there is
            no such device.
    """
    from visattn.heads import ImageClassifier

    model, source = open_model(checkpoint, architecture, device, "classification")
    if not isinstance(model, ImageClassifier):
        raise ValueError(f"{source}: has no classes, {what_it_does(model)}")
    return model


def open_captioner(checkpoint: str | None, device: str) -> ImageCaptioner:
    """The captioner on its device, in eval mode, with a `preprocess`.

    Raises:
        As `open_classifier`.
    """
    from visattn.heads import ImageCaptioner

    model, source = open_model(checkpoint, None, device, "captioning")
    if not isinstance(model, ImageCaptioner):
        raise ValueError(f"{source}: writes no captions, {what_it_does(model)}")
    return model


def open_question_answerer(checkpoint: str | None, device: str) -> VisualQuestionAnswerer:
    """The model that answers questions on its device, in eval mode, with a `preprocess`.

    Raises:
        As `open_classifier`.
    """
    from visattn.heads import VisualQuestionAnswerer

    model, source = open_model(checkpoint, None, device, "question_answering")
    if not isinstance(model, VisualQuestionAnswerer):
        raise ValueError(f"{source}: answers no questions, {what_it_does(model)}")
    return model


def what_it_does(model: Any) -> str:
    """How to go on with a model of another kind."""
    return {
        "ImageClassifier": "it is a classifier: visattn classify, visattn attend",
        "ImageCaptioner": "it is a captioner: visattn caption, visattn demo",
        "VisualQuestionAnswerer": "it answers questions: visattn ask",
    }.get(type(model).__name__, f"it is a {type(model).__name__}, for visattn.load_pretrained")


def open_model(checkpoint: str | None, architecture: str | None, device: str, kind: Kind) -> tuple[Any, str]:
    """The model of the checkpoint, or of the shipped weights of this kind where none is named, and its source."""
    from visattn import load_pretrained
    from visattn.checkpoints import shipped_weights

    place = open_device(device)
    source = checkpoint if checkpoint is not None else default_of(kind, list(shipped_weights(kind)))
    model = load_pretrained(source, architecture).to(place)
    channels = model.backbone.arguments.get("in_channels", 3)
    if channels != 3:
        raise ValueError(f"{source}: reads images of {channels} channels, and pictures have 3")
    if model.preprocess is None:
        from visattn.cli.errors import report_warning
        from visattn.data import Preprocess

        report_warning(f"{source} doesn't say how pictures are prepared for it; they are as for ImageNet")
        model.preprocess = Preprocess(model.backbone.image_size)
    return model, source


def default_of(kind: Kind, shipped: list[str]) -> str:
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
