"""The small layers that the backbones share: norms, activations, MLPs, and the initialisation of them all."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional


def make_norm(name: str, dim: int, eps: float) -> nn.Module:
    """A norm over the last axis: "layer" (Ba et al. 2016), "rms" (Zhang & Sennrich 2019) or "none"; or over all others:
    "batch" (Ioffe & Szegedy 2015).

    Raises:
        ValueError: the name is none of these.
    """
    if name == "layer":
        return nn.LayerNorm(dim, eps=eps)
    if name == "rms":
        return nn.RMSNorm(dim, eps=eps)
    if name == "batch":
        return TokenBatchNorm(dim, eps=eps)
    if name == "none":
        return nn.Identity()
    raise ValueError(f"norm {name!r} is unknown; choose layer, rms, batch or none")


class TokenBatchNorm(nn.BatchNorm1d):
    """Each channel of (..., dim) by its statistics over all tokens of the batch."""

    def forward(self, tokens: Tensor) -> Tensor:
        return super().forward(tokens.flatten(0, -2)).view(tokens.shape)


class QuickGELU(nn.Module):
    """x * sigmoid(1.702 x), the approximation of GELU that OpenAI's CLIP was trained with."""

    def forward(self, tokens: Tensor) -> Tensor:
        return tokens * torch.sigmoid(1.702 * tokens)


class GELU(nn.Module):
    """The exact GELU (Hendrycks & Gimpel 2016), computed in place where no gradient needs its input."""

    def forward(self, tokens: Tensor) -> Tensor:
        if torch.is_grad_enabled() or torch.compiler.is_compiling():
            return functional.gelu(tokens)
        return torch.ops.aten.gelu_(tokens)


_activations: dict[str, Callable[[], nn.Module]] = {
    "gelu": GELU,
    "gelu_tanh": lambda: nn.GELU(approximate="tanh"),
    "quick_gelu": QuickGELU,
    "silu": nn.SiLU,
    "relu": nn.ReLU,
}


def make_activation(name: str) -> nn.Module:
    """An activation by name: gelu, gelu_tanh, quick_gelu, silu or relu. It may overwrite its input outside training.

    Raises:
        ValueError: the name is none of these.
    """
    if name not in _activations:
        raise ValueError(f"activation {name!r} is unknown; choose one of {', '.join(_activations)}")
    return _activations[name]()


class NormedLinear(nn.Linear):
    """A linear layer that normalises its input first: the sub-LayerNorm of Magneto, used by BEiT-3.

    Source: Wang et al. 2022, https://arxiv.org/abs/2210.06423.
    """

    def __init__(self, in_features: int, out_features: int, bias: bool, norm: nn.Module) -> None:
        super().__init__(in_features, out_features, bias)
        self.norm = norm

    def forward(self, tokens: Tensor) -> Tensor:
        return super().forward(self.norm(tokens))


class Mlp(nn.Module):
    """Two linear layers with an activation between them, each token by itself; (..., dim) -> (..., dim).

    Args:
        dim: channels of a token.
        hidden_dim: channels between the two layers.
        gated: the first layer gives a gate and a value of `hidden_dim` each, joined as activation(gate) * value; with
            silu this is SwiGLU (Shazeer 2020, https://arxiv.org/abs/2002.05202).
        activation: a name that `make_activation` knows.
        bias: of both layers.
        norm: normalises the input of the second layer.
        dropout: probability, behind the activation and behind the second layer.
    """

    def __init__(
        self,
        dim: int,
        hidden_dim: int,
        *,
        gated: bool = False,
        activation: str = "gelu",
        bias: bool = True,
        norm: nn.Module | None = None,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.gated = gated
        self.fc1 = nn.Linear(dim, 2 * hidden_dim if gated else hidden_dim, bias)
        self.activation = make_activation(activation)
        self.fc2 = NormedLinear(hidden_dim, dim, bias, norm) if norm else nn.Linear(hidden_dim, dim, bias)
        self.dropout = dropout

    def forward(self, tokens: Tensor) -> Tensor:
        hidden = self.fc1(tokens)  # (..., hidden_dim), twice that if gated
        if self.gated:
            gate, value = hidden.chunk(2, dim=-1)
            hidden = self.activation(gate) * value
        else:
            hidden = self.activation(hidden)
        if self.dropout and self.training:
            hidden = functional.dropout(hidden, self.dropout)
            return functional.dropout(self.fc2(hidden), self.dropout)
        return self.fc2(hidden)


def drop_path(branch: Tensor, probability: float) -> Tensor:
    """Drops a residual branch (B, ...) for a random part of the batch and scales the rest up to keep the mean.

    Source: Huang et al. 2016, https://arxiv.org/abs/1603.09382 (stochastic depth).
    """
    shape = (branch.shape[0],) + (1,) * (branch.ndim - 1)
    keep = branch.new_empty(shape).bernoulli_(1 - probability).div_(1 - probability)
    return branch * keep


def drop_path_rates(last: float, depth: int) -> list[float]:
    """Rates that rise linearly over depth, from 0 in the first block to `last` in the last."""
    return [last * index / max(depth - 1, 1) for index in range(depth)]


def initialize(module: nn.Module) -> None:
    """Initialises the layers of a transformer as DeiT and Swin publish; use as `network.apply(initialize)`.

    Linear weights are normal with standard deviation 0.02, cut off at two units; kernels of convolutions are normal
    with He's deviation over the fan-out; biases are zero.
    """
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Conv2d):
        fan_out = module.weight[0, 0].numel() * module.out_channels // module.groups
        nn.init.normal_(module.weight, std=math.sqrt(2.0 / fan_out))
        if module.bias is not None:
            nn.init.zeros_(module.bias)
