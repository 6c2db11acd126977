"""The model that a command works with: the weights of `--checkpoint`, or those that visattn ships."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    import torch

    from visattn.heads import ImageClassifier

default_weights = "local_hybrid_tiny_cifar10"

CheckpointOption = Annotated[
    str | None,
    typer.Option(
        "--checkpoint",
        "-c",
        metavar="SOURCE",
        show_default=False,
        help="a model folder, a run's .ckpt, an id on the Hugging Face hub, a weights file (with --architecture), or a "
        f"name of `visattn models --pretrained`. Default: {default_weights}, or the only weights shipped.",
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


def open_model(checkpoint: str | None, architecture: str | None, device: str) -> ImageClassifier:
    """The model on its device, in eval mode, with a `preprocess`.

    Raises:
        FileNotFoundError: there is no such source.
        ValueError: nothing is chosen where there is a choice, the source doesn't fit, or there is no such device.
    """
    from visattn import load_pretrained
    from visattn.zoo import shipped_weights

    place = open_device(device)
    shipped = shipped_weights()
    source = checkpoint if checkpoint is not None else default_of(list(shipped))
    model = load_pretrained(shipped.get(source, source), architecture).to(place)
    channels = model.backbone.arguments.get("in_channels", 3)
    if channels != 3:
        raise ValueError(f"{source}: reads images of {channels} channels, and pictures have 3")
    if model.preprocess is None:
        from visattn.cli.errors import report_warning
        from visattn.data import Preprocess

        report_warning(f"{source} doesn't say how pictures are prepared for it; they are as for ImageNet")
        model.preprocess = Preprocess(model.backbone.image_size)
    return model


def default_of(shipped: list[str]) -> str:
    """The weights to take where none are named.

    Raises:
        ValueError: none are shipped, or several without the default one.
    """
    if default_weights in shipped:
        return default_weights
    if len(shipped) == 1:
        return shipped[0]
    if shipped:
        raise ValueError(f"several weights are shipped, say which by --checkpoint: {', '.join(sorted(shipped))}")
    raise ValueError("no weights are shipped with this installation; say --checkpoint, e.g. the model/ folder of a run")


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
