"""Detection beside its alternatives: the COCO evaluation, multi-scale deformable attention, DETR and RT-DETR v2."""

from __future__ import annotations

import contextlib
import io
import time
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from tempfile import TemporaryDirectory
from typing import Annotated, Any, NamedTuple

import numpy as np
import torch
import typer
from torch import Tensor

from visattn.attention import deformable_attention
from visattn.benchmark.measure import print_environment, time_alternatives
from visattn.checkpoints import load_pretrained
from visattn.evaluation.detection import evaluate_detections

parts = ("scores", "attention", "models")


def main(
    part: Annotated[list[str] | None, typer.Argument(help=f"Any of {', '.join(parts)}; all by default.")] = None,
    images: Annotated[int, typer.Option(help="Of the set to score; 5000 as COCO's val2017.")] = 5000,
    batch: Annotated[list[int] | None, typer.Option(help="Images at once; give it again for more.")] = None,
    size: Annotated[int, typer.Option(help="Side of the models' images in pixels; a multiple of 32.")] = 640,
    model: Annotated[list[str] | None, typer.Option(help="detr, rt_detr_v2, or with _micro; again for more.")] = None,
    seconds: Annotated[float, typer.Option(help="Time for each comparison, at least.")] = 6.0,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
) -> None:
    """Times ours and the alternatives in turns; a ratio above 1 says how many times ours is faster."""
    chosen = part or list(parts)
    if unknown := set(chosen) - set(parts):
        raise typer.BadParameter(f"no such part: {', '.join(sorted(unknown))}; there are {', '.join(parts)}")
    if unknown := set(model or ()) - set(published):
        raise typer.BadParameter(f"no such model: {', '.join(sorted(unknown))}; there are {', '.join(published)}")
    print_environment()
    if "scores" in chosen:
        compare_scores(images)
    if "attention" in chosen:
        compare_attention(batch or [1, 8], seconds, device)
    if "models" in chosen:
        compare_models(model or ["detr", "rt_detr_v2"], batch or [1, 8], size, seconds, device)


