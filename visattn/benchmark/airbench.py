"""A small convolutional network that is tuned to learn CIFAR-10 fast: what the zoo's attention is measured by."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from visattn.backbones.hybrid import WhitenedPatches
from visattn.benchmark.zoo_training import Show, Stopwatch, Trained


class Airbench94(nn.Module):
    """Images (B, 3, H, W) to logits (B, num_classes): a whitening layer and three groups of two 3x3 convolutions.

    The kernels pass their input on at first: kernel i of a convolution is 1 at the centre of channel i, as far as
    there are input channels. Batch norms have a bias, and no factor. 1.97 M parameters.

    Args:
        num_classes: number of logits.
        widths: channels of the groups, none below those before it.

    Source: Jordan 2024 (https://arxiv.org/abs/2404.00498), sections 3.1 to 3.3 and appendix A.
    """

    def __init__(self, num_classes: int = 10, widths: tuple[int, ...] = (64, 256, 256)) -> None:
        super().__init__()
        self.whitening = WhitenedPatches(3, 2, 1)
        self.groups = nn.Sequential(*(group(narrow, wide) for narrow, wide in itertools.pairwise((24, *widths))))
        self.classifier = nn.Linear(widths[-1], num_classes, bias=False)

    def forward(self, images: Tensor) -> Tensor:
        # Without the padding of WhitenedPatches: 31x31, 15x15, 7x7 and 3x3 cells of images of 32x32 pixels.
        cells = functional.gelu(functional.conv2d(images, self.whitening.filters, self.whitening.bias))
        cells = self.groups(cells)  # (B, 256, height, width)
        return self.classifier(cells.amax(dim=(2, 3))) / 9


def group(narrow: int, wide: int) -> nn.Sequential:
    """(B, narrow, H, W) -> (B, wide, H // 2, W // 2)."""
    return nn.Sequential(
        passing_convolution(narrow, wide),
        nn.MaxPool2d(2),
        norm(wide),
        nn.GELU(),
        passing_convolution(wide, wide),
        norm(wide),
        nn.GELU(),
    )


def passing_convolution(narrow: int, wide: int) -> nn.Conv2d:
    convolution = nn.Conv2d(narrow, wide, 3, padding=1, bias=False)
    nn.init.dirac_(convolution.weight.data[:narrow])
    return convolution


def norm(channels: int) -> nn.BatchNorm2d:
    result = nn.BatchNorm2d(channels, eps=1e-12, momentum=0.4)
    result.weight.requires_grad_(False)
    return result


class Lookahead:
    """An average of a network's weights and statistics, to which the network is set back each time it is updated.

    Source: Zhang et al. 2019 (https://arxiv.org/abs/1907.08610), as in Jordan 2024 (https://arxiv.org/abs/2404.00498),
        section 3.4.
    """

    def __init__(self, model: nn.Module) -> None:
        self.fast = [tensor for tensor in model.state_dict().values() if tensor.is_floating_point()]
        self.slow = [tensor.clone() for tensor in self.fast]

    @torch.no_grad()
    def update(self, decay: float) -> None:
        """Keeps `decay` of the average."""
        torch._foreach_lerp_(self.slow, self.fast, 1 - decay)
        torch._foreach_copy_(self.fast, self.slow)


def train_airbench(
    model: Airbench94, first: Tensor, batches: Iterator[tuple[Tensor, Tensor]], clock: Iterable[float], show: Show
) -> Trained:
    """The published recipe by the clock, in float32: where it counts steps, this takes the fraction of the time.

    SGD with Nesterov momentum 0.85; the learning rate rises from a fifth of its peak over 23 % of the time and falls
    to 7 % of it. Rate and decay are given for 1024 images and count for each image, whatever the size of a batch. The
    biases of batch norms learn 64 times as fast; that of the first layer only for the first 3 of 9.9 epochs.

    Args:
        first: training images (N, 3, H, W), normalised, by which patches are whitened; published are 5000.
        batches: images (B, 3, H, W) and labels (B,), without end; published are 1024 at once, shifted by up to 2 pixels
            and alternately mirrored.
        clock: the fraction of the time that has passed, asked before each step, such as `elapsing(seconds)`.

    Source: Jordan 2024 (https://arxiv.org/abs/2404.00498), section 3 and appendix A; numbers as in its repository
        KellerJordan/cifar10-airbench, airbench94.
    """
    momentum = 0.85
    scale = 1024 * (1 + 1 / (1 - momentum))  # so that a momentum doesn't change the size of the steps
    rate, decay = 11.5 / scale, 0.0153 / scale  # of one image
    stopwatch = Stopwatch()
    model.train().to(memory_format=torch.channels_last)
    model.whitening.fit(first)
    biases = [bias for name, bias in model.named_parameters() if name.startswith("groups.") and name.endswith("bias")]
    kernels = [weight for weight in model.parameters() if weight.ndim > 1]
    groups = [{"params": biases, "peak": 64 * rate}, {"params": [model.whitening.bias, *kernels], "peak": rate}]
    optimizer = torch.optim.SGD(groups, lr=rate, momentum=momentum, nesterov=True)
    lookahead = Lookahead(model)
    steps = seen = 0
    for passed, (images, labels) in zip(clock, batches, strict=False):
        for settings in optimizer.param_groups:
            settings["lr"] = settings["peak"] * float(np.interp(passed, (0, 0.23, 1), (0.2, 1, 0.07)))
            settings["weight_decay"] = decay * len(labels) / settings["peak"]
        model.whitening.bias.requires_grad_(passed < 3 / 9.9)
        logits = model(images.contiguous(memory_format=torch.channels_last))
        loss = functional.cross_entropy(logits, labels, label_smoothing=0.2, reduction="sum")
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        steps += 1
        seen += len(labels)
        if steps % 5 == 0:
            lookahead.update(0.95**5 * passed**3)
        show(passed, loss.item() / len(labels))
    lookahead.update(1.0)
    return Trained(model.eval(), steps, 0, seen, *stopwatch.read())
