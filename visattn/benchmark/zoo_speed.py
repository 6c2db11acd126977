"""Parameters, multiply-adds and images a second of every backbone, beside timm's twin where there is one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from visattn.benchmark.airbench import Airbench94
from visattn.benchmark.backbones import forward_step, training_step, twin_cases, twins
from visattn.benchmark.measure import processor_name, time_alternatives
from visattn.benchmark.zoo_results import Speed, reference
from visattn.benchmark.zoo_training import memory_format
from visattn.heads import ImageClassifier
from visattn.zoo import create_model, list_models


def small_models() -> list[str]:
    """The networks for 32 px, and the convolutional one that they are measured by."""
    older = {"vit_tiny", "vit_local_tiny", "swin_tiny"}  # their presets serve both sizes
    return [reference, *(name for name in list_models() if name.endswith("_32") or name in older)]


def large_models() -> list[str]:
    """The presets for 224 px."""
    return [name for name in list_models() if not name.endswith("_32")]


def build(name: str, image_size: int, num_classes: int) -> Airbench94 | ImageClassifier:
    """A network with new weights: images (B, 3, H, W) to logits (B, num_classes)."""
    if name == reference:
        return Airbench94(num_classes)
    return cast(ImageClassifier, create_model(name, num_classes, image_size))


def multiply_adds(name: str, image_size: int, num_classes: int) -> int:
    """Multiplications with an addition, of one image forward, in matrix products, attention and convolutions.

    Neighborhood attention counts the keys that a query sees, not those that a kernel multiplies and masks. Norms,
    activations, softmax and what gathers or moves are not counted.
    """
    with torch.device("meta"):  # shapes are enough
        model, images = build(name, image_size, num_classes).eval(), torch.empty(1, 3, image_size, image_size)
    counter = FlopCounterMode(display=False, custom_mapping=formulas)
    with counter, torch.no_grad():
        model(images)
    return counter.get_total_flops() // 2


def neighborhood_operations(query: torch.Size, key: Any, value: Any, table: Any, kernel_size: Any, *_: Any, **__: Any):
    """Of two products of a query (batch, height, width, heads, head_dim) with the keys and values that it sees."""
    return 2 * 2 * query.numel() * kernel_size[0] * kernel_size[1]


# Our own operators, whose inside no counter sees.
formulas = {torch.ops.visattn.neighborhood_attention: neighborhood_operations}


def count_parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def measure_speed(
    name: str, image_size: int, *, batch_size: int, seconds: float, train: bool = True, dtype: str = "float32"
) -> Speed:
    """Times a network, and timm's twin in turns with it, both in the memory layout that suits it.

    Args:
        batch_size: images at once.
        seconds: for each comparison.
        train: measure training steps too.
        dtype: "float32", or "bfloat16" by autocast.
    """
    num_classes = 10 if image_size < 64 else 1000
    ours = build(name, image_size, num_classes)
    models: dict[str, nn.Module] = {"ours": ours}
    for case in twin_cases:
        if (case.name, case.image_size) == (name, image_size):
            options = case.timm_arguments | {"num_classes": num_classes}
            theirs, same = twins(case._replace(timm_arguments=options))
            if count_parameters(same) != count_parameters(ours):
                raise ValueError(f"{name} has other parameters than timm's {case.timm_name}; they are no twins")
            models = {"timm": theirs, "ours": same}
    layout = memory_format(ours)
    images = torch.randn(batch_size, 3, image_size, image_size).contiguous(memory_format=layout)
    labels = torch.randint(num_classes, (batch_size,))
    autocast = torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bfloat16")
    paces: list[dict[str, float]] = []
    steps: list[Callable[[Any, Tensor, Tensor, torch.autocast], Callable[[], object]]] = [forward_step, training_step]
    for step in steps if train else steps[:1]:
        functions = {
            who: step(model.to(memory_format=layout), images, labels, autocast) for who, model in models.items()
        }
        times = time_alternatives(functions, seconds=seconds)
        paces.append({who: batch_size / time for who, time in times.items()})
    forward, training = paces[0], paces[1] if train else {}
    return Speed(
        name,
        image_size,
        count_parameters(ours),
        multiply_adds(name, image_size, num_classes),
        batch_size,
        torch.get_num_threads(),
        dtype,
        processor_name(),
        forward["ours"],
        training.get("ours"),
        forward["ours"] / forward["timm"] if "timm" in forward else None,
        training["ours"] / training["timm"] if "timm" in training else None,
    )