def compare_scores(images: int) -> None:
    """The official evaluation of made-up detections, once by each."""
    print("\nCOCO evaluation: seconds, ratio to pycocotools, and the greatest difference of the twelve numbers")
    print(f"{'kind':<6}{'images':>7}{'results':>9}  {'by':<14}{'s':>9}{'ratio':>8}{'difference':>12}")
    for kind, count in (("bbox", images), ("segm", max(images // 5, 1))):
        truth, results = made_up_detections(count, masks=kind == "segm")
        expected, seconds = timed(partial(official_numbers, truth, results, kind))
        print(
            f"{kind:<6}{count:>7}{len(results):>9}  {'pycocotools':<14}{seconds:>9.2f}{1:>8.2f}{0:>12.0e}", flush=True
        )
        for backend in ("pycocotools", "faster"):
            if backend == "faster" and not find_spec("hotcoco"):
                print(f"{'':<24}ours, faster: skipped, it needs visattn[detection]")
                continue
            scores, ours = timed(partial(evaluate_detections, truth, results, (kind,), backend))
            numbers = list((scores.bbox or scores.segm).numbers.values())
            difference = float(np.abs(np.array(numbers) - expected).max())
            name = "ours" if backend == "pycocotools" else "ours, faster"
            print(f"{'':<24}{name:<14}{ours:>9.2f}{seconds / ours:>8.2f}{difference:>12.0e}", flush=True)


def official_numbers(truth: dict[str, Any], results: list[dict[str, Any]], kind: str) -> np.ndarray:
    """The twelve numbers by pycocotools, used as its documentation says."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):
        known = COCO()
        known.dataset = truth
        known.createIndex()
        evaluation = COCOeval(known, known.loadRes(results), kind)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation.stats


def timed(function: Callable[[], Any]) -> tuple[Any, float]:
    start = time.perf_counter()
    result = function()
    return result, time.perf_counter() - start


def made_up_detections(images: int, masks: bool, seed: int = 0) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Ground truth and results of COCO's size: 80 classes, about 7 objects an image, and 100 detections.

    Three of five objects are found nearly where they are; the other detections are anywhere, with lower scores, as
    those of a real detector. Masks are ellipses.
    """
    generator = np.random.default_rng(seed)
    height, width, classes = 480, 640, 80
    truth: dict[str, Any] = {
        "images": [{"id": 3 * number + 1, "height": height, "width": width} for number in range(images)],
        "categories": [{"id": number + number // 10 + 1, "name": f"kind {number}"} for number in range(classes)],
        "annotations": [],
    }
    ids = [category["id"] for category in truth["categories"]]
    results: list[dict[str, Any]] = []
    for image in truth["images"]:
        objects = int(generator.poisson(7.3))
        boxes = random_boxes(generator, objects, height, width)
        labels = generator.choice(ids, objects)
        for label, box in zip(labels.tolist(), boxes.tolist(), strict=True):
            entry = {"id": len(truth["annotations"]) + 1, "image_id": image["id"], "category_id": label, "bbox": box}
            entry |= {"area": box[2] * box[3] * 0.7, "iscrowd": int(generator.random() < 0.01)}
            truth["annotations"].append(entry)
        found, guesses, scores = detections_of(generator, boxes, labels, ids, height, width)
        for label, box, score in zip(guesses.tolist(), found.tolist(), scores.tolist(), strict=True):
            results.append({"image_id": image["id"], "category_id": label, "bbox": box, "score": score})
    if masks:
        for entry in (*truth["annotations"], *results):
            entry["segmentation"] = ellipse(entry["bbox"], height, width)
        for entry in results:  # pycocotools would take the box's area for the mask's
            del entry["bbox"]
    return truth, results


def detections_of(
    generator: np.random.Generator, boxes: np.ndarray, labels: np.ndarray, ids: list[int], height: int, width: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Boxes, labels and scores of 100 detections in an image with these objects."""
    kept = generator.random(len(boxes)) < 0.6
    near = boxes[kept] + generator.normal(0, 0.06, (kept.sum(), 4)) * boxes[kept][:, [2, 3, 2, 3]]
    others = 100 - len(near)
    common = labels if len(labels) else np.array(ids)
    guesses = np.where(generator.random(others) < 0.8, generator.choice(common, others), generator.choice(ids, others))
    found = np.concatenate([near, random_boxes(generator, others, height, width)])
    scores = np.concatenate([generator.beta(4, 2, len(near)), generator.beta(0.5, 4, others)])
    return found, np.concatenate([labels[kept], guesses]), scores


def random_boxes(generator: np.random.Generator, count: int, height: int, width: int) -> np.ndarray:
    """(count, 4): x, y, width and height of boxes of all sizes within an image."""
    sides = np.minimum(np.exp(generator.normal(4, 0.9, (count, 2))), [width - 1, height - 1])
    corners = generator.random((count, 2)) * ([width, height] - sides)
    return np.concatenate([corners, sides], axis=1)


def ellipse(box: list[float], height: int, width: int) -> dict[str, Any]:
    """The run lengths of a polygon of 24 corners within a box."""
    from pycocotools import mask as run_lengths

    angles = np.arange(24) * (2 * np.pi / 24)
    x, y = box[0] + box[2] * (0.5 + 0.5 * np.cos(angles)), box[1] + box[3] * (0.5 + 0.5 * np.sin(angles))
    (shape,) = run_lengths.frPyObjects([np.stack([x, y], axis=1).ravel().tolist()], height, width)
    return {"size": [height, width], "counts": shape["counts"].decode("ascii")}


class Places(NamedTuple):
    """The inputs of deformable attention in a part of a published network."""

    name: str
    grids: tuple[tuple[int, int], ...]
    queries: int | None  # None: every cell


_levels = ((80, 80), (40, 40), (20, 20), (10, 10))  # an image of 640 x 640 pixels, strides of 8 to 64
places = [
    Places("Deformable DETR encoder", _levels, None),
    Places("Deformable DETR decoder", _levels, 300),
    Places("RT-DETR decoder", _levels[:3], 300),
]


def compare_attention(batches: list[int], seconds: float, device: str) -> None:
    """Multi-scale deformable attention by grid_sample, as transformers has it, and by ours: 8 heads of 32 channels."""
    print("\nmulti-scale deformable attention at 640 x 640 pixels, 4 points a level; both: forward and backward")
    print(f"{'part':<25}{'batch':>6}  {'step':<9}{'transformers ms':>17}{'ours ms':>10}{'ratio':>8}")
    for place in places:
        for count in batches:
            inputs = attention_inputs(place, count, device)
            alternatives = {"transformers": their_attention(place.grids), "ours": our_attention(place.grids)}
            expected, output = (attend(*inputs) for attend in alternatives.values())
            torch.testing.assert_close(output, expected, rtol=1e-4, atol=1e-5)
            for step, make in (("forward", forward_step), ("both", training_step)):
                functions = {name: make(attend, inputs) for name, attend in alternatives.items()}
                print_row(f"{place.name:<25}{count:>6}  {step:<9}", time_alternatives(functions, seconds=seconds))


def print_row(start: str, times: dict[str, float]) -> None:
    ratio = times["transformers"] / times["ours"]
    print(f"{start}{times['transformers'] * 1e3:>17.1f}{times['ours'] * 1e3:>10.1f}{ratio:>8.2f}", flush=True)


def attention_inputs(place: Places, batch: int, device: str) -> tuple[Tensor, Tensor, Tensor]:
    """Values (batch, keys, 8, 32), locations (batch, queries, 8, samples, 2), weights (batch, queries, 8, samples)."""
    keys, samples = sum(height * width for height, width in place.grids), 4 * len(place.grids)
    queries = place.queries or keys
    centers = torch.rand(batch, queries, 1, 1, 2, device=device)
    locations = centers + 0.05 * torch.randn(batch, queries, 8, samples, 2, device=device)
    weights = torch.randn(batch, queries, 8, samples, device=device).softmax(dim=-1)
    return torch.randn(batch, keys, 8, 32, device=device), locations, weights


def our_attention(grids: tuple[tuple[int, int], ...]) -> Callable[..., Tensor]:
    return lambda value, locations, weights: deformable_attention(value, locations, weights, grids).flatten(2)


def their_attention(grids: tuple[tuple[int, int], ...]) -> Callable[..., Tensor]:
    from transformers.models.deformable_detr.modeling_deformable_detr import MultiScaleDeformableAttention

    attend = MultiScaleDeformableAttention()
    shapes = torch.tensor(grids)

    def run(value: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
        by_level = (len(grids), -1)
        starts = torch.cat([shapes.new_zeros(1), shapes.prod(1).cumsum(0)[:-1]])
        return attend(
            value, shapes, list(grids), starts, locations.unflatten(3, by_level), weights.unflatten(3, by_level), 64
        )

    return run


def forward_step(attend: Callable[..., Tensor], inputs: tuple[Tensor, ...]) -> Callable[[], object]:
    """A function that computes the output only."""

    def run() -> Tensor:
        with torch.no_grad():
            return attend(*inputs)

    return run


def training_step(attend: Callable[..., Tensor], inputs: tuple[Tensor, ...]) -> Callable[[], object]:
    """A function that computes the output, and the gradients of values, locations and weights."""
    leaves = [tensor.clone().requires_grad_() for tensor in inputs]
    gradient = torch.randn_like(attend(*inputs))

    def run() -> tuple[Tensor, ...]:
        return torch.autograd.grad(attend(*leaves), leaves, gradient)

    return run


def detr(micro: bool) -> Any:
    """facebook/detr-resnet-50 as transformers builds it, with random weights."""
    import transformers

    network: dict[str, Any] = {"out_features": ["stage4"]}
    options: dict[str, Any] = {}
    if micro:
        network |= {"hidden_sizes": [16, 24, 32, 48], "depths": [1, 1, 1, 1]}
        options |= {"d_model": 32, "encoder_layers": 1, "decoder_layers": 1}
        options |= {"encoder_ffn_dim": 64, "decoder_ffn_dim": 64}
    config = transformers.DetrConfig(backbone_config=transformers.ResNetConfig(**network), **options)
    return transformers.DetrForObjectDetection(config)


def rt_detr_v2(micro: bool) -> Any:
    """PekingU/rtdetr_v2_r18vd as transformers builds it, with random weights."""
    import transformers

    network: dict[str, Any] = {"hidden_sizes": [64, 128, 256, 512], "depths": [2, 2, 2, 2]}
    options: dict[str, Any] = {"decoder_layers": 3}
    if micro:
        network = {"hidden_sizes": [16, 24, 32, 40], "depths": [1, 1, 1, 1], "embedding_size": 16}
        options = {"decoder_layers": 2, "d_model": 32, "encoder_hidden_dim": 32, "num_queries": 30}
        options |= {"encoder_ffn_dim": 64, "decoder_ffn_dim": 64}
    network |= {"layer_type": "basic", "out_features": ["stage2", "stage3", "stage4"]}
    width = options.get("d_model", 256)
    config = transformers.RTDetrV2Config(
        backbone_config=transformers.RTDetrResNetConfig(**network),
        encoder_in_channels=network["hidden_sizes"][1:],
        decoder_in_channels=[width] * 3,
        hidden_expansion=0.5,
        **options,
    )
    return transformers.RTDetrV2ForObjectDetection(config)


published: dict[str, Callable[[], Any]] = {
    "detr": lambda: detr(micro=False),
    "rt_detr_v2": lambda: rt_detr_v2(micro=False),
    "detr_micro": lambda: detr(micro=True),
    "rt_detr_v2_micro": lambda: rt_detr_v2(micro=True),
}


def compare_models(names: list[str], batches: list[int], size: int, seconds: float, device: str) -> None:
    """Whole detectors, from images to logits and boxes."""
    print(f"\ndetectors with the same weights, {size} x {size} pixels, from images to logits and boxes")
    print(f"{'model':<25}{'batch':>6}  {'step':<9}{'transformers ms':>17}{'ours ms':>10}{'ratio':>8}")
    for name in names:
        theirs, ours = twins(published[name])
        for count in batches:
            images = torch.randn(count, 3, size, size, device=device)
            functions: dict[str, Callable[[], Any]] = {}
            for who, module in (("transformers", theirs), ("ours", ours)):
                functions[who] = without_gradients(module.to(device), images)
            with torch.inference_mode():
                expected, output = (function() for function in functions.values())
                torch.testing.assert_close(output.logits, expected.logits, rtol=0, atol=1e-3)
                torch.testing.assert_close(output.boxes, expected.pred_boxes, rtol=0, atol=1e-3)
            print_row(f"{name:<25}{count:>6}  {'forward':<9}", time_alternatives(functions, seconds=seconds, warmup=1))


def without_gradients(model: Any, images: Tensor) -> Callable[[], Any]:
    def run() -> Any:
        with torch.inference_mode():
            return model(images)

    return run


def twins(build: Callable[[], Any]) -> tuple[Any, Any]:
    """transformers' detector with random weights, and ours with the same."""
    from transformers.utils import logging

    logging.disable_progress_bar()  # it would talk between the rows
    torch.manual_seed(0)
    theirs = build().eval()
    with TemporaryDirectory() as folder:
        theirs.save_pretrained(folder)
        ours = load_pretrained(folder)
    return theirs, ours
