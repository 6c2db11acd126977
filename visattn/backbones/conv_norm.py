"""Convolutions with a batch norm, which are one convolution in evaluation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision.ops import FrozenBatchNorm2d


def gelu(features: Tensor, inplace: bool = False, approximate: str = "none") -> Tensor:
    """GELU, over its input if `inplace`."""
    if inplace and not torch.compiler.is_compiling():
        return torch.ops.aten.gelu_(features, approximate=approximate)
    return functional.gelu(features, approximate=approximate)


_activations: dict[str, Callable[..., Tensor]] = {
    "relu": functional.relu,
    "silu": functional.silu,
    "gelu": gelu,
    "gelu_tanh": partial(gelu, approximate="tanh"),
}


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
        options: dict[str, Any] = {"stride": convolution.stride, "padding": convolution.padding}
        return functional.conv2d(features, *self.kernel, **options, groups=convolution.groups)

    def train(self, mode: bool = True) -> Self:
        self.kernel = None
        return super().train(mode)

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        self.kernel = None  # another device or precision doesn't count as another version
        return super()._apply(fn, recurse)


class ConvNorm(FoldableConvolution):
    """A convolution, a batch norm and an activation: (B, in_channels, H, W) -> (B, out_channels, h, w).

    Args:
        in_channels, out_channels: of the maps.
        kernel_size: side in cells, odd; borders are padded by half of it.
        stride: of the convolution.
        activation: "relu", "silu", "gelu", "gelu_tanh" or "none".
        frozen: statistics and factors of the norm are constants, also in training.
        groups: of channels that the convolution keeps apart; as many as channels make it a depthwise one.
        bias: of the convolution, which some published networks have although the norm takes it away.
        padding: "symmetric"; or "same", TensorFlow's, see `pad_same`.
        norm_eps: epsilon of the norm.

    Raises:
        ValueError: the activation or the padding is none of these.
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
        groups: int = 1,
        bias: bool = False,
        padding: str = "symmetric",
        norm_eps: float = 1e-5,
    ) -> None:
        super().__init__()
        if padding not in ("symmetric", "same"):
            raise ValueError(f"padding {padding!r} is unknown; choose symmetric or same")
        if activation != "none" and activation not in _activations:
            raise ValueError(f"activation {activation!r} is unknown; choose one of none, {', '.join(_activations)}")
        self.strided_depthwise = stride > 1 and groups == in_channels > 1
        self.pads = padding == "same" and stride > 1  # at a stride of 1 both are the same
        border = 0 if self.pads else kernel_size // 2
        self.convolution = nn.Conv2d(in_channels, out_channels, kernel_size, stride, border, groups=groups, bias=bias)
        make_norm = FrozenBatchNorm2d if frozen else nn.BatchNorm2d
        self.norm: Any = make_norm(out_channels, eps=norm_eps)
        self.activation = activation

    def forward(self, features: Tensor) -> Tensor:
        if self.runs_folded():
            return activate(self.convolve(self.padded(features), [self]), self.activation)
        return activate(self.norm(self.convolved(features)), self.activation)

    def convolved(self, features: Tensor) -> Tensor:
        """What the convolution makes of (B, in_channels, H, W), without norm and activation."""
        features = self.padded(features)
        learns = self.strided_depthwise and torch.is_grad_enabled()
        if learns and features.device.type == "cpu" and torch.is_autocast_enabled("cpu"):
            # The gradient in bfloat16 takes oneDNN five times as long as in float32.
            with torch.autocast("cpu", enabled=False):
                return self.convolution(features.float()).to(torch.get_autocast_dtype("cpu"))
        return self.convolution(features)

    def padded(self, features: Tensor) -> Tensor:
        """(B, in_channels, H, W) with the borders that the convolution doesn't add by itself."""
        if not self.pads:
            return features
        return pad_same(features, self.convolution.kernel_size[0], self.convolution.stride[0])

    def sources(self) -> list[Tensor]:
        """What the folded kernel is made of."""
        norm, bias = self.norm, self.convolution.bias
        tensors = [self.convolution.weight, norm.weight, norm.bias, norm.running_mean, norm.running_var]
        return tensors if bias is None else [*tensors, bias]

    def fold(self) -> tuple[Tensor, Tensor]:
        """Kernel (out_channels, in_channels, k, k) and bias (out_channels,) of convolution and norm in one."""
        norm = self.norm
        scale = norm.weight * torch.rsqrt(norm.running_var + norm.eps)  # (out_channels,)
        shift = norm.running_mean if self.convolution.bias is None else norm.running_mean - self.convolution.bias
        return self.convolution.weight * scale[:, None, None, None], norm.bias - shift * scale


def sum_of_kernels(kernels: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """One kernel and bias for parallel convolutions, of which the first has the largest kernel.

    Source: Ding et al. 2021 (RepVGG, https://arxiv.org/abs/2101.03697), section 3.3.
    """
    weight, bias = kernels[0]
    for smaller, shift in kernels[1:]:
        border = (weight.shape[-1] - smaller.shape[-1]) // 2
        weight, bias = weight + functional.pad(smaller, (border,) * 4), bias + shift
    return weight.contiguous(memory_format=torch.channels_last), bias


def pad_same(features: Tensor, kernel_size: int, stride: int) -> Tensor:
    """(B, C, H, W) with the zeros of TensorFlow's "SAME": if their number is odd, more below and at the right."""
    down, across = (
        max((-(-side // stride) - 1) * stride + kernel_size - side, 0) for side in features.shape[-2:]
    )  # of all that is added along each axis
    return functional.pad(features, (across // 2, across - across // 2, down // 2, down - down // 2))


def activate(features: Tensor, activation: str) -> Tensor:
    """Applies an activation by name, or none by "none"; over its input where no gradients are recorded."""
    if activation == "none":
        return features
    return _activations[activation](features, inplace=not torch.is_grad_enabled())
