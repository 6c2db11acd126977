"""The Compact Convolutional Transformer: convolutions make the tokens, which are pooled by attention in the end."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from visattn.attention import MultiHeadAttention, SequencePooling
from visattn.backbones.blocks import Block, BlockDesign
from visattn.backbones.embedding import resample_positions, sinusoids
from visattn.backbones.features import Backbone, Features, as_pair, constructor_arguments
from visattn.backbones.layers import drop_path_rates, initialize


class CompactConvolutionalTransformer(Backbone):
    """Images (B, channels, H, W) to `Features` with one map of stride `patch_size`.

    "CCT-7/3x1" is a network of 7 blocks behind 1 convolution with kernels of 3.

    Args:
        image_size: height and width in pixels, or one number, that the position embeddings are made for.
        patch_size: pixels per token along one axis, a power of two between 2**convolutions and 4**convolutions: each
            convolution's pooling halves the map, and the first convolutions do so too where that isn't enough.
        dim: channels of a token.
        depth: number of blocks.
        num_heads: attention heads in every block.
        convolutions: of the tokenizer, from 1.
        kernel_size: side in pixels of their kernels, odd.
        position: "learned"; "sinusoidal", learned too but beginning as waves, see `VisionTransformer`; or "none".
        mlp_ratio: hidden channels of the MLP / channels.
        qkv_bias: biases of query, key and value.
        in_channels: of the images.
        norm_eps: epsilon of all norms.
        dropout, attention_dropout: probabilities in MLP and attention, in training.
        drop_path: probability that a sample skips a branch of the last block in training; rises linearly from 0.

    Raises:
        ValueError: position is unknown, or convolutions and patch_size don't fit each other.

    Source: Hassani et al. 2021, https://arxiv.org/abs/2104.05704.
    """

    position_antialias = True  # where the table shrinks

    def __init__(
        self,
        image_size: int | Sequence[int] = 32,
        patch_size: int = 2,
        dim: int = 256,
        depth: int = 7,
        num_heads: int = 4,
        *,
        convolutions: int = 1,
        kernel_size: int = 3,
        position: str = "learned",
        mlp_ratio: float = 2.0,
        qkv_bias: bool = False,
        in_channels: int = 3,
        norm_eps: float = 1e-5,
        dropout: float = 0.0,
        attention_dropout: float = 0.0,
        drop_path: float = 0.0,
    ) -> None:
        arguments = constructor_arguments(locals())
        super().__init__()
        self.arguments = arguments
        if position not in ("learned", "sinusoidal", "none"):
            raise ValueError(f"position {position!r} is unknown; choose one of learned, sinusoidal, none")
        self.image_size = as_pair(image_size)
        self.channels, self.strides = (dim,), (patch_size,)
        self.num_features = dim
        self.num_prefix_tokens = 0
        self.num_layers = depth + 1

        self.tokenizer = ConvolutionalTokenizer(in_channels, dim, patch_size, convolutions, kernel_size)
        self.grid = (-(-self.image_size[0] // patch_size), -(-self.image_size[1] // patch_size))
        table = torch.empty(1, self.grid[0] * self.grid[1], dim)
        self.position_embedding = None if position == "none" else nn.Parameter(table)
        design = BlockDesign(dim, mlp_ratio, norm_eps=norm_eps, dropout=dropout)
        make_attention = partial(
            MultiHeadAttention,
            dim,
            num_heads,
            qkv_bias=qkv_bias,
            dropout=attention_dropout,
            projection_dropout=dropout,
        )
        self.blocks = nn.ModuleList(
            CompactBlock(design, make_attention, rate) for rate in drop_path_rates(drop_path, depth)
        )
        self.norm = design.new_norm()
        self.sequence_pooling = SequencePooling(dim)
        self.initialize()

    def initialize(self) -> None:
        """Draws new weights: normal with He's deviation in the tokenizer, with 0.2 for positions, 0.02 elsewhere."""
        self.apply(initialize)
        for module in self.tokenizer.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)
        if self.position_embedding is not None:
            nn.init.trunc_normal_(self.position_embedding, std=0.2)
            if self.arguments["position"] == "sinusoidal":
                self.position_embedding.data[0] = sinusoids(self.grid, self.num_features)

    def forward(self, images: Tensor) -> Features:
        """Images (B, channels, H, W) of any size to `Features`."""
        tokens, grid = self.tokenizer(images)  # (B, height * width, dim)
        if self.position_embedding is not None:
            tokens = tokens + resample_positions(self.position_embedding, self.grid, grid, self.position_antialias)
        for block in self.blocks:
            tokens = block(tokens, grid)
        tokens = self.norm(tokens)
        feature_map = tokens.transpose(1, 2).unflatten(2, grid)  # (B, dim, height, width)
        return Features((feature_map,), tokens, self.sequence_pooling(tokens))

    def layer_of(self, parameter_name: str) -> int:
        """0 for tokenizer and positions, i for the i-th block (from 1); norm and pooling go with the last."""
        if parameter_name.startswith("blocks."):
            return int(parameter_name.split(".")[1]) + 1
        return self.num_layers - 1 if parameter_name.startswith(("norm.", "sequence_pooling.")) else 0


