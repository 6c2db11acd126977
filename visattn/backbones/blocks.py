"""Transformer blocks: how attention, MLP, norms and residual branches are joined. The caller chooses the attention."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from visattn.backbones.layers import Mlp, NormedLinear, drop_path, make_norm


@dataclass(frozen=True)
class BlockDesign:
    """What all blocks of a network have in common.

    Attributes:
        dim: channels of a token.
        mlp_ratio: hidden channels of the MLP / `dim`, rounded down.
        mlp: "plain", or "gated" (SwiGLU with activation="silu").
        activation: gelu, gelu_tanh, quick_gelu, silu or relu.
        mlp_bias: whether the linear layers of the MLP have biases.
        norm: "layer", "rms" or "batch".
        norm_eps: epsilon of all norms.
        qk_norm: normalise queries and keys, each head by itself.
        sub_norm: normalise also the input of the last linear layer of attention and MLP (BEiT-3).
        layer_scale: initial value of a learned factor per channel on each branch (Touvron et al. 2021,
            https://arxiv.org/abs/2103.17239); None leaves it out.
        dropout: probability within the MLP, in training.
    """

    dim: int
    mlp_ratio: float = 4.0
    mlp: str = "plain"
    activation: str = "gelu"
    mlp_bias: bool = True
    norm: str = "layer"
    norm_eps: float = 1e-6
    qk_norm: bool = False
    sub_norm: bool = False
    layer_scale: float | None = None
    dropout: float = 0.0

    def new_norm(self, width: int | None = None) -> nn.Module:
        return make_norm(self.norm, width or self.dim, self.norm_eps)

    def new_attention(self, make_attention: Callable[[], Any]) -> nn.Module:
        attention = make_attention()
        if self.qk_norm:
            attention.query_norm = self.new_norm(attention.head_dim)
            attention.key_norm = self.new_norm(attention.head_dim)
        if self.sub_norm:
            width, bias = attention.projection.in_features, attention.projection.bias is not None
            attention.projection = NormedLinear(width, self.dim, bias, self.new_norm(width))
        return attention

    def new_mlp(self) -> Mlp:
        if self.mlp not in ("plain", "gated"):
            raise ValueError(f"mlp {self.mlp!r} is unknown; choose plain or gated")
        hidden_dim = int(self.dim * self.mlp_ratio + 1e-6)  # the ratio may be a rounded quotient of the two widths
        return Mlp(
            self.dim,
            hidden_dim,
            gated=self.mlp == "gated",
            activation=self.activation,
            bias=self.mlp_bias,
            norm=self.new_norm(hidden_dim) if self.sub_norm else None,
            dropout=self.dropout,
        )

    def new_scale(self) -> nn.Parameter | None:
        return None if self.layer_scale is None else nn.Parameter(torch.full((self.dim,), float(self.layer_scale)))


class Block(nn.Module):
    """The start of every block: (B, N, dim) tokens and their (height, width) in, tokens of the same shape out.

    Args:
        design: the parts that all blocks of the network share.
        make_attention: builds an attention module, called as `module(tokens, grid)`; called once per module needed.
        drop_path: probability that a sample skips a residual branch in training.
    """

    def __init__(self, design: BlockDesign, make_attention: Callable[[], Any], drop_path: float = 0.0) -> None:
        super().__init__()
        self.drop_path = drop_path

    def add(self, tokens: Tensor, branch: Tensor, scale: Tensor | None = None) -> Tensor:
        """The residual sum, with layer scale and stochastic depth."""
        if self.drop_path and self.training:
            branch = drop_path(branch, self.drop_path)
        return tokens + branch if scale is None else torch.addcmul(tokens, branch, scale)


class TransformerBlock(Block):
    """Attention, then MLP, each on normalised tokens: the block of ViT and Swin."""

    def __init__(self, design: BlockDesign, make_attention: Callable[[], Any], drop_path: float = 0.0) -> None:
        super().__init__(design, make_attention, drop_path)
        self.norm1 = design.new_norm()
        self.attention = design.new_attention(make_attention)
        self.layer_scale1 = design.new_scale()
        self.norm2 = design.new_norm()
        self.mlp = design.new_mlp()
        self.layer_scale2 = design.new_scale()

    def forward(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        tokens = self.add(tokens, self.attention(self.norm1(tokens), grid), self.layer_scale1)
        return self.add(tokens, self.mlp(self.norm2(tokens)), self.layer_scale2)


class PostNormBlock(Block):
    """Attention, then MLP, whose outputs are normalised before the sum. `layer_scale` is the norms' initial weight.

    Source: Liu et al. 2022 (Swin V2, https://arxiv.org/abs/2111.09883), section 3.2.
    """

    def __init__(self, design: BlockDesign, make_attention: Callable[[], Any], drop_path: float = 0.0) -> None:
        super().__init__(design, make_attention, drop_path)
        self.attention = design.new_attention(make_attention)
        self.norm1 = design.new_norm()
        self.mlp = design.new_mlp()
        self.norm2 = design.new_norm()
        if design.layer_scale is not None:
            nn.init.constant_(self.norm1.get_parameter("weight"), design.layer_scale)
            nn.init.constant_(self.norm2.get_parameter("weight"), design.layer_scale)

    def forward(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        tokens = self.add(tokens, self.norm1(self.attention(tokens, grid)))
        return self.add(tokens, self.norm2(self.mlp(tokens)))


class ParallelBlock(Block):
    """Attention and MLP side by side on the same normalised tokens, as in ViT-22B.

    Source: Dehghani et al. 2023, https://arxiv.org/abs/2302.05442, section 2.
    """

    def __init__(self, design: BlockDesign, make_attention: Callable[[], Any], drop_path: float = 0.0) -> None:
        super().__init__(design, make_attention, drop_path)
        self.norm1 = design.new_norm()
        self.attention = design.new_attention(make_attention)
        self.mlp = design.new_mlp()
        self.layer_scale1 = design.new_scale()

    def forward(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        normed = self.norm1(tokens)
        return self.add(tokens, self.attention(normed, grid) + self.mlp(normed), self.layer_scale1)


class TwinBlock(Block):
    """Two attentions side by side, then two MLPs side by side; its parts are the `branches.I` of two usual blocks.

    Source: Touvron et al. 2022, https://arxiv.org/abs/2203.09795, section 3.
    """

    def __init__(self, design: BlockDesign, make_attention: Callable[[], Any], drop_path: float = 0.0) -> None:
        super().__init__(design, make_attention, drop_path)
        self.branches = nn.ModuleList(TransformerBlock(design, make_attention, drop_path) for _ in range(2))

    def forward(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        branch: Any
        attended = tokens
        for branch in self.branches:
            attended = branch.add(attended, branch.attention(branch.norm1(tokens), grid), branch.layer_scale1)
        mixed = attended
        for branch in self.branches:
            mixed = branch.add(mixed, branch.mlp(branch.norm2(attended)), branch.layer_scale2)
        return mixed


blocks: dict[str, type[Block]] = {
    "transformer": TransformerBlock,
    "post_norm": PostNormBlock,
    "parallel": ParallelBlock,
    "twin": TwinBlock,
}
