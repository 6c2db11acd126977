"""Any network of timm as a backbone."""

from __future__ import annotations

import difflib
import itertools
from collections.abc import Sequence
from typing import Any

import timm
import torch
from timm.models import group_parameters
from torch import Tensor, nn

from visattn.backbones.features import Backbone, Features, as_pair, constructor_arguments

# What timm.create_model takes to fetch weights or to run other code, and what has a name of its own here.
_refused = {
    "cache_dir",
    "checkpoint_path",
    "exportable",
    "feature_cfg",
    "features_only",
    "img_size",
    "in_chans",
    "kwargs_filter",
    "no_jit",
    "num_classes",
    "pretrained",
    "pretrained_cfg",
    "pretrained_cfg_overlay",
    "pretrained_filter_fn",
    "pretrained_model_args",
    "pretrained_strict",
    "pruned",
    "scriptable",
}


class TimmBackbone(Backbone):
    """Images (B, in_channels, H, W) to `Features`, by a network of timm with random weights and without its classifier.

    Maps are in channels-first memory order whatever the network computes in. The last one and the tokens are what the
    network gives after its final norm. Where a head widens them for its classifier (EfficientNet's 1x1 convolution),
    they are those in front of it, and `pooled`, which is always what timm's classifier reads, those behind it.

    Args:
        architecture: a name of `timm.list_models()`, such as "resnet18".
        image_size: height and width in pixels, or one number. Networks with position tables are made for it and refuse
            others, unless an option of theirs allows them (`dynamic_img_size=True` for most of timm's ViTs,
            `strict_img_size=False` for its Swins).
        out_indices: which of timm's feature levels to return as maps, finest first, the last one always among them;
            None is the deepest level of each stride.
        in_channels: of the images.
        frozen_norms: batch norms keep their statistics and factors in training, as detectors on few images want it.
        **options: further arguments of timm's `create_model`, such as `drop_path_rate=0.1`, as plain data.

    Attributes:
        network: timm's own module, whose parameters keep timm's names.

    Raises:
        ValueError: timm doesn't know the architecture (the message names near ones), gives no feature maps of it
            that cover the image, or refuses the image size or an option; or out_indices are unfit.
    """

    def __init__(
        self,
        architecture: str = "resnet18",
        image_size: int | Sequence[int] = 224,
        *,
        out_indices: Sequence[int] | None = None,
        in_channels: int = 3,
        frozen_norms: bool = False,
        **options: Any,
    ) -> None:
        arguments = constructor_arguments(locals(), extra="options")
        super().__init__()
        self.arguments = arguments
        self.architecture, self.image_size = architecture, as_pair(image_size)
        check_options(architecture, options)
        with torch.device("meta"):  # without memory for weights, to see what the network gives
            outline = create_network(architecture, self.image_size, in_channels, options)
        final, levels, pooled = try_out(outline, self.image_size, in_channels, architecture)
        self.levels = chosen_levels(out_indices, [info["reduction"] for info in outline.feature_info], architecture)
        self.strides = tuple(outline.feature_info[level]["reduction"] for level in self.levels)
        self.channels = tuple(levels[level].shape[1] for level in self.levels)
        check_grids([levels[level] for level in self.levels], self.strides, self.image_size, architecture)
        self.num_features = pooled.shape[1]
        self.channels_last = getattr(outline, "output_fmt", "NCHW") == "NHWC"
        last = levels[-1]
        width = final.shape[1] if final.ndim == 4 and not self.channels_last else final.shape[-1]
        self.widened = width != last.shape[1]
        self.num_prefix_tokens = final.shape[1] - last[0, 0].numel() if final.ndim == 3 and not self.widened else 0
        self.layers = depths(outline)
        self.num_layers = max(self.layers.values(), default=0) + 1
        self.network = create_network(architecture, self.image_size, in_channels, options)
        self.frozen_norms = frozen_norms
        if frozen_norms:
            for norm in self.batch_norms():
                norm.requires_grad_(False).eval()

    def forward(self, images: Tensor) -> Features:
        """Images (B, in_channels, H, W) to `Features`."""
        final, maps = self.network.forward_intermediates(images, indices=list(self.levels), output_fmt="NCHW")
        pooled = self.network.forward_head(final, pre_logits=True)
        last = maps[-1]  # (B, C, height, width), before the final norm
        if self.widened:
            return Features(tuple(maps), last.flatten(2).transpose(1, 2), pooled)
        if final.ndim == 3:
            tokens = final  # (B, prefix + height * width, C)
            last = tokens[:, self.num_prefix_tokens :].transpose(1, 2).unflatten(2, last.shape[-2:])
        else:
            last = final.permute(0, 3, 1, 2) if self.channels_last else final
            tokens = last.flatten(2).transpose(1, 2)  # (B, height * width, C)
        return Features((*maps[:-1], last), tokens, pooled)

    def train(self, mode: bool = True) -> TimmBackbone:
        """As of any module, but frozen norms stay as in evaluation."""
        super().train(mode)
        if self.frozen_norms:
            for norm in self.batch_norms():
                norm.eval()
        return self

    def batch_norms(self) -> list[nn.Module]:
        return [module for module in self.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]

    def layer_of(self, parameter_name: str) -> int:
        """As timm counts for layer-wise decay: 0 for the stem, then each block; the last also for the final norm.

        All parameters of a network whose layers timm doesn't tell apart are in one.
        """
        return self.layers[parameter_name.removeprefix("network.")]


