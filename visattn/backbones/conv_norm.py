"""Convolutions with a batch norm, which are one convolution in evaluation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision.ops import FrozenBatchNorm2d

_activations: dict[str, Callable[..., Tensor]] = {"relu": functional.relu, "silu": functional.silu}


class FoldableConvolution(nn.Module):
    """A module of parallel convolutions with batch norms, whose sum one convolution can compute.

    It may do so in evaluation, while no gradients are recorded. The kernel is kept as long as the parameters stay the
    same, and is no part of the module's state. What changes them behind autograd's back, in `parameter.data`, shows
    from the next call of `eval` on.
    """

    def __init__(self) -> None:
        super().__init__()
        self.kernel: tuple[Tensor, Tensor] | None = None
        self.versions: tuple[tuple[int, int], ...] = ()

    def runs_folded(self) -> bool:
        return not (self.training or torch.is_grad_enabled() or torch.compiler.is_compiling())

    def convolve(self, features: Tensor, branches: Sequence[ConvNorm]) -> Tensor:
        """The sum of the branches on (B, in_channels, H, W); their kernels are padded to the size of the first."""
        sources = [tensor for branch in branches for tensor in branch.sources()]
        # Parameters that were made within inference mode have no versions; they are folded each time.
        lasting = not any(tensor.is_inference() for tensor in sources)
        versions = tuple((tensor.data_ptr(), tensor._version) for tensor in sources) if lasting else ()
        if self.kernel is None or not lasting or versions != self.versions:
            self.kernel, self.versions = sum_of_kernels([branch.fold() for branch in branches]), versions
        convolution = branches[0].convolution
        return functional.conv2d(features, *self.kernel, convolution.stride, convolution.padding)

    def train(self, mode: bool = True) -> Self:
        self.kernel = None
        return super().train(mode)

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        self.kernel = None  # another device or precision doesn't count as another version
        return super()._apply(fn, recurse)


class ConvNorm(FoldableConvolution):
    """A convolution without bias, a batch norm and an activation: (B, in_channels, H, W) -> (B, out_channels, h, w).

    Args:
        in_channels, out_channels: of the maps.
        kernel_size: side in cells, odd; borders are padded by half of it.
        stride: of the convolution.
        activation: "relu", "silu" or "none".
        frozen: statistics and factors of the norm are constants, also in training.

    Raises:
        ValueError: the activation is none of these.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 1,
        *,
        stride: int = 1,
        activation: str = "none",
        frozen: bool = False,
    ) -> None:
        super().__init__()
        if activation != "none" and activation not in _activations:
            raise ValueError(f"activation {activation!r} is unknown; choose one of none, {', '.join(_activations)}")
        self.convolution = nn.Conv2d(in_channels, out_channels, kernel_size, stride, kernel_size // 2, bias=False)
        self.norm: Any = FrozenBatchNorm2d(out_channels) if frozen else nn.BatchNorm2d(out_channels)
        self.activation = activation

    def forward(self, features: Tensor) -> Tensor:
        if self.runs_folded():
            return activate(self.convolve(features, [self]), self.activation)
        return activate(self.norm(self.convolution(features)), self.activation)

    def sources(self) -> list[Tensor]:
        """What the folded kernel is made of."""
        norm = self.norm
        return [self.convolution.weight, norm.weight, norm.bias, norm.running_mean, norm.running_var]

    def fold(self) -> tuple[Tensor, Tensor]:
        """Kernel (out_channels, in_channels, k, k) and bias (out_channels,) of convolution and norm in one."""
        norm = self.norm
        scale = norm.weight * torch.rsqrt(norm.running_var + norm.eps)  # (out_channels,)
        return self.convolution.weight * scale[:, None, None, None], norm.bias - norm.running_mean * scale


def sum_of_kernels(kernels: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """One kernel and bias for parallel convolutions, of which the first has the largest kernel.

    Source: Ding et al. 2021 (RepVGG, https://arxiv.org/abs/2101.03697), section 3.3.
    """
    weight, bias = kernels[0]
    for smaller, shift in kernels[1:]:
        border = (weight.shape[-1] - smaller.shape[-1]) // 2
        weight, bias = weight + functional.pad(smaller, (border,) * 4), bias + shift
    return weight.contiguous(memory_format=torch.channels_last), bias


def activate(features: Tensor, activation: str) -> Tensor:
    """Applies "relu", "silu" or "none"; over its input where no gradients are recorded."""
    if activation == "none":
        return features
    return _activations[activation](features, inplace=not torch.is_grad_enabled())
