"""`visattn attend`: where a network looks in a picture, drawn over it."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, NamedTuple

import typer

from visattn.cli.checkpoint import ArchitectureOption, CheckpointOption, DeviceOption

if TYPE_CHECKING:
    from torch import Tensor

    from visattn.heads import ImageClassifier
    from visattn.interpret import Layer

Query = tuple[int, int] | Literal["class", "mean"]


class Method(StrEnum):
    """How the map is made."""

    rollout = "rollout"
    relevance = "relevance"
    layer = "layer"


class Choice(NamedTuple):
    """What of the attention is wanted; None where the model decides."""

    method: Method
    layer: int | str
    head: int | Literal["mean"]
    query: Query | None
    class_name: str | None


def main(
    image: Annotated[Path | None, typer.Argument(metavar="IMAGE", help="a picture", show_default=False)] = None,
    checkpoint: CheckpointOption = None,
    architecture: ArchitectureOption = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="the picture to write, .png or .jpg")] = Path(
        "attention.png"
    ),
    method: Annotated[
        Method | None,
        typer.Option(
            help="rollout: through all layers; relevance: for a class, by its gradients; layer: of one layer. "
            "Default: layer if --layer, --head or --query is given, relevance if --class is, else rollout",
            show_default=False,
        ),
    ] = None,
    layer: Annotated[
        str | None, typer.Option(help="number from 0, from the end if negative, or name; default: the last")
    ] = None,
    head: Annotated[str | None, typer.Option(metavar="N|mean", help="a head from 0; default: the mean")] = None,
    query: Annotated[
        str | None,
        typer.Option(
            metavar="ROW,COLUMN|class|mean",
            help="who looks: a token of the layer's grid from 0, the class token, or the mean over the image; "
            "default: the class token if the layer has one, else the mean",
        ),
    ] = None,
    class_name: Annotated[
        str | None,
        typer.Option("--class", metavar="NAME|N", help="the class that relevance explains; default: the predicted one"),
    ] = None,
    list_layers: Annotated[bool, typer.Option("--list", help="list the layers of the model; no IMAGE needed")] = False,
    device: DeviceOption = "auto",
) -> None:
    """Draws where a network looks over a picture.

    Examples:

        visattn attend cat.jpg --output map.png

        visattn attend cat.jpg --layer -1 --head 2 --query 3,5

        visattn attend cat.jpg --method relevance --class cat -c outputs/RUN/model

        visattn attend --list -c google/vit-base-patch16-224
    """
    from visattn.cli.checkpoint import open_model
    from visattn.cli.errors import errors_as_messages
    from visattn.cli.pictures import check_output
    from visattn.heads import ImageClassifier

    with errors_as_messages():
        choice = read_choice(method, layer, head, query, class_name)
        if image is None and not list_layers:
            raise ValueError("which picture? visattn attend IMAGE, or --list for the layers of the model")
        check_output("--output", output)
        model = open_model(ImageClassifier, checkpoint, device, architecture)
        if list_layers:
            print_layers(layers_of(model))
            return
        assert image is not None
        draw(model, image, output, choice)
    print(output)


def read_choice(
    method: Method | None, layer: str | None, head: str | None, query: str | None, class_name: str | None
) -> Choice:
    """The options, checked as far as they can be without the model.

    Raises:
        ValueError: an option has no meaning, or none together with another.
    """
    of_layer = {"--layer": layer, "--head": head, "--query": query}
    given = [name for name, value in of_layer.items() if value is not None]
    chosen = method or (Method.layer if given else Method.relevance if class_name else Method.rollout)
    if chosen != Method.layer and given:
        raise ValueError(f"--method {chosen} goes through all layers; leave out {' and '.join(given)}")
    if chosen != Method.relevance and class_name is not None:
        raise ValueError(f"--class is for --method relevance; the map of --method {chosen} is the same for every class")
    number = layer is not None and layer.removeprefix("-").isdecimal()
    return Choice(
        chosen,
        -1 if layer is None else int(layer) if number else layer,
        read_head(head),
        read_query(query),
        class_name,
    )


def read_head(text: str | None) -> int | Literal["mean"]:
    if text is None or text == "mean":
        return "mean"
    if not text.isdecimal():
        raise ValueError(f"--head {text} is neither a number from 0 nor mean")
    return int(text)


def read_query(text: str | None) -> Query | None:
    if text is None:
        return None
    if text == "class":
        return "class"
    if text == "mean":
        return "mean"
    numbers = [part.strip() for part in text.split(",")]
    if len(numbers) != 2 or not all(number.isdecimal() for number in numbers):
        raise ValueError(f"--query {text} is neither ROW,COLUMN (from 0) nor class nor mean")
    return int(numbers[0]), int(numbers[1])


def draw(model: ImageClassifier, image: Path, output: Path, choice: Choice) -> None:
    """Writes the picture of what the choice says."""
    import torch

    from visattn.data import open_image
    from visattn.files import atomic_path
    from visattn.interpret import attention_figure, view_of

    assert model.preprocess is not None
    picture = open_image(image)
    images = model.preprocess(picture)[None].to(next(model.parameters()).device)  # (1, 3, H, W)
    attention, title, mark = attention_map(model, images, choice)
    caption = image.name
    if model.head is not None:
        with torch.inference_mode():
            probabilities = model(images).float().softmax(dim=1)[0]
        best = int(probabilities.argmax())
        caption += f", classified as {class_label(model, best)} ({float(probabilities[best]):.0%})"
    figure = attention_figure(view_of(model.preprocess, picture), attention[0], title, caption, mark)
    with atomic_path(output) as temporary:
        figure.save(temporary)


def attention_map(
    model: ImageClassifier, images: Tensor, choice: Choice
) -> tuple[Tensor, str, tuple[float, float, float, float] | None]:
    """The map (1, H, W), a title that says what it is, and the place of the query as parts of height and width."""
    import torch

    from visattn.interpret import attention_heatmap, attention_rollout, layer_attention
    from visattn.interpret.layer import attention_layers, layer_index

    if choice.method == Method.rollout:
        return attention_rollout(model, images), "Attention rollout over all layers", None
    if choice.method == Method.relevance:
        if choice.class_name is None:
            with torch.inference_mode():
                chosen = int(model(images).argmax())
            title = f"Relevance for {class_label(model, chosen)}, the predicted class"
        else:
            chosen = class_number(model, choice.class_name)
            title = f"Relevance for {class_label(model, chosen)}"
        return attention_heatmap(model, images, torch.tensor([chosen], device=images.device)), title, None
    layers = attention_layers(model, images)
    layer = layers[layer_index([layer.name for layer in layers], choice.layer)]
    height, width = layer.grid
    query = choice.query
    if query is None:
        query = "class" if getattr(model.backbone, "class_token", None) is not None and layer.queries > 1 else "mean"
    attention = layer_attention(model, images, layer.name, choice.head, query)
    heads = f"mean of {layer.heads} heads" if choice.head == "mean" else f"head {choice.head} (from 0) of {layer.heads}"
    title = f"{layer.name} ({layer.kind}), {heads}"
    if isinstance(query, str):
        return attention, f"{title}, {'class token' if query == 'class' else 'mean of all queries'}", None
    row, column = query
    mark = (row / height, column / width, (row + 1) / height, (column + 1) / width)
    return attention, f"{title}, query at row {row}, column {column} of {height}x{width}", mark


def class_label(model: ImageClassifier, index: int) -> str:
    """What to call a class within a sentence."""
    return f"class {index}" if model.classes is None else model.classes[index]


def class_number(model: ImageClassifier, name: str) -> int:
    """The number of a class, given by its name or as a number.

    Raises:
        ValueError: there is no such class.
    """
    if model.classes is not None and name in model.classes:
        return model.classes.index(name)
    count = model.num_classes or 0
    if name.isdecimal() and int(name) < count:
        return int(name)
    names = f", such as {', '.join(model.classes[:5])}" if model.classes is not None else ""
    raise ValueError(f"--class {name}: there is no such class; there are {count}, counted from 0{names}")


def layers_of(model: ImageClassifier) -> list[Layer]:
    """The layers as an image of the model's own size passes through them."""
    import torch

    from visattn.interpret import attention_layers

    height, width = model.backbone.image_size
    return attention_layers(model, torch.zeros(1, 3, height, width, device=next(model.parameters()).device))


def print_layers(layers: list[Layer]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("layer", "name", "attention", "heads", "grid", "queries", header_style="bold")
    for number, layer in enumerate(layers):
        grid = f"{layer.grid[0]}x{layer.grid[1]}"
        table.add_row(str(number), layer.name, layer.kind, str(layer.heads), grid, str(layer.queries))
    Console().print(table)
