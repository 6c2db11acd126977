"""NAT and DiNAT: neighborhood attention, dilated or not, on maps that shrink by overlapping convolutions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from visattn.attention import NeighborhoodAttention
from visattn.backbones.blocks import BlockDesign, TransformerBlock
from visattn.backbones.features import as_pair, constructor_arguments
from visattn.backbones.layers import drop_path_rates
from visattn.backbones.staged_transformer import StagedTransformer, TransformerStage


class NeighborhoodAttentionTransformer(StagedTransformer):
    """Images (B, channels, H, W) to `Features` with one map per stage, of stride `patch_size` * 2**stage.

    Args:
        image_size: height and width in pixels, or one number; only for reference.
        patch_size: pixels per token of the first stage along one axis, a power of two.
        dim: channels of the first stage; each further stage doubles them.
        depths: blocks of each stage.
        num_heads: attention heads of each stage.
        kernel_size: side in tokens of the neighborhood, of all stages or one for each.
        dilation: distance between the neighbors, of all blocks; or for each stage a number, or a pattern that is
            repeated over its blocks: ((1, 8), (1, 4), (1, 2), 1) is DiNAT.
        pad_small_maps: a map smaller than kernel_size * dilation is padded with zeros for the attention, which take
            part as keys, as the published networks do; otherwise the neighborhood shrinks to what fits.
        stem_norm: batch norm and ReLU behind the convolutions of the stem but the last.
        mlp_ratio: hidden channels of the MLP / channels.
        qkv_bias: biases of query, key and value.
        layer_scale: initial value of a learned factor per channel on each branch; None leaves it out.
        in_channels: of the images.
        norm_eps: epsilon of the norms of blocks and tokens; those behind convolutions have 1e-5.
        dropout, attention_dropout: probabilities within MLP and attention, in training.
        drop_path: probability that a sample skips a branch of the last block in training; rises linearly from 0.

    Raises:
        ValueError: depths, num_heads, kernel_size and dilation don't describe the same number of stages, or patch_size
            is no power of two.

    Source: Hassani et al. 2023, https://arxiv.org/abs/2204.07143; dilated: Hassani & Shi 2022,
        https://arxiv.org/abs/2209.15001.
    """

    def __init__(
        self,
        image_size: int | Sequence[int] = 224,
        patch_size: int = 4,
        dim: int = 64,
        depths: Sequence[int] = (3, 4, 6, 5),
        num_heads: Sequence[int] = (2, 4, 8, 16),
        *,
        kernel_size: int | Sequence[int] = 7,
        dilation: int | Sequence[int | Sequence[int]] = 1,
        pad_small_maps: bool = False,
        stem_norm: bool = False,
        mlp_ratio: float = 3.0,
        qkv_bias: bool = True,
        layer_scale: float | None = None,
        in_channels: int = 3,
        norm_eps: float = 1e-5,
        dropout: float = 0.0,
        attention_dropout: float = 0.0,
        drop_path: float = 0.0,
    ) -> None:
        arguments = constructor_arguments(locals())
        super().__init__()
        self.arguments = arguments
        kernels = (kernel_size,) * len(depths) if isinstance(kernel_size, int) else tuple(kernel_size)
        patterns = (dilation,) * len(depths) if isinstance(dilation, int) else tuple(dilation)
        if not len(depths) == len(num_heads) == len(kernels) == len(patterns):
            raise ValueError(
                f"depths {depths}, num_heads {num_heads}, kernel_size {kernel_size} and dilation {dilation} differ in "
                "stages"
            )
        self.image_size = as_pair(image_size)
        self.channels = tuple(dim * 2**stage for stage in range(len(depths)))
        self.strides = tuple(patch_size * 2**stage for stage in range(len(depths)))
        self.depths = tuple(depths)
        self.num_features = self.channels[-1]
        self.num_prefix_tokens = 0
        self.num_layers = sum(depths) + 1

        self.patch_embedding = OverlappingEmbedding(in_channels, dim, patch_size, stem_norm=stem_norm)
        rates = iter(drop_path_rates(drop_path, sum(depths)))
        self.stages = nn.ModuleList()
        for stage, (channels, heads) in enumerate(zip(self.channels, num_heads, strict=True)):
            design = BlockDesign(channels, mlp_ratio, norm_eps=norm_eps, layer_scale=layer_scale, dropout=dropout)
            attention = partial(
                NeighborhoodAttention,
                channels,
                heads,
                kernel_size=kernels[stage],
                qkv_bias=qkv_bias,
                dropout=attention_dropout,
            )
            pattern = patterns[stage]
            steps = (pattern,) if isinstance(pattern, int) else tuple(pattern)
            self.stages.append(
                TransformerStage(
                    None if stage == 0 else ConvolutionalDownsampling(channels // 2, channels),
                    [
                        NeighborhoodBlock(
                            design,
                            partial(attention, dilation=steps[block % len(steps)]),
                            next(rates),
                            least=kernels[stage] * steps[block % len(steps)] if pad_small_maps else 1,
                        )
                        for block in range(depths[stage])
                    ],
                )
            )
        self.norm = nn.LayerNorm(self.num_features, eps=norm_eps)
        self.initialize()


class OverlappingEmbedding(nn.Module):
    """Tokens from overlapping patches, by 3x3 convolutions of which the last ones halve the map, and a norm.

    Args:
        in_channels: of the images.
        dim: channels of a token; the convolutions before the last have half of them.
        patch_size: pixels per token along one axis, a power of two.
        stem_norm: batch norm and ReLU behind each convolution but the last, which otherwise are linear.

    Raises:
        ValueError: patch_size is no power of two.

    Source: Hassani et al. 2023, section 3.4.
    """

    def __init__(self, in_channels: int, dim: int, patch_size: int, *, stem_norm: bool = False) -> None:
        super().__init__()
        halvings = patch_size.bit_length() - 1
        if patch_size < 1 or patch_size != 2**halvings:
            raise ValueError(f"patch_size {patch_size} doesn't fit a convolutional stem; choose a power of two")
        strides = [1] * (2 - halvings) + [2] * halvings  # two convolutions at least
        layers: list[nn.Module] = []
        for stride in strides[:-1]:
            layers.append(nn.Conv2d(in_channels, dim // 2, 3, stride, padding=1, bias=not stem_norm))
            layers += [nn.BatchNorm2d(dim // 2), nn.ReLU(inplace=True)] if stem_norm else []
            in_channels = dim // 2
        layers.append(nn.Conv2d(in_channels, dim, 3, strides[-1], padding=1))
        self.projection = nn.Sequential(*layers)
        self.norm = nn.LayerNorm(dim)

    def forward(self, images: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Images (B, channels, H, W) to tokens (B, height * width, dim) and (height, width), H / patch_size up."""
        features = self.projection(images)  # (B, dim, height, width)
        return self.norm(features.flatten(2).transpose(1, 2)), (features.shape[2], features.shape[3])


