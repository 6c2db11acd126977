"""Parameter groups and the learning-rate schedule that all tasks share."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from visattn.backbones import Backbone


def parameter_groups(
    model: nn.Module, backbone: Backbone, learning_rate: float, weight_decay: float, layer_decay: float = 1.0
) -> list[dict]:
    """Groups the trainable parameters of `model` by weight decay and by depth in its `backbone`.

    Vectors (biases, norms, layer scales) and embedding-like tables (tokens, position embeddings and biases) are not
    decayed. With `layer_decay` below 1 the learning rate of backbone layer i of n is
    `learning_rate * layer_decay ** (n - i)` and parameters outside the backbone train at the full rate.

    Args:
        backbone: a part of `model`.

    Source: layer-wise decay as in BEiT (Bao et al. 2022, https://arxiv.org/abs/2106.08254), section 3.
    """
    names_in_backbone = {id(parameter): name for name, parameter in backbone.named_parameters()}
    groups: dict[tuple[float, float], dict] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        is_table = any(word in name for word in ("token", "position", "logit_scale"))
        decay = 0.0 if parameter.ndim <= 1 or is_table else weight_decay
        scale = 1.0
        if layer_decay != 1.0 and id(parameter) in names_in_backbone:
            depth = backbone.layer_of(names_in_backbone[id(parameter)])
            scale = layer_decay ** (backbone.num_layers - depth)
        group = groups.setdefault((scale, decay), {"params": [], "lr": learning_rate * scale, "weight_decay": decay})
        group["params"].append(parameter)
    return list(groups.values())


def warmup_cosine(warmup_steps: int, total_steps: int, final_fraction: float = 0.01) -> Callable[[int], float]:
    """The factor on the learning rate at each optimizer step: a linear warm-up, then half a cosine (SGDR, eq. 5).

    Returns:
        A function of the step (0-based) for `torch.optim.lr_scheduler.LambdaLR`: it rises to 1 over `warmup_steps` and
        ends at `final_fraction`.
    """

    def factor(step: int) -> float:
        if step < warmup_steps:
            return (step + 1) / (warmup_steps + 1)
        progress = min((step - warmup_steps) / max(total_steps - warmup_steps, 1), 1.0)
        return final_fraction + (1 - final_fraction) * 0.5 * (1 + math.cos(math.pi * progress))

    return factor


def exponential_average(decay: float) -> Callable[[list[Tensor], list[Tensor], Tensor | int], None]:
    """Moves averaged tensors towards the current ones, in place, for torch's `AveragedModel(multi_avg_fn=...)`.

    The decay of update n is `min(decay, (1 + n) / (10 + n))`, so that a short run forgets its random start.
    """

    @torch.no_grad()
    def update(averaged: list[Tensor], current: list[Tensor], num_averaged: Tensor | int) -> None:
        if not averaged[0].is_floating_point():  # counters of batch norm; torch groups tensors by dtype
            torch._foreach_copy_(averaged, current)
            return
        torch._foreach_lerp_(averaged, current, 1 - min(decay, (1 + int(num_averaged)) / (10 + int(num_averaged))))

    return update
