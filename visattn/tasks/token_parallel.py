"""Training on images of very many tokens, which the processes of a run share."""

from __future__ import annotations

from typing import Any

from lightning.pytorch.strategies import DDPStrategy


class TokenParallelStrategy(DDPStrategy):
    """All processes are given the same images, and each works on a part of their tokens.

    The model spreads the tokens by itself (`VisionTransformer(token_parallel=True)`), and needs for it the memory of
    its part; weights, batches, losses and results are those of a run of one process.

    Args:
        **keywords: of Lightning's `DDPStrategy`, such as process_group_backend.

    Source: ring attention, Liu et al. 2023, https://arxiv.org/abs/2310.01889.
    """

    @property
    def distributed_sampler_kwargs(self) -> dict[str, Any]:
        """Nothing of an epoch is split."""
        return {"num_replicas": 1, "rank": 0}
