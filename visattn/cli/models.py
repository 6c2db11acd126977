"""`visattn models`: what can be built, and what weights are shipped."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer


def main(
    pattern: Annotated[str, typer.Argument(help='shell wildcards, e.g. "vit_*tiny"')] = "*",
    pretrained: Annotated[bool, typer.Option("--pretrained", help="list the shipped weights instead")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="JSON instead of a table")] = False,
) -> None:
    """Lists the models that `visattn.create_model` builds, and the weights that are shipped.

    Examples:

        visattn models

        visattn models "swin*"

        visattn models --pretrained --json
    """
    from visattn.cli.errors import errors_as_messages

    with errors_as_messages():
        rows = weights_rows(pattern) if pretrained else model_rows(pattern)
        if as_json:
            print(json.dumps(rows, indent=2))
            return
        if not rows:
            from visattn import list_models

            known = list_models(pretrained=pretrained)
            kind = "weights" if pretrained else "models"
            there_are = f"there are: {', '.join(known)}" if known else "none are shipped with this installation"
            raise ValueError(f"no {kind} are called {pattern!r}; {there_are}")
        print_rows(rows)


def model_rows(pattern: str) -> list[dict[str, Any]]:
    """Name, parameters of the backbone at 224 pixels, and shipped weights of each model."""
    import torch

    from visattn import create_model, list_models

    rows = []
    for name in list_models(pattern):
        with torch.device("meta"):  # nothing is allocated nor initialised
            model = create_model(name, num_classes=None)
        parameters = sum(parameter.numel() for parameter in model.parameters())
        weights = [shipped for shipped in list_models(pretrained=True) if f"{shipped}_".startswith(f"{name}_")]
        rows.append({"name": name, "parameters": parameters, "weights": weights})
    return rows


def weights_rows(pattern: str) -> list[dict[str, Any]]:
    """Name, kind, parameters, image size, number of classes or words, and bytes of each of the shipped weights."""
    import torch

    from visattn import list_models
    from visattn.checkpoints import build_model, shipped_weights
    from visattn.checkpoints.pretrained import read_tokenizer

    rows = []
    for name in list_models(pattern, pretrained=True):
        folder = shipped_weights()[name]
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        kind = config.get("kind", "classification")
        if kind in ("captioning", "question_answering"):
            config["tokenizer"] = read_tokenizer(folder)
        with torch.device("meta"):  # what the weights are made for; an encoder of another package needn't be there
            model = build_model(config, str(folder))
        rows.append(
            {
                "name": name,
                "kind": kind,
                "parameters": sum(parameter.numel() for parameter in model.parameters()),
                "image_size": list(model.backbone.image_size),
                "classes": getattr(model, "num_classes", None),
                "words": config["decoder"]["vocabulary_size"] if kind == "captioning" else None,
                "bytes": sum(file.stat().st_size for file in folder.glob("*.safetensors")),
            }
        )
    return rows


def print_rows(rows: list[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(header_style="bold")
    for name in rows[0]:
        table.add_column(name.replace("_", " "), justify="left" if name in ("name", "kind", "weights") else "right")
    for row in rows:
        table.add_row(*(cell(name, value) for name, value in row.items()))
    Console().print(table)


def cell(name: str, value: Any) -> str:
    """A value as a person reads it: parameters in millions, sizes as height x width."""
    if value is None:
        return ""
    if name == "parameters":
        return f"{value / 1e6:.2f} M"
    if name == "bytes":
        return f"{value / 1e6:.1f} MB"
    if name == "image_size":
        return "x".join(map(str, value))
    return ", ".join(value) if isinstance(value, list) else str(value)
