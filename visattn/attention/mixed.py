"""Kinds of attention side by side on the same tokens: some heads see near, others far."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class MixedAttention(nn.Module):
    """The sum of several attention modules, each with heads of its own, called as `module(tokens, grid)`.

    Where all modules have a projection behind their heads, as those of visattn do, this is one attention module whose
    heads are of different kinds: a projection of joined heads is the sum of projections of each.

    Args:
        dim: channels of a token.
        kinds: the modules.
        gated: each token weighs the kinds, by the softmax of a linear map of itself times their number; at the start
            all weights are 1.

    Raises:
        ValueError: there are no modules.

    Source: heads that see near and far, the cross of CSWin (Dong et al. 2022, https://arxiv.org/abs/2107.00652) being
        one; the gate is that of a mixture of experts without dropping any (Jacobs et al. 1991, "Adaptive Mixtures of
        Local Experts", equation 1).
    """

    def __init__(self, dim: int, kinds: Sequence[nn.Module], *, gated: bool = False) -> None:
        super().__init__()
        if not kinds:
            raise ValueError("there are no kinds of attention to mix")
        self.kinds = nn.ModuleList(kinds)
        self.gate = nn.Linear(dim, len(kinds)) if gated else None
        if self.gate is not None:
            nn.init.zeros_(self.gate.weight)
            nn.init.zeros_(self.gate.bias)

    def forward(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        """Tokens (batch, N, dim) of the grid (height, width) in, tokens of the same shape out."""
        outputs = torch.stack([kind(tokens, grid) for kind in self.kinds], dim=-1)  # (batch, N, dim, kinds)
        if self.gate is None:
            return outputs.sum(dim=-1)
        shares = self.gate(tokens).softmax(dim=-1) * len(self.kinds)  # (batch, N, kinds)
        return (outputs @ shares.unsqueeze(-1)).squeeze(-1)
