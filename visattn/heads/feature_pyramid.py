"""Maps of several strides from any backbone: a top-down pyramid over stages, or a simple one over a plain ViT's map."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional
from torchvision.ops import FeaturePyramidNetwork


class FeaturePyramid(nn.Module):
    """The maps of a backbone to maps of equal width, one for each level: level l has strides of 2**l pixels.

    Several maps are joined from the coarsest to the finest; a single one is magnified by transposed convolutions and
    reduced by max pooling. Levels that the backbone doesn't reach follow from the nearest one that it does. All norms
    are over the channels of one place, so that it doesn't matter how much padding stands beside an image.

    Args:
        channels, strides: of the backbone's maps, finest first. A stride that is no power of two counts as the nearest
            one; those of the levels then follow from it: with 14 in place of 16 they are 7, 14, 28...
        out_channels: of each map of the result.
        levels: consecutive and rising.

    Attributes:
        strides: pixels per cell of each level.
        out_channels: of each map.

    Raises:
        ValueError: channels and strides differ in number, levels are not consecutive, or a stride would be no integer.

    Source: feature pyramid networks of Lin et al. 2017 (https://arxiv.org/abs/1612.03144), section 3; further levels as
        in RetinaNet (Lin et al. 2017, https://arxiv.org/abs/1708.02002), section 4; the simple pyramid of ViTDet (Li et
        al. 2022, https://arxiv.org/abs/2203.16527), section 3.
    """

    def __init__(
        self,
        channels: Sequence[int],
        strides: Sequence[int],
        out_channels: int = 256,
        levels: Sequence[int] = (3, 4, 5, 6),
    ) -> None:
        super().__init__()
        if not channels or len(channels) != len(strides):
            raise ValueError(
                f"channels {tuple(channels)} and strides {tuple(strides)} must say the same maps, one each"
            )
        if not levels or list(levels) != list(range(levels[0], levels[0] + len(levels))):
            raise ValueError(f"levels {tuple(levels)} must be consecutive numbers, as in (3, 4, 5)")
        present = [round(math.log2(stride)) for stride in strides]  # the level of each of the backbone's maps
        cells = [strides[-1] * 2.0 ** (level - present[-1]) for level in levels]
        if any(cell < 1 or cell != int(cell) for cell in cells):
            raise ValueError(
                f"levels {tuple(levels)} of a backbone with strides {tuple(strides)} would have strides "
                f"{', '.join(f'{cell:g}' for cell in cells)}, which are not all integers: begin with a coarser level"
            )
        self.strides = tuple(int(cell) for cell in cells)
        self.out_channels = out_channels
        self.pyramid: SimplePyramid | TopDownPyramid
        if len(channels) == 1:
            self.pyramid = SimplePyramid(channels[0], present[0], out_channels, levels)
        else:
            self.pyramid = TopDownPyramid(channels, present, out_channels, levels)

    def forward(self, maps: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Maps (B, C_i, ceil(H / s_i), ceil(W / s_i)) of the backbone to (B, out_channels, H_l, W_l), finest first.

        H_l is ceil(H / stride) of the level, or more where a map was magnified and its cells reached over the border.
        """
        return self.pyramid(maps)


class TopDownPyramid(nn.Module):
    """torchvision's pyramid over those maps that lie within the levels, and convolutions for the levels without one.

    Args:
        channels, present: width and level of each of the backbone's maps. Of several on a level the last is taken.
        out_channels, levels: as in `FeaturePyramid`.
    """

    def __init__(
        self, channels: Sequence[int], present: Sequence[int], out_channels: int, levels: Sequence[int]
    ) -> None:
        super().__init__()
        within = {level: index for index, level in enumerate(present) if levels[0] <= level <= levels[-1]}
        if not within:  # all are finer, or all are coarser
            nearest = present[-1] if present[-1] < levels[0] else present[0]
            within = {level: index for index, level in enumerate(present) if level == nearest}
        self.within, self.levels = within, tuple(levels)
        self.network = FeaturePyramidNetwork(
            [channels[index] for index in within.values()], out_channels, norm_layer=ChannelNorm
        )
        first = min(within)
        self.resampled = nn.ModuleDict()
        for level in range(first - 1, levels[0] - 1, -1):
            self.resampled[str(level)] = magnified(out_channels, out_channels)
        for level in range(first + 1, levels[-1] + 1):
            if level not in within:
                self.resampled[str(level)] = halved(out_channels)

    def forward(self, maps: Sequence[Tensor]) -> tuple[Tensor, ...]:
        chosen = OrderedDict((str(level), maps[index]) for level, index in self.within.items())
        found: dict[str, Tensor] = self.network(chosen)
        first = min(self.within)
        for level, resample in self.resampled.items():
            source = int(level) + (1 if int(level) < first else -1)
            found[level] = resample(found[str(source)])  # (B, out_channels, H_l, W_l)
        return tuple(found[str(level)] for level in self.levels)


class SimplePyramid(nn.Module):
    """Each level from the one map of a plain transformer, without a way from level to level.

    Args:
        channels, present: width and level of the map.
        out_channels, levels: as in `FeaturePyramid`.
    """

    def __init__(self, channels: int, present: int, out_channels: int, levels: Sequence[int]) -> None:
        super().__init__()
        self.branches = nn.ModuleList()
        for level in levels:
            parts: list[nn.Module] = []
            width = channels
            for step in range(present - level):
                narrower = max(width // 2, 1)
                parts += [nn.GELU()] if step else []
                parts.append(magnified(width, narrower))
                width = narrower
            if level > present:
                parts.append(nn.MaxPool2d(2 ** (level - present), ceil_mode=True))
            parts += [
                nn.Conv2d(width, out_channels, 1, bias=False),
                ChannelNorm(out_channels),
                nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False),
                ChannelNorm(out_channels),
            ]
            self.branches.append(nn.Sequential(*parts))

    def forward(self, maps: Sequence[Tensor]) -> tuple[Tensor, ...]:
        (cells,) = maps
        return tuple(branch(cells) for branch in self.branches)


class ChannelNorm(nn.LayerNorm):
    """Layer norm over the channels of each place of a map (B, C, H, W)."""

    def forward(self, cells: Tensor) -> Tensor:
        last = cells.permute(0, 2, 3, 1)  # (B, H, W, C)
        return functional.layer_norm(last, self.normalized_shape, self.weight, self.bias, self.eps).permute(0, 3, 1, 2)


def magnified(channels: int, out_channels: int) -> nn.Sequential:
    """(B, channels, H, W) -> (B, out_channels, 2 H, 2 W)."""
    return nn.Sequential(nn.ConvTranspose2d(channels, out_channels, 2, stride=2), ChannelNorm(out_channels))


def halved(channels: int) -> nn.Sequential:
    """(B, channels, H, W) -> (B, channels, ceil(H / 2), ceil(W / 2))."""
    return nn.Sequential(nn.Conv2d(channels, channels, 3, stride=2, padding=1), ChannelNorm(channels))
