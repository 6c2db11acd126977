"""CoAtNet: stages of convolutions, then stages of attention over the whole map with relative positions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from torch import Tensor, nn

from visattn.attention import RelativeBiasAttention
from visattn.backbones.blocks import Block, BlockDesign
from visattn.backbones.features import constructor_arguments, stage_patch_size
from visattn.backbones.layers import drop_path_rates, initialize
from visattn.backbones.mobile_convolution import Downsample, MobileConvolution, MobileDesign, as_map, as_tokens, pool
from visattn.backbones.mobile_network import MobileNetwork


class CoAtNet(MobileNetwork):
    """Images (B, in_channels, H, W) to `Features` with one map per stage, of stride `patch_size` * 2**stage.

    Args:
        image_size: height and width in pixels, or one number; tables of relative positions are for maps of such images.
        patch_size: pixels per cell of the first stage's map along one axis: 2, 4 or 8.
        dims: channels of each stage.
        depths: blocks of each stage; the first one halves the map.
        layout: for each stage the kinds of its blocks, "C" for convolution and "T" for transformer; the last letter
            goes on to the end of the stage.
        stem_dims: channels of the stem's two convolutions.
        stem_bias: biases of the stem's convolutions.
        head_dim: channels of an attention head.
        mlp_ratio: hidden channels of the MLPs / channels.
        activation: of the MLPs: gelu, gelu_tanh, silu or relu.
        relative_position_bias: learn a bias for each head and relative position.
        bias_hidden_dim: hidden channels of an MLP that makes these biases; None: a table.
        widen: where the first transformer block of a stage takes its channels to those of the stage: "heads", already
            in queries, keys and values, or "projection", only behind the heads.
        shortcut_bias: bias of the convolution on such a block's shortcut.
        norm: "layer", or "batch", of the transformer blocks and the last map.
        norm_eps: epsilon of these norms.
        layer_scale: initial value of a learned factor per channel on each branch of the transformer blocks; None leaves
            it out.
        pooled_dim: channels of a linear layer with tanh behind the pooling, which the norm then follows; None: the norm
            comes before the pooling, and nothing behind it.
        in_channels: of the images.
        dropout, attention_dropout: probabilities within MLP and attention, in training.
        drop_path: probability that a sample skips a branch of the last block in training; rises linearly from 0.
        **convolution: what the inverted bottlenecks have in common, see `MobileDesign`.

    Raises:
        ValueError: dims, depths and layout differ in length, layout has other letters, head_dim doesn't divide dims, or
            patch_size is none of 2, 4, 8.

    Source: Dai et al. 2021, https://arxiv.org/abs/2106.04803.
    """

    def __init__(
        self,
        image_size: int | Sequence[int] = 224,
        patch_size: int = 4,
        dims: Sequence[int] = (96, 192, 384, 768),
        depths: Sequence[int] = (2, 3, 5, 2),
        *,
        layout: Sequence[str] = ("C", "C", "T", "T"),
        stem_dims: Sequence[int] = (64, 64),
        stem_bias: bool = False,
        head_dim: int = 32,
        mlp_ratio: float = 4.0,
        activation: str = "gelu",
        relative_position_bias: bool = True,
        bias_hidden_dim: int | None = None,
        widen: str = "heads",
        shortcut_bias: bool = True,
        norm: str = "layer",
        norm_eps: float = 1e-6,
        layer_scale: float | None = None,
        pooled_dim: int | None = None,
        in_channels: int = 3,
        dropout: float = 0.0,
        attention_dropout: float = 0.0,
        drop_path: float = 0.0,
        **convolution: Any,
    ) -> None:
        arguments = constructor_arguments(locals(), "convolution")
        if len(layout) != len(dims) or not all(kinds and set(kinds) <= {"C", "T"} for kinds in layout):
            raise ValueError(f"layout {tuple(layout)} should name the blocks of {len(dims)} stages by C and T")
        if widen not in ("heads", "projection"):
            raise ValueError(f"widen {widen!r} is unknown; choose heads or projection")
        bottleneck = MobileDesign(**convolution)
        super().__init__(arguments, bottleneck)
        rates = iter(drop_path_rates(drop_path, sum(depths)))
        narrow = stem_dims[-1]
        for stage, (dim, depth, kinds) in enumerate(zip(dims, depths, layout, strict=True)):
            design = BlockDesign(
                dim,
                mlp_ratio,
                activation=activation,
                norm=norm,
                norm_eps=norm_eps,
                layer_scale=layer_scale,
                dropout=dropout,
            )
            blocks = nn.ModuleList()
            for index in range(depth):
                rate, stride = next(rates), 1 if index else 2
                if kinds[min(index, len(kinds) - 1)] == "C":
                    blocks.append(MobileConvolution(narrow, dim, bottleneck, stride=stride, drop_path=rate))
                else:
                    attention = partial(
                        RelativeBiasAttention,
                        narrow,
                        (dim if widen == "heads" else narrow) // head_dim,
                        grid=self.grid_of(stage),
                        head_dim=head_dim,
                        out_dim=dim,
                        relative_position_bias=relative_position_bias,
                        bias_hidden_dim=bias_hidden_dim,
                        dropout=attention_dropout,
                    )
                    shortcut = Downsample(narrow, dim, stride, bottleneck.pooling, bias=shortcut_bias)
                    blocks.append(HalvingBlock(narrow, design, attention, shortcut, rate))
                narrow = dim
            self.stages.append(blocks)
        self.apply(initialize)


class HalvingBlock(Block):
    """shortcut(x) + attention(pool(norm(x))), then the same with an MLP and without pooling: maps in, maps out.

    (B, in_channels, H, W) -> (B, dim, ceil(H / stride), ceil(W / stride)), by the stride of the shortcut.

    Args:
        in_channels: of the map that comes in.
        design: the parts that all blocks of the network share.
        make_attention: builds the attention module, from in_channels to the design's channels.
        shortcut: pools and widens.
        drop_path: probability that a sample skips a residual branch in training.

    Source: Dai et al. 2021, https://arxiv.org/abs/2106.04803, appendix A.1.
    """

    def __init__(
        self,
        in_channels: int,
        design: BlockDesign,
        make_attention: Callable[[], Any],
        shortcut: Downsample,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__(design, make_attention, drop_path)
        self.shortcut = shortcut
        self.norm1 = design.new_norm(in_channels)
        self.attention = design.new_attention(make_attention)
        self.layer_scale1 = design.new_scale()
        self.norm2 = design.new_norm()
        self.mlp = design.new_mlp()
        self.layer_scale2 = design.new_scale()

    def forward(self, features: Tensor) -> Tensor:
        before = (features.shape[-2], features.shape[-1])
        normed = as_map(self.norm1(as_tokens(features)), before)
        normed = pool(normed, self.shortcut.stride, self.shortcut.pooling)  # (B, in_channels, height, width)
        grid = (normed.shape[-2], normed.shape[-1])
        tokens = as_tokens(self.shortcut(features))  # (B, height * width, dim)
        tokens = self.add(tokens, self.attention(as_tokens(normed), grid), self.layer_scale1)
        tokens = self.add(tokens, self.mlp(self.norm2(tokens)), self.layer_scale2)
        return as_map(tokens, grid)


def coatnet_32(image_size: int | Sequence[int] = 32, patch_size: int | None = None, **overrides: Any) -> CoAtNet:
    """Two blocks of convolutions, then three and two of attention; 2.2 M parameters; for 32 pixels.

    Patches of 2 pixels; from 64 pixels on of 4.
    """
    arguments: dict[str, Any] = {
        "dims": (64, 128, 256),
        "depths": (2, 3, 2),
        "layout": ("C", "T", "T"),
        "stem_dims": (32, 32),
    } | overrides
    return CoAtNet(image_size, patch_size or stage_patch_size(image_size), **arguments)


def coatnet_0(image_size: int | Sequence[int] = 224, patch_size: int | None = None, **overrides: Any) -> CoAtNet:
    """CoAtNet-0, 24.3 M parameters; patches of 4 pixels, below 64 pixels of 2.

    Source: Dai et al. 2021, https://arxiv.org/abs/2106.04803, table 3.
    """
    return CoAtNet(image_size, patch_size or stage_patch_size(image_size), **{"pooled_dim": 768} | overrides)