def check_options(architecture: str, options: dict[str, Any]) -> None:
    """Refuses what timm doesn't know, and options that would do more than shape the network.

    Raises:
        ValueError: as the class says.
    """
    if not timm.is_model(architecture):
        near = difflib.get_close_matches(architecture, timm.list_models(), n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(near)}?" if near else "timm.list_models() names all"
        raise ValueError(f"timm {timm.__version__} knows no architecture {architecture!r}; {hint}")
    refused = sorted(_refused & options.keys())
    if refused:
        raise ValueError(
            f"option {', '.join(refused)} of timm.create_model is not for a backbone, which starts with random weights "
            "and has no classifier; the size and channels of images are image_size and in_channels"
        )
    shapeless = [name for name, value in options.items() if not is_plain(value)]
    if shapeless:
        raise ValueError(
            f"option {', '.join(shapeless)} must be plain data: numbers, strings, booleans or lists of them"
        )


def is_plain(value: Any) -> bool:
    if isinstance(value, Sequence) and not isinstance(value, str):
        return all(is_plain(item) for item in value)
    return value is None or isinstance(value, bool | int | float | str)


def create_network(architecture: str, image_size: tuple[int, int], in_channels: int, options: dict[str, Any]) -> Any:
    """timm's network with random weights and no classifier.

    Raises:
        ValueError: an option or the image size is none of the architecture's.
    """
    published = timm.get_pretrained_cfg(architecture)
    size: dict[str, Any] = {"img_size": image_size} if published is not None and published.fixed_input_size else {}
    try:
        network: nn.Module = timm.create_model(
            architecture, pretrained=False, num_classes=0, in_chans=in_channels, **size, **options
        )
    except (AssertionError, TypeError, ValueError, RuntimeError) as error:
        given = ", ".join(f"{name}={value!r}" for name, value in {"image_size": image_size, **options}.items())
        raise ValueError(f"timm builds no {architecture} with {given}: {error}") from error
    return network


@torch.no_grad()
def try_out(
    outline: Any, image_size: tuple[int, int], in_channels: int, architecture: str
) -> tuple[Tensor, list[Tensor], Tensor]:
    """What a network on the meta device gives for one image: final features, the maps of all levels, pooled features.

    Raises:
        ValueError: no feature maps, or not for images of this size.
    """
    images = torch.empty(1, in_channels, *image_size, device="meta")
    try:
        final, levels = outline.eval().forward_intermediates(images, output_fmt="NCHW")
        pooled = outline.forward_head(final, pre_logits=True)
        cells = levels[-1].flatten(2).shape[2]
        fits = pooled.ndim == 2 and (final.ndim == 4 or (final.ndim == 3 and final.shape[1] >= cells))
    except (
        AssertionError,
        AttributeError,
        IndexError,
        NotImplementedError,
        RuntimeError,
        TypeError,
        ValueError,
    ) as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(
            f"timm's {architecture} gives no feature maps of {image_size[0]}x{image_size[1]} pixels: {reason}"
        ) from error
    if not fits:
        raise ValueError(
            f"timm's {architecture} gives final features {tuple(final.shape)} that are no map of {cells} cells"
        )
    return final, levels, pooled


def chosen_levels(out_indices: Sequence[int] | None, strides: Sequence[int], architecture: str) -> tuple[int, ...]:
    """Levels (from 0) to return as maps: those asked for, or the deepest of each stride.

    Raises:
        ValueError: they don't rise, or end elsewhere than at the last level.
    """
    count = len(strides)
    if out_indices is None:
        return tuple(level for level in range(count) if level == count - 1 or strides[level + 1] != strides[level])
    levels = tuple(level + count if level < 0 else level for level in out_indices)
    if not levels or levels[-1] != count - 1 or levels[0] < 0 or any(a >= b for a, b in itertools.pairwise(levels)):
        raise ValueError(
            f"out_indices {tuple(out_indices)} must rise and end with {count - 1}, the last of the levels of "
            f"{architecture}, whose strides are {', '.join(map(str, strides))}"
        )
    return levels


def check_grids(maps: Sequence[Tensor], strides: Sequence[int], image_size: tuple[int, int], architecture: str) -> None:
    """Refuses networks whose maps (1, C, height, width) don't cover the image as their strides say.

    Raises:
        ValueError: as the class says.
    """
    for feature_map, stride in zip(maps, strides, strict=True):
        grid, expected = tuple(feature_map.shape[2:]), tuple(-(-side // stride) for side in image_size)
        if grid != expected:
            raise ValueError(
                f"timm's {architecture} makes a map of {grid[0]}x{grid[1]} cells of {image_size[0]}x{image_size[1]} "
                f"pixels, and stride {stride} would make {expected[0]}x{expected[1]}: choose an image_size that all "
                "strides divide, or leave this level out by out_indices"
            )


def depths(network: Any) -> dict[str, int]:
    """The depth of each parameter by its name, as timm's own layer-wise decay counts."""
    if not hasattr(network, "group_matcher"):
        return dict.fromkeys((name for name, _ in network.named_parameters()), 0)
    return group_parameters(network, network.group_matcher(coarse=False), reverse=True)
