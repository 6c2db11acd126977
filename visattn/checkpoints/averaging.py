"""Weights of several runs, averaged: often better than each of them, and no slower than one."""

from __future__ import annotations

import os
from collections.abc import Sequence

import torch

from visattn.checkpoints.native import CheckpointError, Model, model_config
from visattn.checkpoints.pretrained import load_pretrained


@torch.no_grad()
def average_pretrained(sources: Sequence[str | os.PathLike[str]], weights: Sequence[float] | None = None) -> Model:
    """The model whose weights are the weighted mean of those of several models of one architecture.

    It pays for models that come from one another, as the two stages of a captioner do, or from one start.

    Args:
        sources: of `visattn.load_pretrained`, at least one.
        weights: of each source, made to sum to 1; None: all count alike.

    Returns:
        The model, in eval mode, with what the first one says of classes, words and preprocessing.

    Raises:
        ValueError: there are no sources, or not one weight for each, or the weights sum to 0.
        CheckpointError: the models differ in architecture; the message names the source.

    Source: Wortsman et al. 2022, "Model soups" (https://arxiv.org/abs/2203.05482), and "Robust fine-tuning of zero-shot
        models" (https://arxiv.org/abs/2109.01903), section 3.
    """
    shares = [1.0] * len(sources) if weights is None else [float(weight) for weight in weights]
    if not sources or len(shares) != len(sources) or not sum(shares):
        raise ValueError(f"{len(sources)} sources need as many weights, which sum to more than 0: {weights}")
    models = [load_pretrained(source) for source in sources]
    for source, model in zip(sources, models, strict=True):
        if model_config(model) != model_config(models[0]):
            raise CheckpointError(
                f"{source}: is of another architecture than {sources[0]}, or has other words or classes"
            )
    states = [model.state_dict() for model in models]
    mean = dict(states[0])  # counters are the first one's, and a frozen backbone stays as it is, bit for bit
    for name, first in states[0].items():
        if first.is_floating_point() and not all(torch.equal(first, state[name]) for state in states):
            mean[name] = sum(share / sum(shares) * state[name] for share, state in zip(shares, states, strict=True))
    models[0].load_state_dict(mean)
    return models[0]
