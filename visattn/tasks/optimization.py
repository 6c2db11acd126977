"""Parameter groups, the optimizer with its schedule, and the clipping of gradients, which all tasks share."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import lightning
import torch
from lightning.pytorch.plugins import MixedPrecision
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from timm.optim import Muon
from torch import Tensor, nn

from visattn.backbones import Backbone

Tensors = tuple[Tensor, ...] | list[Tensor]


def parameter_groups(
    model: nn.Module,
    backbone: Backbone,
    learning_rate: float,
    weight_decay: float,
    layer_decay: float = 1.0,
    backbone_learning_rate: float | None = None,
) -> list[dict]:
    """Groups the trainable parameters of `model` by weight decay and by depth in its `backbone`.

    Vectors (biases, norms, layer scales) and embedding-like tables (tokens, position embeddings and biases) are not
    decayed. With `layer_decay` below 1 the learning rate of backbone layer i of n is
    `backbone_learning_rate * layer_decay ** (n - i)`; parameters outside the backbone train at `learning_rate`.
    `use_fallback` is false for the matrices and kernels between the backbone's first layer and the head, which are what
    Muon is for; it leaves all others to AdamW.

    Args:
        backbone: a part of `model`.
        backbone_learning_rate: None is `learning_rate`.

    Source: layer-wise decay as in BEiT (Bao et al. 2022, https://arxiv.org/abs/2106.08254), section 3.
    """
    names_in_backbone = {id(parameter): name for name, parameter in backbone.named_parameters()}
    groups: dict[tuple[float, float, bool], dict] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        is_table = any(word in name for word in ("token", "position", "logit_scale"))
        decay = 0.0 if parameter.ndim <= 1 or is_table else weight_decay
        rate, within = learning_rate, False
        if id(parameter) in names_in_backbone:
            rate = learning_rate if backbone_learning_rate is None else backbone_learning_rate
            layer = backbone.layer_of(names_in_backbone[id(parameter)])
            rate *= layer_decay ** (backbone.num_layers - layer)
            within = layer > 0 and parameter.ndim > 1 and not is_table
        values = {"params": [], "lr": rate, "weight_decay": decay, "use_fallback": not within}
        groups.setdefault((rate, decay, within), values)["params"].append(parameter)
    return list(groups.values())


def scheduled_optimizer(
    task: lightning.LightningModule,
    groups: list[dict],
    betas: Sequence[float],
    warmup_epochs: float,
    final_learning_rate: float,
    name: str = "adamw",
) -> OptimizerLRScheduler:
    """An optimizer of parameter groups, with `warmup_cosine` over the run's steps: what `configure_optimizers` returns.

    Args:
        betas: of AdamW; the first is also the momentum of Muon.
        name: "adamw"; or "muon", whose steps are orthogonal matrices of the size of AdamW's steps.

    Raises:
        ValueError: the name is neither.

    Source: AdamW, Loshchilov & Hutter 2019 (https://arxiv.org/abs/1711.05101); Muon, Jordan et al. 2024
        (https://kellerjordan.github.io/posts/muon), scaled as in Liu et al. 2025 (https://arxiv.org/abs/2502.16982).
    """
    trainer = task.trainer
    moments = (float(betas[0]), float(betas[1]))
    optimizer: torch.optim.Optimizer
    if name == "adamw":
        fused = trainer.precision != "16-mixed"  # whose gradient scaler must undo the scale before clipping
        optimizer = torch.optim.AdamW(groups, betas=moments, fused=fused)
    elif name == "muon":
        optimizer = Muon(groups, betas=moments, momentum=moments[0], nesterov=True, ns_steps=3)
    else:
        raise ValueError(f"optimizer {name!r} is unknown; choose adamw or muon")
    total_steps = int(trainer.estimated_stepping_batches)
    steps_per_epoch = total_steps / max(trainer.max_epochs or 1, 1)
    factor = warmup_cosine(round(warmup_epochs * steps_per_epoch), total_steps, final_learning_rate)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def clip_gradients(
    task: lightning.LightningModule, optimizer: torch.optim.Optimizer, value: float | None, algorithm: str | None
) -> None:
    """What `configure_gradient_clipping` does: clips by the trainer's options, for fused optimizers too.

    Lightning refuses those under mixed precision, which matters only where gradients are scaled.
    """
    plugin = task.trainer.precision_plugin
    if value and type(plugin) is MixedPrecision and plugin.scaler is None:
        clip = nn.utils.clip_grad_value_ if algorithm == "value" else nn.utils.clip_grad_norm_
        clip(task.parameters(), value)
    else:
        task.clip_gradients(optimizer, value, algorithm)


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


def exponential_average(decay: float) -> Callable[[Tensors, Tensors, Tensor | int], None]:
    """Moves averaged tensors towards the current ones, in place, for torch's `AveragedModel(multi_avg_fn=...)`.

    The decay of update n is `min(decay, (1 + n) / (10 + n))`, so that a short run forgets its random start.
    """

    @torch.no_grad()
    def update(averaged: Tensors, current: Tensors, num_averaged: Tensor | int) -> None:
        if not averaged[0].is_floating_point():  # counters of batch norm; torch groups tensors by dtype
            torch._foreach_copy_(averaged, current)
            return
        torch._foreach_lerp_(averaged, current, 1 - min(decay, (1 + int(num_averaged)) / (10 + int(num_averaged))))

    return update
