"""Training by the clock: every network has the same minutes, and its schedule ends when they end."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from timm.optim import Muon
from torch import Tensor, nn
from torch.nn import functional
from torch.optim.swa_utils import AveragedModel

from visattn.data import Augmentation, CIFAR10DataModule, Preprocess
from visattn.data.classification import ImageBatches
from visattn.data.sampler import EpochSampler
from visattn.heads import ImageClassifier
from visattn.tasks.classification import logits_of_views
from visattn.tasks.optimization import exponential_average, parameter_groups, warmup_cosine

Show = Callable[[float, float], None]  # the fraction of the time that has passed, and the loss


class Images(NamedTuple):
    """Images in memory (N, 3, H, W), uint8, and their labels (N,)."""

    images: Tensor
    labels: Tensor

    def spread(self, count: int | None) -> Images:
        """So many of them, evenly from first to last; None is all."""
        if count is None or count >= len(self.labels):
            return self
        chosen = torch.linspace(0, len(self.labels) - 1, count).long()
        return Images(self.images[chosen], self.labels[chosen])


class ImageSet(NamedTuple):
    """What all networks learn from and are tested on."""

    train: Images
    test: Images
    preprocess: Preprocess
    num_classes: int


class Trained(NamedTuple):
    """A finished training.

    Attributes:
        model: with the weights that are to be tested, in evaluation.
        steps: of the optimizer, those that were left out not counted.
        left_out: steps whose gradient was not finite.
        images: seen, with repetitions.
        seconds: that it took.
        cores: that were busy for this process on average, less than its threads if others wanted them too.
    """

    model: nn.Module
    steps: int
    left_out: int
    images: int
    seconds: float
    cores: float


def load_images(folder: str | Path, train_images: int | None = None, test_images: int | None = None) -> ImageSet:
    """CIFAR-10 as `dataset=cifar10` reads it, or any folder of `train/` and `test/` class folders, at 32 px.

    Raises:
        FileNotFoundError: it isn't there, and cannot be downloaded.
    """
    data = CIFAR10DataModule(folder)
    data.prepare_data()
    train, test = Images(*data.split("train")), Images(*data.split("test"))
    return ImageSet(train.spread(train_images), test.spread(test_images), data.preprocess, data.num_classes)


def elapsing(seconds: float) -> Iterator[float]:
    """The fraction of the time that has passed since the call: 0, and then what it is until all of it has passed."""
    start = time.perf_counter()
    fractions = ((time.perf_counter() - start) / seconds for _ in itertools.count())
    return itertools.chain((0.0,), itertools.takewhile(lambda passed: passed < 1, fractions))


class Stopwatch:
    """Wall clock and processor time since it was made."""

    def __init__(self) -> None:
        self.start, self.start_processor = time.perf_counter(), time.process_time()

    def read(self) -> tuple[float, float]:
        """Seconds, and how many cores were busy for this process on average."""
        seconds = time.perf_counter() - self.start
        return seconds, (time.process_time() - self.start_processor) / seconds


def epochs_of_indices(count: int, batch_size: int, seed: int) -> Iterator[tuple[int, list[int]]]:
    """Without end: the epoch, and the indices of a full batch of it, in an order drawn for each epoch."""
    sampler = EpochSampler(count, seed)
    batch_size = min(batch_size, count)
    for epoch in itertools.count():
        sampler.set_epoch(epoch)
        order = [index for _, index in sampler]
        for start in range(0, count - batch_size + 1, batch_size):
            yield epoch, order[start : start + batch_size]


def augmented_batches(
    data: ImageSet, batch_size: int, seed: int, *, erasing: float = 0.0
) -> Iterator[tuple[Tensor, Tensor]]:
    """Without end: training images (B, 3, H, W), shifted by up to 2 pixels, alternately mirrored, and labels (B,).

    Args:
        erasing: probability of a greyed rectangle.
    """
    augmentation = Augmentation(data.num_classes, seed, crop_padding=2, flip="alternating", erasing=erasing)
    batches = ImageBatches(*data.train, data.preprocess, augmentation)
    for epoch, indices in epochs_of_indices(len(data.train.labels), batch_size, seed):
        yield batches.__getitems__([(epoch, index) for index in indices])


def first_images(data: ImageSet, count: int) -> Tensor:
    """Training images (count, 3, H, W), normalised, evenly from all, for what networks take from them untrained."""
    chosen = data.train.spread(count)
    return ImageBatches(*chosen, data.preprocess).__getitems__([(0, index) for index in range(len(chosen.labels))])[0]


def train_with_muon(
    model: ImageClassifier,
    batches: Iterator[tuple[Tensor, Tensor]],
    clock: Iterable[float],
    show: Show,
    *,
    learning_rate: float,
    weight_decay: float = 0.1,
    label_smoothing: float = 0.2,
    warmup: float = 0.1,
    dtype: torch.dtype = torch.float32,
) -> Trained:
    """The recipe of the zoo: Muon, a cosine over the time, clipped gradients, an average of the weights.

    As `python train.py task.optimizer=muon` does it, but that the clock drives the schedule. A step whose gradient is
    not finite is left out.

    Args:
        batches: images (B, 3, H, W) and labels (B,), without end.
        clock: the fraction of the time that has passed, asked before each step, such as `elapsing(seconds)`.
        learning_rate: at the peak.
        label_smoothing: as in Szegedy et al. 2016 (https://arxiv.org/abs/1512.00567), section 7.
        warmup: fraction of the time in which the learning rate rises.
        dtype: float32, or bfloat16 by autocast.

    Source: Muon and its scale as in `visattn.tasks.optimization.scheduled_optimizer`.
    """
    layout = memory_format(model)
    model.train().to(memory_format=layout)
    groups = parameter_groups(model, model.backbone, learning_rate, weight_decay)
    optimizer = Muon(groups, betas=(0.9, 0.95), momentum=0.9, nesterov=True, ns_steps=3)
    peaks = [group["lr"] for group in optimizer.param_groups]
    factor = warmup_cosine(round(1000 * warmup), 1000)
    average = AveragedModel(model, multi_avg_fn=exponential_average(0.995), use_buffers=True)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    stopwatch = Stopwatch()
    steps = left_out = seen = 0
    for passed, (images, labels) in zip(clock, batches, strict=False):
        for group, peak in zip(optimizer.param_groups, peaks, strict=True):
            group["lr"] = peak * factor(int(1000 * passed))
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            logits = model(images.contiguous(memory_format=layout))
            loss = functional.cross_entropy(logits, labels, label_smoothing=label_smoothing)
        optimizer.zero_grad()
        loss.backward()
        seen += len(labels)
        if nn.utils.clip_grad_norm_(parameters, 1.0).isfinite():
            optimizer.step()
            average.update_parameters(model)
            steps += 1
        else:
            left_out += 1
        show(passed, loss.item())
    return Trained(average.module.eval(), steps, left_out, seen, *stopwatch.read())


def memory_format(model: nn.Module) -> torch.memory_format:
    """Channels-last for networks with convolutions whose kernels overlap; patch embeddings alone don't count."""
    convolutions = [module for module in model.modules() if isinstance(module, nn.Conv2d)]
    overlapping = any(module.kernel_size[0] > module.stride[0] for module in convolutions)
    return torch.channels_last if overlapping else torch.contiguous_format


class Score(NamedTuple):
    """What a network gets right of the test images.

    Attributes:
        accuracy: by the image as it is.
        views: how many views of it `accuracy_views` takes the mean logits of.
        accuracy_views: see `logits_of_views`; None if there is one view only.
        images_per_second: forward, one view.
    """

    accuracy: float
    views: int
    accuracy_views: float | None
    images_per_second: float


@torch.inference_mode()
def measure_accuracy(
    model: nn.Module, test: Images, preprocess: Preprocess, *, views: int = 2, dtype: torch.dtype = torch.float32
) -> Score:
    """Tests with one view, and with several whose logits are averaged.

    Args:
        views: 1, 2 (mirrored) or 6 (mirrored and shifted).
        dtype: float32, or bfloat16 by autocast.
    """
    layout = memory_format(model)
    batches = ImageBatches(*test, preprocess)
    right = right_views = 0
    seconds = 0.0
    for start in range(0, len(test.labels), 500):
        indices = range(start, min(start + 500, len(test.labels)))
        images, labels = batches.__getitems__([(0, index) for index in indices])
        images = images.contiguous(memory_format=layout)
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            begin = time.perf_counter()
            logits = model(images)  # (B, classes)
            seconds += time.perf_counter() - begin
            right += int((logits.argmax(dim=1) == labels).sum())
            if views > 1:
                right_views += int((logits_of_views(model, images, views).argmax(dim=1) == labels).sum())
    count = len(test.labels)
    return Score(right / count, views, right_views / count if views > 1 else None, count / seconds)
