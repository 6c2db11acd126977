"""MaxViT: convolutions, attention within windows, and attention over a grid, one after the other in every block."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from torch import Tensor, nn

from visattn.attention import GridAttention, WindowAttention
from visattn.backbones.blocks import BlockDesign, TransformerBlock
from visattn.backbones.features import constructor_arguments, stage_patch_size
from visattn.backbones.layers import drop_path_rates, initialize
from visattn.backbones.mobile_convolution import MobileConvolution, MobileDesign, as_map, as_tokens
from visattn.backbones.mobile_network import MobileNetwork


class MaxViT(MobileNetwork):
    """Images (B, in_channels, H, W) to `Features` with one map per stage, of stride `patch_size` * 2**stage.

    Args:
        image_size: height and width in pixels, or one number; only for reference.
        patch_size: pixels per cell of the first stage's map along one axis: 2, 4 or 8.
        dims: channels of each stage.
        depths: blocks of each stage; the first one halves the map.
        stem_dims: channels of the stem's two convolutions.
        stem_bias: biases of the stem's convolutions.
        window_size: side of a window in cells, a number or (vertical, horizontal).
        grid_size: cells of the grid along one axis, likewise; None is window_size.
        head_dim: channels of an attention head.
        mlp_ratio: hidden channels of the MLPs / channels.
        activation: of the MLPs: gelu, gelu_tanh, silu or relu.
        relative_position_bias: learn a bias for each head and relative position.
        bias_hidden_dim: hidden channels of an MLP that makes these biases; None: a table.
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
        ValueError: dims and depths differ in length, head_dim doesn't divide dims, or patch_size is none of 2, 4, 8.

    Source: Tu et al. 2022, https://arxiv.org/abs/2204.01697.
    """

    def __init__(
        self,
        image_size: int | Sequence[int] = 224,
        patch_size: int = 4,
        dims: Sequence[int] = (64, 128, 256, 512),
        depths: Sequence[int] = (2, 2, 5, 2),
        *,
        stem_dims: Sequence[int] = (64, 64),
        stem_bias: bool = True,
        window_size: int | Sequence[int] = 7,
        grid_size: int | Sequence[int] | None = None,
        head_dim: int = 32,
        mlp_ratio: float = 4.0,
        activation: str = "gelu",
        relative_position_bias: bool = True,
        bias_hidden_dim: int | None = None,
        norm: str = "layer",
        norm_eps: float = 1e-5,
        layer_scale: float | None = None,
        pooled_dim: int | None = None,
        in_channels: int = 3,
        dropout: float = 0.0,
        attention_dropout: float = 0.0,
        drop_path: float = 0.0,
        **convolution: Any,
    ) -> None:
        arguments = constructor_arguments(locals(), "convolution")
        bottleneck = MobileDesign(**convolution)
        super().__init__(arguments, bottleneck)
        rates = iter(drop_path_rates(drop_path, sum(depths)))
        narrow = stem_dims[-1]
        for dim, depth in zip(dims, depths, strict=True):
            design = BlockDesign(
                dim,
                mlp_ratio,
                activation=activation,
                norm=norm,
                norm_eps=norm_eps,
                layer_scale=layer_scale,
                dropout=dropout,
            )
            options: dict[str, Any] = {
                "head_dim": head_dim,
                "relative_position_bias": relative_position_bias,
                "bias_hidden_dim": bias_hidden_dim,
                "dropout": attention_dropout,
            }
            window = partial(WindowAttention, dim, dim // head_dim, window_size=window_size, **options)
            grid = partial(GridAttention, dim, dim // head_dim, grid_size=grid_size or window_size, **options)
            stage = nn.ModuleList()
            for index in range(depth):
                rate, stride = next(rates), 1 if index else 2
                convolve = MobileConvolution(narrow, dim, bottleneck, stride=stride, drop_path=rate)
                stage.append(
                    MaxVitBlock(convolve, TransformerBlock(design, window, rate), TransformerBlock(design, grid, rate))
                )
                narrow = dim
            self.stages.append(stage)
        self.apply(initialize)


class MaxVitBlock(nn.Module):
    """An inverted bottleneck, then attention and MLP twice, within windows and over a grid: maps in, maps out.

    Source: Tu et al. 2022, https://arxiv.org/abs/2204.01697, figure 2 and section 3.2.
    """

    def __init__(self, convolution: MobileConvolution, window: TransformerBlock, grid: TransformerBlock) -> None:
        super().__init__()
        self.convolution = convolution
        self.window = window
        self.grid = grid

    def forward(self, features: Tensor) -> Tensor:
        features = self.convolution(features)  # (B, C, height, width)
        size = (features.shape[-2], features.shape[-1])
        tokens = self.window(as_tokens(features), size)  # (B, height * width, C)
        return as_map(self.grid(tokens, size), size)


def maxvit_32(image_size: int | Sequence[int] = 32, patch_size: int | None = None, **overrides: Any) -> MaxViT:
    """Three stages of 64, 128 and 256 channels and four blocks, windows of 4, 3.4 M parameters; for 32 pixels.

    Patches of 2 pixels; from 64 pixels on of 4.
    """
    arguments: dict[str, Any] = {
        "dims": (64, 128, 256),
        "depths": (1, 2, 1),
        "stem_dims": (32, 32),
        "window_size": 4,
    } | overrides
    return MaxViT(image_size, patch_size or stage_patch_size(image_size), **arguments)


def maxvit_tiny(image_size: int | Sequence[int] = 224, patch_size: int | None = None, **overrides: Any) -> MaxViT:
    """MaxViT-T, 30.4 M parameters; patches of 4 pixels, below 64 pixels of 2.

    As published, borders are padded as TensorFlow does, and GELU is approximated by tanh.

    Source: Tu et al. 2022, https://arxiv.org/abs/2204.01697, table 1; https://github.com/google-research/maxvit for
        epsilons, biases and the linear layer behind the pooling.
    """
    arguments: dict[str, Any] = {
        "activation": "gelu_tanh",
        "convolution_activation": "gelu_tanh",
        "batch_norm_eps": 1e-3,
        "padding": "same",
        "pooled_dim": 512,
    } | overrides
    return MaxViT(image_size, patch_size or stage_patch_size(image_size), **arguments)
