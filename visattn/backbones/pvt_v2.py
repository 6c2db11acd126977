"""The Pyramid Vision Transformer v2: all tokens ask, on maps that shrink by stages, and a few merged ones answer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from visattn.attention import PooledAttention
from visattn.backbones.blocks import Block, BlockDesign
from visattn.backbones.embedding import OverlappingEmbedding
from visattn.backbones.features import Backbone, Features, as_pair, constructor_arguments, stage_patch_size
from visattn.backbones.layers import drop_path_rates, initialize, make_activation


class PyramidVisionTransformer(Backbone):
    """Images (B, channels, H, W) to `Features` with one map per stage, of stride `patch_size` * 2**stage.

    There are no position embeddings: the zeros around overlapping patches and around the depthwise convolutions of the
    MLPs tell the tokens where they are, and any image size works as it is.

    Args:
        image_size: height and width in pixels, or one number; only for reference.
        patch_size: pixels per token of the first stage along one axis; the patches themselves overlap.
        dims: channels of each stage.
        depths: blocks of each stage.
        num_heads: attention heads of each stage.
        reductions: of each stage, the side in tokens of what becomes one key, by a convolution.
        linear: instead, keys are made of the means of 7x7 rectangles in every stage, so that attention costs as much as
            there are tokens; the MLPs have a ReLU more.
        mlp_ratios: hidden channels of the MLP / channels, of each stage.
        qkv_bias: biases of query, key and value.
        stem_dim: channels of two 3x3 convolutions with batch norms at the full resolution, before the first patches,
            which small images need; None leaves them out, as published.
        in_channels: of the images.
        norm_eps: epsilon of the norms of blocks and stages.
        convolution_norm_eps: epsilon of the norms of patches and of reduced tokens.
        dropout, attention_dropout: probabilities within MLP and attention, in training.
        drop_path: probability that a sample skips a branch of the last block in training; rises linearly from 0.

    Raises:
        ValueError: dims, depths, num_heads, reductions and mlp_ratios don't describe the same number of stages.

    Source: Wang et al. 2022, https://arxiv.org/abs/2106.13797.
    """

    def __init__(
        self,
        image_size: int | Sequence[int] = 224,
        patch_size: int = 4,
        dims: Sequence[int] = (32, 64, 160, 256),
        depths: Sequence[int] = (2, 2, 2, 2),
        num_heads: Sequence[int] = (1, 2, 5, 8),
        *,
        reductions: Sequence[int] = (8, 4, 2, 1),
        linear: bool = False,
        mlp_ratios: Sequence[float] = (8, 8, 4, 4),
        qkv_bias: bool = True,
        stem_dim: int | None = None,
        in_channels: int = 3,
        norm_eps: float = 1e-6,
        convolution_norm_eps: float = 1e-5,
        dropout: float = 0.0,
        attention_dropout: float = 0.0,
        drop_path: float = 0.0,
    ) -> None:
        arguments = constructor_arguments(locals())
        super().__init__()
        self.arguments = arguments
        if len({len(dims), len(depths), len(num_heads), len(reductions), len(mlp_ratios)}) > 1:
            raise ValueError(
                f"dims {dims}, depths {depths}, num_heads {num_heads}, reductions {reductions} and mlp_ratios "
                f"{mlp_ratios} differ in stages"
            )
        self.image_size = as_pair(image_size)
        self.channels = tuple(dims)
        self.strides = tuple(patch_size * 2**stage for stage in range(len(dims)))
        self.depths = tuple(depths)
        self.num_features = dims[-1]
        self.num_prefix_tokens = 0
        self.num_layers = sum(depths) + 1

        rates = iter(drop_path_rates(drop_path, sum(depths)))
        self.stages = nn.ModuleList()
        for stage, dim in enumerate(dims):
            design = BlockDesign(dim, mlp_ratios[stage], norm_eps=norm_eps, dropout=dropout)
            attention = partial(
                PooledAttention,
                dim,
                num_heads[stage],
                reduction=reductions[stage],
                pooling="adaptive" if linear else "convolution",
                remainder="dropped",
                norm_eps=convolution_norm_eps,
                qkv_bias=qkv_bias,
                dropout=attention_dropout,
            )
            embedding = OverlappingEmbedding(
                dims[stage - 1] if stage else in_channels,
                dim,
                2 if stage else patch_size,
                norm=nn.LayerNorm(dim, eps=convolution_norm_eps),
                stem_dim=None if stage else stem_dim,
            )
            blocks = [PyramidBlock(design, attention, next(rates), rectified=linear) for _ in range(depths[stage])]
            self.stages.append(PyramidStage(embedding, blocks, design.new_norm()))
        self.apply(initialize)

    def forward(self, images: Tensor) -> Features:
        """Images (B, channels, H, W) of any size to `Features`; all maps are normalised."""
        cells, maps = images, []
        for stage in self.stages:
            tokens, grid = stage(cells)  # (B, height * width, C_i)
            cells = tokens.transpose(1, 2).unflatten(2, grid)  # (B, C_i, height, width)
            maps.append(cells)
        return Features(tuple(maps), tokens, tokens.mean(dim=1))

    def layer_of(self, parameter_name: str) -> int:
        """0 for the first embedding, i for the i-th block (from 1) of all stages.

        Other embeddings go with the block behind them, norms with the block before.
        """
        _, number, part, *rest = parameter_name.split(".")
        stage = int(number)
        if part == "blocks":
            return sum(self.depths[:stage]) + int(rest[0]) + 1
        if part == "norm":
            return sum(self.depths[: stage + 1])
        return sum(self.depths[:stage]) + 1 if stage else 0


class PyramidStage(nn.Module):
    """Patches of a map (B, C, height, width), blocks, and a norm: tokens (B, N, dim) and their (height, width)."""

    def __init__(self, embedding: nn.Module, blocks: Sequence[nn.Module], norm: nn.Module) -> None:
        super().__init__()
        self.embedding = embedding
        self.blocks = nn.ModuleList(blocks)
        self.norm = norm

    def forward(self, cells: Tensor) -> tuple[Tensor, tuple[int, int]]:
        tokens, grid = self.embedding(cells)
        for block in self.blocks:
            tokens = block(tokens, grid)
        return self.norm(tokens), grid


class PyramidBlock(Block):
    """Attention, then an MLP that sees the tokens beside each, both on normalised tokens.

    Args:
        design, make_attention, drop_path: see `Block`.
        rectified: see `DepthwiseMlp`.
    """

    def __init__(
        self, design: BlockDesign, make_attention: Callable[[], Any], drop_path: float = 0.0, *, rectified: bool = False
    ) -> None:
        super().__init__(design, make_attention, drop_path)
        self.norm1 = design.new_norm()
        self.attention = design.new_attention(make_attention)
        self.norm2 = design.new_norm()
        hidden_dim = int(design.dim * design.mlp_ratio + 1e-6)  # the ratio may be a rounded quotient
        self.mlp = DepthwiseMlp(design.dim, hidden_dim, rectified=rectified, dropout=design.dropout)

    def forward(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        tokens = self.add(tokens, self.attention(self.norm1(tokens), grid))
        return self.add(tokens, self.mlp(self.norm2(tokens), grid))


class DepthwiseMlp(nn.Module):
    """Two linear layers with a 3x3 convolution of each channel and GELU between them; (B, N, dim) -> (B, N, dim).

    Args:
        dim: channels of a token.
        hidden_dim: channels between the two layers.
        rectified: a ReLU before the convolution, which goes with linear attention.
        dropout: probability, behind GELU and behind the second layer.

    Source: Wang et al. 2022, https://arxiv.org/abs/2106.13797, section 3.4.
    """

    def __init__(self, dim: int, hidden_dim: int, *, rectified: bool = False, dropout: float = 0.0) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden_dim)
        self.convolution = nn.Conv2d(hidden_dim, hidden_dim, kernel_size=3, padding=1, groups=hidden_dim)
        self.activation = make_activation("gelu")
        self.fc2 = nn.Linear(hidden_dim, dim)
        self.rectified, self.dropout = rectified, dropout

    def forward(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        """Tokens (B, height * width, dim) of the grid (height, width) in, tokens of the same shape out."""
        hidden = self.fc1(tokens)  # (B, N, hidden_dim)
        if self.rectified:
            hidden = functional.relu(hidden)
        cells = self.convolution(hidden.transpose(1, 2).unflatten(2, grid))  # (B, hidden_dim, height, width)
        hidden = self.activation(cells).flatten(2).transpose(1, 2)
        if self.dropout and self.training:
            hidden = functional.dropout(hidden, self.dropout)
            return functional.dropout(self.fc2(hidden), self.dropout)
        return self.fc2(hidden)


def pvt_v2_32(
    image_size: int | Sequence[int] = 32, patch_size: int | None = None, **overrides: Any
) -> PyramidVisionTransformer:
    """Three stages of 64, 128 and 256 channels behind two convolutions, for images of 32 pixels; 2.8 M parameters.

    Patches of 2 pixels, from 64 pixels on of 4.
    """
    arguments: dict[str, Any] = {
        "dims": (64, 128, 256),
        "depths": (2, 2, 2),
        "num_heads": (2, 4, 8),
        "reductions": (4, 2, 1),
        "mlp_ratios": (4, 4, 4),
        "stem_dim": 32,
    } | overrides
    return PyramidVisionTransformer(image_size, patch_size or stage_patch_size(image_size), **arguments)


def pvt_v2_b0(
    image_size: int | Sequence[int] = 224, patch_size: int | None = None, **overrides: Any
) -> PyramidVisionTransformer:
    """PVT v2-B0, 3.4 M parameters, 3.7 M with ImageNet's classifier; below 64 pixels patches of 2.

    Source: Wang et al. 2022, https://arxiv.org/abs/2106.13797, table 1.
    """
    return PyramidVisionTransformer(image_size, patch_size or stage_patch_size(image_size), **overrides)


def pvt_v2_b1(
    image_size: int | Sequence[int] = 224, patch_size: int | None = None, **overrides: Any
) -> PyramidVisionTransformer:
    """PVT v2-B1, 13.5 M parameters, 14.0 M with ImageNet's classifier: twice as wide as `pvt_v2_b0`."""
    return pvt_v2_b0(image_size, patch_size, **{"dims": (64, 128, 320, 512)} | overrides)


def pvt_v2_b2(
    image_size: int | Sequence[int] = 224, patch_size: int | None = None, **overrides: Any
) -> PyramidVisionTransformer:
    """PVT v2-B2, 24.8 M parameters, 25.4 M with ImageNet's classifier: twice as deep as `pvt_v2_b1`."""
    return pvt_v2_b1(image_size, patch_size, **{"depths": (3, 4, 6, 3)} | overrides)