class ConvolutionalDownsampling(nn.Module):
    """A 3x3 convolution that halves the map, and a norm.

    (B, height * width, dim) -> (B, ceil(height / 2) * ceil(width / 2), new_dim).
    """

    def __init__(self, dim: int, new_dim: int) -> None:
        super().__init__()
        self.reduction = nn.Conv2d(dim, new_dim, 3, stride=2, padding=1, bias=False)
        self.norm = nn.LayerNorm(new_dim)

    def forward(self, tokens: Tensor, grid: tuple[int, int]) -> tuple[Tensor, tuple[int, int]]:
        features = self.reduction(tokens.transpose(1, 2).unflatten(2, grid))  # (B, new_dim, height, width)
        return self.norm(features.flatten(2).transpose(1, 2)), (features.shape[2], features.shape[3])


class NeighborhoodBlock(TransformerBlock):
    """A transformer block whose map is padded with zeros behind the norm, below and at the right, to a least side.

    Args:
        design, make_attention, drop_path: see `Block`.
        least: tokens along each side that the attention gets; 1 pads nothing.
    """

    def __init__(
        self, design: BlockDesign, make_attention: Callable[[], nn.Module], drop_path: float, *, least: int
    ) -> None:
        super().__init__(design, make_attention, drop_path)
        self.least = least

    def forward(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        tokens = self.add(tokens, self.attend(self.norm1(tokens), grid), self.layer_scale1)
        return self.add(tokens, self.mlp(self.norm2(tokens)), self.layer_scale2)

    def attend(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        """Attention on tokens (B, height * width, dim) of the grid."""
        padded = self.padded(grid)
        if padded == grid:
            return self.attention(tokens, grid)
        cells = self.pad(tokens.unflatten(1, grid))  # (B, padded height, padded width, dim)
        cells = self.attention(cells.flatten(1, 2), padded).unflatten(1, padded)
        return cells[:, : grid[0], : grid[1]].flatten(1, 2)

    def padded(self, grid: tuple[int, int]) -> tuple[int, int]:
        """The (height, width) that the attention gets for a map of (height, width)."""
        return max(grid[0], self.least), max(grid[1], self.least)

    def pad(self, cells: Tensor) -> Tensor:
        """Cells (B, height, width, dim) to (B, padded height, padded width, dim)."""
        grid = (cells.shape[1], cells.shape[2])
        height, width = self.padded(grid)
        return functional.pad(cells, (0, 0, 0, width - grid[1], 0, height - grid[0]))


def nat_32(
    image_size: int | Sequence[int] = 32, patch_size: int | None = None, **overrides: Any
) -> NeighborhoodAttentionTransformer:
    """Three stages of 64 to 256 channels for 32 pixels, 2.5 M parameters; batch norm in the stem, patches of 2."""
    arguments: dict[str, Any] = {
        "dim": 64,
        "depths": (2, 4, 2),
        "num_heads": (2, 4, 8),
        "kernel_size": 5,
        "stem_norm": True,
    } | overrides
    return NeighborhoodAttentionTransformer(image_size, patch_size or 2, **arguments)


def nat_mini(
    image_size: int | Sequence[int] = 224, patch_size: int | None = None, **overrides: Any
) -> NeighborhoodAttentionTransformer:
    """NAT-Mini, 19.5 M parameters (published with its classifier: 20 M); below 64 pixels patches of 2.

    Source: Hassani et al. 2023, https://arxiv.org/abs/2204.07143, section 3.4.
    """
    small = min(as_pair(image_size)) < 64
    return NeighborhoodAttentionTransformer(image_size, patch_size or (2 if small else 4), **overrides)


def nat_tiny(
    image_size: int | Sequence[int] = 224, patch_size: int | None = None, **overrides: Any
) -> NeighborhoodAttentionTransformer:
    """NAT-Tiny, 27.4 M parameters (published with its classifier: 28 M): `nat_mini` with 18 blocks in the third stage.

    Source: Hassani et al. 2023, https://arxiv.org/abs/2204.07143, section 3.4.
    """
    return nat_mini(image_size, patch_size, **{"depths": (3, 4, 18, 5)} | overrides)


def dinat_32(
    image_size: int | Sequence[int] = 32, patch_size: int | None = None, **overrides: Any
) -> NeighborhoodAttentionTransformer:
    """`nat_32` in which every second block of the first two stages is dilated to the whole map, 2.5 M parameters."""
    arguments: dict[str, Any] = {"kernel_size": (5, 3, 5), "dilation": ((1, 3), (1, 2), 1)} | overrides
    return nat_32(image_size, patch_size, **arguments)


def dinat_mini(
    image_size: int | Sequence[int] = 224, patch_size: int | None = None, **overrides: Any
) -> NeighborhoodAttentionTransformer:
    """DiNAT-Mini: `nat_mini` in which every second block is dilated as far as its map of 224 pixels has room.

    Source: Hassani & Shi 2022, https://arxiv.org/abs/2209.15001.
    """
    return nat_mini(image_size, patch_size, **{"dilation": ((1, 8), (1, 4), (1, 2), 1)} | overrides)


def dinat_tiny(
    image_size: int | Sequence[int] = 224, patch_size: int | None = None, **overrides: Any
) -> NeighborhoodAttentionTransformer:
    """DiNAT-Tiny: `nat_tiny`, dilated as `dinat_mini`.

    Source: Hassani & Shi 2022, https://arxiv.org/abs/2209.15001.
    """
    return dinat_mini(image_size, patch_size, **{"depths": (3, 4, 18, 5)} | overrides)
