"""Our backbones beside timm's twins with the same weights: milliseconds and ratios, forward and training step."""

from __future__ import annotations

from collections.abc import Callable
from tempfile import TemporaryDirectory
from typing import Annotated, Any, NamedTuple

import torch
import typer
from torch import Tensor, nn
from torch.nn import functional

from visattn.benchmark.measure import print_environment, time_alternatives
from visattn.checkpoints import load_pretrained


class Case(NamedTuple):
    """A preset, and the same network of timm's: its name there, and the arguments that make it this one."""

    name: str
    timm_name: str
    image_size: int
    timm_arguments: dict[str, Any]

    @property
    def label(self) -> str:
        """What tells it apart: the preset, and the size unless it is 224."""
        return self.name if self.image_size == 224 else f"{self.name}_{self.image_size}px"


# Presets that are also a network of timm's, with the same parameters. Of other sizes there is none.
twin_cases = [
    Case("vit_tiny", "vit_tiny_patch16_224", 32, {"img_size": 32, "patch_size": 4}),
    Case("swin_tiny", "swin_tiny_patch4_window7_224", 32, {"img_size": 32, "patch_size": 2, "window_size": 4}),
    Case("vit_tiny", "vit_tiny_patch16_224", 224, {}),
    Case("vit_small", "vit_small_patch16_224", 224, {}),
    Case("vit_base", "vit_base_patch16_224", 224, {}),
    Case("swin_tiny", "swin_tiny_patch4_window7_224", 224, {}),
    Case("swin_small", "swin_small_patch4_window7_224", 224, {}),
    Case("swin_base", "swin_base_patch4_window7_224", 224, {}),
    Case("swin_v2_tiny", "swinv2_tiny_window8_256", 224, {"img_size": 224}),
    Case("swin_v2_small", "swinv2_small_window8_256", 224, {"img_size": 224}),
    Case("swin_v2_base", "swinv2_base_window8_256", 224, {"img_size": 224}),
    Case("pvt_v2_b0", "pvt_v2_b0", 224, {}),
    Case("pvt_v2_b1", "pvt_v2_b1", 224, {}),
    Case("pvt_v2_b2", "pvt_v2_b2", 224, {}),
    Case("hiera_tiny", "hiera_tiny_224", 224, {}),
    Case("maxvit_tiny", "maxvit_tiny_tf_224", 224, {}),
    Case("coatnet_0", "coatnet_0_224", 224, {}),
]


def main(
    models: Annotated[
        list[str] | None, typer.Argument(help=f"Any of {', '.join(case.label for case in twin_cases)}.")
    ] = None,
    batch_size: Annotated[list[int] | None, typer.Option(help="Images per step; give it again for more.")] = None,
    seconds: Annotated[float, typer.Option(help="Time spent on each comparison.")] = 6.0,
    train: Annotated[bool, typer.Option(help="Measure the training step too.")] = True,
    compile: Annotated[bool, typer.Option(help="Run both through torch.compile.")] = False,
    channels_last: Annotated[
        bool, typer.Option(help="Keep images and kernels of both in channels-last memory.")
    ] = False,
    dtype: Annotated[str, typer.Option(help="float32, or bfloat16 by autocast.")] = "float32",
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
) -> None:
    """Times our backbones and timm's in turns; a ratio above 1 says how many times ours is faster."""
    names = models or ["vit_tiny", "vit_small", "swin_tiny", "vit_tiny_32px", "swin_tiny_32px"]
    unknown = set(names) - {case.label for case in twin_cases}
    if unknown:
        raise typer.BadParameter(f"no such model: {', '.join(sorted(unknown))}")
    if dtype not in ("float32", "bfloat16"):
        raise typer.BadParameter(f"dtype {dtype} is neither float32 nor bfloat16")
    print_environment()
    print(f"{'model':<16}{'batch':>6}  {'step':<10}{'timm ms':>10}{'ours ms':>10}{'ratio':>8}")
    for case in twin_cases:
        if case.label not in names:
            continue
        theirs, ours = twins(case)
        for size in batch_size or [1, 8]:
            images = torch.randn(size, 3, case.image_size, case.image_size, device=device)
            labels = torch.randint(1000, (size,), device=device)
            if channels_last:
                images = images.contiguous(memory_format=torch.channels_last)
            modules = {"timm": theirs, "ours": ours}
            for module in modules.values():
                module.to(device)
                if channels_last:
                    module.to(memory_format=torch.channels_last)
            runs = {name: torch.compile(module) if compile else module for name, module in modules.items()}
            autocast = torch.autocast(device, torch.bfloat16, enabled=dtype == "bfloat16")
            steps: dict[str, Callable] = {"forward": forward_step}
            if train:
                steps["training"] = training_step
            for step, make in steps.items():
                functions = {name: make(run, images, labels, autocast) for name, run in runs.items()}
                times = time_alternatives(functions, seconds=seconds)
                milliseconds = f"{times['timm'] * 1e3:>10.2f}{times['ours'] * 1e3:>10.2f}"
                print(
                    f"{case.label:<16}{size:>6}  {step:<10}{milliseconds}{times['timm'] / times['ours']:>8.2f}",
                    flush=True,
                )


def twins(case: Case) -> tuple[nn.Module, nn.Module]:
    """timm's model with random weights, and ours with the same weights, checked to give the same logits."""
    import timm
    from timm.models import save_for_hf

    theirs = timm.create_model(case.timm_name, drop_path_rate=0.0, **case.timm_arguments).eval()
    with TemporaryDirectory() as folder:
        save_for_hf(theirs, folder, model_args=case.timm_arguments, safe_serialization=True)
        ours = load_pretrained(folder)
    images = torch.randn(2, 3, case.image_size, case.image_size)
    with torch.no_grad():
        torch.testing.assert_close(ours(images), theirs(images), rtol=0, atol=1e-4)
    return theirs, ours


def forward_step(model: Any, images: Tensor, labels: Tensor, autocast: torch.autocast) -> Callable[[], object]:
    """A function that computes the logits without gradients."""
    model.eval()

    def run() -> Tensor:
        with torch.inference_mode(), autocast:
            return model(images)

    return run


def training_step(model: Any, images: Tensor, labels: Tensor, autocast: torch.autocast) -> Callable[[], object]:
    """A function that makes one step: forward, backward, AdamW."""
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)

    def run() -> None:
        optimizer.zero_grad()
        with autocast:
            loss = functional.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()

    return run
