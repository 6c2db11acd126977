"""The attention of one layer as a picture."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from visattn.attention import MultiHeadAttention, NeighborhoodAttention, WindowAttention
from visattn.heads import ImageClassifier
from visattn.interpret.record import spread
from visattn.interpret.relevance import evaluating, look, to_image


class Layer(NamedTuple):
    """An attention module of a network.

    Attributes:
        name: within the backbone, such as "blocks.3.attention".
        kind: global, neighborhood or window, with its size in tokens.
        heads: number of heads.
        grid: (height, width) in tokens.
        queries: number of queries, those of prefix tokens included.
    """

    name: str
    kind: str
    heads: int
    grid: tuple[int, int]
    queries: int


def attention_layers(model: ImageClassifier, images: Tensor) -> list[Layer]:
    """The attention modules in the order in which these images (B, 3, H, W) pass through them."""
    with evaluating(model), torch.no_grad():
        _, steps, _ = look(model, images)
    modules = dict(model.backbone.named_modules())
    return [
        Layer(step.name, kind_of(modules[step.name]), step.weights.shape[1], step.grid, step.weights.shape[2])
        for step in steps
    ]


def layer_attention(
    model: ImageClassifier,
    images: Tensor,
    layer: int | str = -1,
    head: int | Literal["mean"] = "mean",
    query: tuple[int, int] | Literal["class", "mean"] = "mean",
) -> Tensor:
    """Where one layer looks.

    Args:
        model: any classifier of the zoo.
        images: (B, 3, H, W), preprocessed.
        layer: its number in the order of `attention_layers`, from the end if negative, or its name.
        head: its number from 0, or "mean" over all.
        query: who looks: the token at (row, column) of the layer's grid, the "class" token, or the "mean" over the
            tokens of the image.

    Returns:
        (B, H, W) in [0, 1], each map from the least to the most attended place.

    Raises:
        ValueError: there is no such layer, head or query; the message says what there is.
    """
    with evaluating(model), torch.no_grad():
        _, steps, _ = look(model, images)
    step = steps[layer_index([step.name for step in steps], layer)]
    weights = step.weights.float() if step.keys is None else spread(step.weights.float(), step.keys)
    if head == "mean":
        weights = weights.mean(dim=1)  # (B, queries, keys)
    elif 0 <= head < weights.shape[1]:
        weights = weights[:, head]
    else:
        raise ValueError(f"{step.name} has no head {head}; its {weights.shape[1]} heads are counted from 0")
    return to_image(attention_of_query(weights, step.grid, query, step.name), step.grid, images.shape[-2:])


def attention_of_query(
    weights: Tensor, grid: tuple[int, int], query: tuple[int, int] | Literal["class", "mean"], name: str
) -> Tensor:
    """From weights (B, queries, keys), what one query gives to each key: (B, keys)."""
    height, width = grid
    prefix = max(weights.shape[1] - height * width, 0)
    if query == "mean":
        return weights[:, prefix:].mean(dim=1)
    if query == "class":
        if not prefix:
            raise ValueError(f"{name} has no class token; choose a place (row, column), or the mean over all")
        return weights[:, 0]
    row, column = query
    if weights.shape[1] == 1:
        raise ValueError(f"{name} has a single query and no place for it; choose the mean")
    if not (0 <= row < height and 0 <= column < width):
        raise ValueError(f"{name} has no token at row {row}, column {column} of its {height}x{width} grid")
    return weights[:, prefix + row * width + column]


def layer_index(names: list[str], layer: int | str) -> int:
    """The place of a layer, given by number or by a name or a part of one.

    Raises:
        ValueError: there is none, or there are several.
    """
    if isinstance(layer, int):
        if -len(names) <= layer < len(names):
            return layer % len(names)
        raise ValueError(f"there is no layer {layer}; the {len(names)} attention layers are counted from 0")
    part = layer.removeprefix("backbone.")
    fitting = [index for index, name in enumerate(names) if f".{part}." in f".{name}."]
    if part in names:
        return names.index(part)
    if len(fitting) == 1:
        return fitting[0]
    found = f"{len(fitting)} attention layers are" if fitting else "no attention layer is"
    raise ValueError(f"{found} called {layer!r}; there are: {', '.join(names)}")


def kind_of(module: nn.Module) -> str:
    """The kind of attention in a few words."""
    if isinstance(module, NeighborhoodAttention):
        dilated = "" if module.dilation == (1, 1) else f", dilation {module.dilation[0]}x{module.dilation[1]}"
        return f"neighborhood {module.kernel_size[0]}x{module.kernel_size[1]}{dilated}"
    if isinstance(module, WindowAttention):
        shifted = ", shifted" if any(module.shift) else ""
        return f"window {module.window_size[0]}x{module.window_size[1]}{shifted}"
    return "global" if isinstance(module, MultiHeadAttention) else type(module).__name__
