"""What every backbone returns, and the small contract that heads, tasks and checkpoints rely on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from torch import Tensor, nn

if TYPE_CHECKING:
    from visattn.data import Preprocess


class Features(NamedTuple):
    """What a backbone sees in a batch of images.

    Attributes:
        maps: feature maps (B, C_i, ceil(H / s_i), ceil(W / s_i)), finest first; C_i and s_i are the backbone's
            `channels` and `strides`.
        tokens: (B, N, C) of the last stage after the final norm, in reading order behind the prefix tokens (class,
            distillation, registers), of which there are `num_prefix_tokens`.
        pooled: (B, num_features), what a classifier reads.
    """

    maps: tuple[Tensor, ...]
    tokens: Tensor
    pooled: Tensor


class Backbone(nn.Module):
    """Images (B, channels, H, W) in, `Features` out; the attributes by which any head plugs into any backbone.

    Attributes:
        arguments: all constructor arguments as plain data: `type(backbone)(**backbone.arguments)` is the same
            architecture with new weights.
        image_size: (height, width) in pixels that the parameters are made for; other sizes work too.
        channels: of each map, finest first.
        strides: pixels per cell of each map, finest first.
        num_features: width of `Features.pooled`.
        num_prefix_tokens: how many of `Features.tokens` belong to no place in the image.
        num_layers: depth as layer-wise learning-rate decay counts it: the embeddings and each block.
        adaptation_images: how many training images `adapt` wants; 0 for most.
        preprocess: of the pictures that trained weights were trained on, to whose colours a task normalises its data;
            None for new weights.
    """

    arguments: dict[str, Any]
    image_size: tuple[int, int]
    channels: tuple[int, ...]
    strides: tuple[int, ...]
    num_features: int
    num_prefix_tokens: int
    num_layers: int
    adaptation_images: int = 0
    preprocess: Preprocess | None = None

    def adapt(self, images: Tensor) -> None:
        """Takes from training images (`adaptation_images`, channels, H, W) what gradients don't learn.

        A task calls it once, before new weights are trained, where the number of images isn't 0.
        """
        raise NotImplementedError

    def layer_of(self, parameter_name: str) -> int:
        """The depth of a parameter: 0 for the embeddings, i for the i-th block, the last also for the final norm."""
        raise NotImplementedError


def constructor_arguments(values: Mapping[str, Any], extra: str = "") -> dict[str, Any]:
    """The `locals()` of a constructor's first line as plain data: lists of any kind become tuples.

    Args:
        values: `locals()`.
        extra: the name of the constructor's `**keywords`, whose entries count as arguments of their own.
    """
    arguments: dict[str, Any] = {
        name: value for name, value in values.items() if name not in ("self", "__class__", extra)
    }
    arguments |= values[extra] if extra else {}
    return {name: _plain(value) for name, value in arguments.items()}


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return tuple(_plain(item) for item in value)
    return value


def as_pair(value: int | Sequence[int]) -> tuple[int, int]:
    """A size in pixels or tokens as (height, width)."""
    if isinstance(value, int):
        return value, value
    height, width = value
    return int(height), int(width)


def stage_patch_size(image_size: int | Sequence[int]) -> int:
    """Pixels per cell of the first stage by which a preset serves small and large images: 4 from 64 pixels on, or 2."""
    return 4 if min(as_pair(image_size)) >= 64 else 2
