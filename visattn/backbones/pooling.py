"""Pooling: the tokens of an image become the one vector that a classifier reads."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from visattn.attention import MultiHeadAttention
from visattn.backbones.blocks import BlockDesign

poolings = ("token", "average", "average_max", "max", "token_and_average", "attention", "none")


def pool_tokens(tokens: Tensor, pooling: str, num_prefix_tokens: int, include_prefix: bool = False) -> Tensor:
    """Pools tokens (B, N, C), of which the first `num_prefix_tokens` belong to no place in the image.

    Args:
        pooling: "token" takes the first token; "average", "max" and "average_max" (the mean of both) join the tokens
            of the image; "token_and_average" gives the first token beside the average, as DINOv2's linear classifier
            reads them; "none" leaves all tokens.
        include_prefix: join the prefix tokens with those of the image.

    Returns:
        (B, C); (B, 2 C) for token_and_average; (B, N, C) for none.
    """
    if pooling == "none":
        return tokens
    if pooling == "token":
        return tokens[:, 0]
    image_tokens = tokens if include_prefix else tokens[:, num_prefix_tokens:]
    if pooling == "average":
        return image_tokens.mean(dim=1)
    if pooling == "max":
        return image_tokens.amax(dim=1)
    if pooling == "average_max":
        return 0.5 * (image_tokens.amax(dim=1) + image_tokens.mean(dim=1))
    return torch.cat([tokens[:, 0], image_tokens.mean(dim=1)], dim=-1)  # token_and_average


class AttentionPooling(nn.Module):
    """A learned query attends to all tokens, followed by an MLP: the pooling of SigLIP; (B, N, dim) -> (B, dim).

    Source: Zhai et al. 2022, https://arxiv.org/abs/2106.04560, section 3.4 (MAP head).
    """

    def __init__(self, design: BlockDesign, num_heads: int) -> None:
        super().__init__()
        self.latent = nn.Parameter(torch.empty(1, 1, design.dim))
        nn.init.trunc_normal_(self.latent, std=design.dim**-0.5)
        self.attention = MultiHeadAttention(design.dim, num_heads, context_dim=design.dim)
        self.norm = design.new_norm()
        self.mlp = design.new_mlp()

    def forward(self, tokens: Tensor) -> Tensor:
        query = self.latent.expand(tokens.shape[0], -1, -1)  # (B, 1, dim)
        pooled = self.attention(query, context=tokens)  # (B, 1, dim)
        return (pooled + self.mlp(self.norm(pooled))).squeeze(1)
