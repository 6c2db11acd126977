"""From a backbone's tokens to those that a caption decoder reads."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from visattn.attention import MultiHeadAttention
from visattn.backbones.blocks import BlockDesign, TransformerBlock
from visattn.backbones.embedding import resample_positions, sinusoids
from visattn.backbones.layers import initialize


class ImageEncoder(nn.Module):
    """A backbone's tokens, projected, normalised, told where they are, and mixed by self-attention.

    The positions are learned, start as waves along both axes, and are resampled for other grids; tokens of no place
    (class tokens) have none.

    Args:
        in_dim: channels of the backbone's tokens.
        dim: channels of the result.
        grid: (height, width) in tokens that the positions are made for.
        depth: blocks of self-attention; with 0 the tokens don't see each other.
        num_heads: attention heads.
        dropout: probability on the tokens and on residual branches, in training.
    """

    def __init__(
        self, in_dim: int, dim: int, grid: Sequence[int], *, depth: int, num_heads: int, dropout: float
    ) -> None:
        super().__init__()
        self.grid, self.dropout = (int(grid[0]), int(grid[1])), dropout
        self.projection = nn.Linear(in_dim, dim)
        self.projection_norm = nn.LayerNorm(dim)
        design = BlockDesign(dim, norm_eps=1e-5, dropout=dropout)
        make_attention = partial(MultiHeadAttention, dim, num_heads, projection_dropout=dropout)
        self.blocks = nn.ModuleList(TransformerBlock(design, make_attention) for _ in range(depth))
        self.norm = nn.LayerNorm(dim) if depth else None
        self.apply(initialize)
        self.position_embedding = nn.Parameter(sinusoids(self.grid, dim)[None])  # (1, height * width, dim)

    def forward(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        """(B, prefix + height * width, in_dim) and the grid (height, width) to (B, prefix + height * width, dim)."""
        tokens = self.projection_norm(self.projection(tokens))
        positions = resample_positions(self.position_embedding, self.grid, grid)  # (1, height * width, dim)
        prefix = tokens.shape[1] - positions.shape[1]
        tokens = tokens + (functional.pad(positions, (0, 0, prefix, 0)) if prefix else positions)
        if self.training and self.dropout:
            tokens = functional.dropout(tokens, self.dropout)
        for block in self.blocks:
            tokens = block(tokens, grid)
        return tokens if self.norm is None else self.norm(tokens)

    @torch.no_grad()
    def fit_grid(self, grid: tuple[int, int]) -> None:
        """Resamples the positions for a grid (height, width), once."""
        positions = resample_positions(self.position_embedding, self.grid, grid)
        self.grid, self.position_embedding = grid, nn.Parameter(positions.clone())