class ConvolutionalTokenizer(nn.Module):
    """Convolutions, each with ReLU and max pooling of 3x3 cells that halves the map.

    Args:
        in_channels: of the images.
        dim: channels of a token; the convolutions before the last have 64.
        patch_size: pixels per token along one axis.
        convolutions: how many.
        kernel_size: side of their kernels, odd.

    Raises:
        ValueError: kernel_size is even, or patch_size no power of two between 2**convolutions and 4**convolutions.

    Source: Hassani et al. 2021, https://arxiv.org/abs/2104.05704.
    """

    def __init__(self, in_channels: int, dim: int, patch_size: int, convolutions: int, kernel_size: int) -> None:
        super().__init__()
        sizes = [2**step for step in range(convolutions, 2 * convolutions + 1)] if convolutions > 0 else []
        if patch_size not in sizes:
            choices = f"patch_size of {', '.join(map(str, sizes))}" if sizes else "at least 1"
            raise ValueError(f"patch_size {patch_size} doesn't fit {convolutions} convolutions; choose {choices}")
        if kernel_size % 2 == 0:
            raise ValueError(f"kernel_size {kernel_size} of the tokenizer must be odd")
        strided = sizes.index(patch_size)
        widths = [in_channels] + [64] * (convolutions - 1) + [dim]
        layers: list[nn.Module] = []
        for index in range(convolutions):
            stride = 2 if index < strided else 1
            layers += [
                nn.Conv2d(widths[index], widths[index + 1], kernel_size, stride, kernel_size // 2, bias=False),
                nn.ReLU(inplace=True),
                nn.MaxPool2d(3, stride=2, padding=1),
            ]
        self.layers = nn.Sequential(*layers)

    def forward(self, images: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Images (B, channels, H, W) to tokens (B, height * width, dim) and (height, width), H / patch_size up."""
        features = self.layers(images)  # (B, dim, height, width)
        return features.flatten(2).transpose(1, 2), (features.shape[2], features.shape[3])


class CompactBlock(Block):
    """Attention on normalised tokens, a norm of their sum, and an MLP on that: the second branch begins at the norm."""

    def __init__(self, design: BlockDesign, make_attention: partial, drop_path: float = 0.0) -> None:
        super().__init__(design, make_attention, drop_path)
        self.norm1 = design.new_norm()
        self.attention = design.new_attention(make_attention)
        self.norm2 = design.new_norm()
        self.mlp = design.new_mlp()

    def forward(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        tokens = self.norm2(self.add(tokens, self.attention(self.norm1(tokens), grid)))
        return self.add(tokens, self.mlp(tokens))


def cct_7_3x1_32(
    image_size: int | Sequence[int] = 32, patch_size: int | None = None, **overrides: Any
) -> CompactConvolutionalTransformer:
    """CCT-7/3x1 for 32 pixels, 3.76 M parameters; larger patches than 2 take a convolution more for each doubling.

    Source: Hassani et al. 2021, https://arxiv.org/abs/2104.05704.
    """
    size = patch_size or 2
    arguments: dict[str, Any] = {"convolutions": max(size.bit_length() - 1, 1)} | overrides
    return CompactConvolutionalTransformer(image_size, size, **arguments)


def cct_14_7x2(
    image_size: int | Sequence[int] = 224, patch_size: int | None = None, **overrides: Any
) -> CompactConvolutionalTransformer:
    """CCT-14/7x2, 22.0 M parameters (published with its classifier: 22.4 M), in patches of 16, 8 or 4.

    Source: Hassani et al. 2021, https://arxiv.org/abs/2104.05704.
    """
    arguments: dict[str, Any] = {
        "dim": 384,
        "depth": 14,
        "num_heads": 6,
        "convolutions": 2,
        "kernel_size": 7,
        "mlp_ratio": 3.0,
    } | overrides
    return CompactConvolutionalTransformer(image_size, patch_size or 16, **arguments)
