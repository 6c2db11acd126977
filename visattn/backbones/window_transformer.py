"""What Swin and Swin V2 have in common: stages of blocks whose windows shift, on maps that shrink by stages."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from torch import Tensor, nn
from torch.nn import functional

from visattn.backbones.features import as_pair
from visattn.backbones.layers import drop_path_rates
from visattn.backbones.staged_transformer import StagedTransformer, TransformerStage


class WindowStage(NamedTuple):
    """What the blocks of a stage have in common.

    Attributes:
        channels: of a token.
        num_heads: attention heads.
        window_size: (height, width) in tokens, no larger than the stage's map.
    """

    channels: int
    num_heads: int
    window_size: tuple[int, int]


class WindowTransformer(StagedTransformer):
    """Images (B, channels, H, W) to `Features` with one map per stage; every second block shifts its windows by half.

    Args:
        image_size: height and width in pixels.
        stages: their channels double from one to the next.
        depths: blocks of each stage.
        patch_embedding: images to tokens (B, N, channels) and their (height, width); with its patch_size.
        norm: makes a norm of so many channels.
        make_block: of a stage, how far its windows are shifted, and the probability that a sample skips a branch.
        make_merging: the module that joins 2x2 tokens of so many channels into one of twice as many.
        drop_path: that probability in the last block; it rises linearly from 0.
    """

    def __init__(
        self,
        image_size: int | Sequence[int],
        stages: Sequence[WindowStage],
        depths: Sequence[int],
        *,
        patch_embedding: nn.Module,
        patch_size: int,
        norm: Callable[[int], nn.Module],
        make_block: Callable[[WindowStage, tuple[int, int], float], nn.Module],
        make_merging: Callable[[int], nn.Module],
        drop_path: float,
    ) -> None:
        super().__init__()
        self.image_size = as_pair(image_size)
        self.channels = tuple(stage.channels for stage in stages)
        self.strides = tuple(patch_size * 2**index for index in range(len(stages)))
        self.depths = tuple(depths)
        self.num_features = self.channels[-1]
        self.num_prefix_tokens = 0
        self.num_layers = sum(depths) + 1
        self.patch_embedding = patch_embedding
        rates = iter(drop_path_rates(drop_path, sum(depths)))
        self.stages = nn.ModuleList()
        for index, (stage, depth) in enumerate(zip(stages, depths, strict=True)):
            shifts = ((0, 0), (stage.window_size[0] // 2, stage.window_size[1] // 2))
            merging = make_merging(stages[index - 1].channels) if index else None
            blocks = [make_block(stage, shifts[block % 2], next(rates)) for block in range(depth)]
            self.stages.append(TransformerStage(merging, blocks))
        self.norm = norm(self.num_features)
        self.initialize()


def plan_stages(
    image_size: int | Sequence[int],
    patch_size: int,
    dim: int,
    depths: Sequence[int],
    num_heads: Sequence[int],
    window_size: int | Sequence[int | Sequence[int]],
) -> list[WindowStage]:
    """The stages of a network for such images.

    Raises:
        ValueError: depths, num_heads and window_size don't describe the same number of stages.
    """
    windows = (window_size,) * len(depths) if isinstance(window_size, int) else tuple(window_size)
    if not len(depths) == len(num_heads) == len(windows):
        raise ValueError(f"depths {depths}, num_heads {num_heads} and window_size {window_size} differ in stages")
    stages = []
    for index, (heads, window) in enumerate(zip(num_heads, windows, strict=True)):
        stride = patch_size * 2**index
        height, width = (-(-side // stride) for side in as_pair(image_size))  # of the map
        (high, wide) = as_pair(window)
        stages.append(WindowStage(dim * 2**index, heads, (min(high, height), min(wide, width))))
    return stages


def join_cells(tokens: Tensor, grid: tuple[int, int]) -> tuple[Tensor, tuple[int, int]]:
    """Puts the channels of 2x2 tokens behind each other; an odd side is padded with zeros.

    (B, height * width, dim) -> (B, ceil(height / 2) * ceil(width / 2), 4 * dim), and the new (height, width).
    """
    cells = tokens.unflatten(1, grid)  # (B, height, width, dim)
    if grid[0] % 2 or grid[1] % 2:
        cells = functional.pad(cells, (0, 0, 0, grid[1] % 2, 0, grid[0] % 2))
    batch, height, width, dim = cells.shape
    cells = cells.reshape(batch, height // 2, 2, width // 2, 2, dim)
    cells = cells.permute(0, 1, 3, 4, 2, 5)  # down the columns first, as published
    return cells.reshape(batch, height // 2 * (width // 2), 4 * dim), (height // 2, width // 2)
