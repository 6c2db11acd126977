"""A bias by relative position that a small network makes of the distance, so that it fits windows of any size."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


class ContinuousPositionBias(nn.Module):
    """MLP(sign(d) * log(1 + |d|)) for all distances d (vertical, horizontal) within a rectangle, one value per head.

    Cost: 4 * height * width * hidden_dim * heads.

    Args:
        num_heads: attention heads.
        hidden_dim: channels between the two layers of the MLP.

    Source: Liu et al. 2022 (Swin V2, https://arxiv.org/abs/2111.09883), section 3.3, equation 4.
    """

    def __init__(self, num_heads: int, hidden_dim: int = 512) -> None:
        super().__init__()
        self.fc1 = nn.Linear(2, hidden_dim)
        self.fc2 = nn.Linear(hidden_dim, num_heads)

    def forward(self, extent: tuple[int, int]) -> Tensor:
        """The table for a rectangle (height, width) of cells: (heads, 2 * height - 1, 2 * width - 1)."""
        rows, columns = (
            torch.arange(1 - side, side, device=self.fc1.weight.device, dtype=torch.float32) for side in extent
        )
        distances = torch.stack(torch.meshgrid(rows, columns, indexing="ij"), dim=-1)  # (2h - 1, 2w - 1, 2)
        distances = distances.sign() * distances.abs().log1p()
        return self.fc2(functional.relu(self.fc1(distances.to(self.fc1.weight.dtype)))).permute(2, 0, 1)
