"""Object detection: a backbone and any head, trained by the head's own loss and scored as COCO scores."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from visattn.backbones import Backbone
from visattn.checkpoints import load_pretrained, save_pretrained
from visattn.data.detection import DetectionData
from visattn.data.image_batch import ImageBatch, pad_images
from visattn.evaluation.detection import DetectionScores, KindScores, coco_results, evaluate_detections
from visattn.files import atomic_path
from visattn.heads import Detections, MaskRcnnHead, ObjectDetector
from visattn.interpret.detection_grid import detection_grid
from visattn.interpret.precision_recall import precision_recall_figure
from visattn.tasks.task import BackboneTask, classifier_backbone, gathered

Batch = tuple[ImageBatch, list[dict[str, Any]], Tensor]

_shown = 12  # images of the pictures that a run draws


class ObjectDetection(BackboneTask):
    """Trains and tests an `ObjectDetector`.

    Args:
        data: the data module; it gives the classes, the image size and the preprocessing that the model keeps.
        backbone: images (B, 3, H, W) -> Features. None takes it from `pretrained`.
        pretrained: a source of `visattn.load_pretrained` to start from: a detector, whose preprocessing the data then
            use, with all its weights but those that are about its classes if the data have others; or a classifier,
            whose backbone gets a new head.
        new_head: allow the latter, and other classes; without it, a detector that finds more classes than the data have
            is tested by those.
        head: makes a head for the channels and strides of the backbone's maps and a number of classes.
        optimizer: "adamw", or "muon" for the inner layers of the backbone.
        learning_rate: the peak of the schedule.
        backbone_learning_rate: that of the backbone; None is the one of the rest. 0 freezes it.
        frozen_layers: of the backbone, as its `layer_of` counts them from the image on, that keep their weights; the
            coarser layers alone learn in half the time.
        freeze_batch_norm: the backbone's batch norms keep the statistics of a pretrained network, which those of few
            images would disturb.
        weight_decay: of matrices and kernels; vectors and position tables are not decayed.
        layer_decay: factor on the learning rate from each layer of the backbone to the one below it.
        betas: of AdamW.
        warmup_epochs: length of the linear warm-up, may be a fraction.
        final_learning_rate: fraction of the peak at which the cosine ends.
        max_detections: of each image in validation and test; COCO counts 100.
        threshold: of the scores of objects that are drawn.
        scorer: "pycocotools", or "faster" with the extra `visattn[detection]`.
        monitor: the metric of validation that picks the best epoch.
        compile: run the backbone through torch.compile.
        channels_last: keep images and kernels in channels-last memory, which convolutions prefer.
        seed: of the random numbers in training (dropout, sampled boxes, noise).

    Raises:
        ValueError: not exactly one of `backbone` and `pretrained` is given, the pretrained model has no head for these
            classes and shall not get one, the head learns masks and the data have none, or `monitor` is no metric.

    The values of a run are in conf/task/detection.yaml, those of a head in conf/task/head.
    """

    model: ObjectDetector

    def __init__(
        self,
        data: DetectionData,
        backbone: Backbone | None = None,
        pretrained: str | None = None,
        *,
        new_head: bool,
        head: Callable[[Sequence[int], Sequence[int], int], nn.Module],
        optimizer: str,
        learning_rate: float,
        backbone_learning_rate: float | None,
        frozen_layers: int,
        freeze_batch_norm: bool,
        weight_decay: float,
        layer_decay: float,
        betas: Sequence[float],
        warmup_epochs: float,
        final_learning_rate: float,
        max_detections: int,
        threshold: float,
        scorer: str,
        monitor: str,
        compile: bool,
        channels_last: bool,
        seed: int,
    ) -> None:
        super().__init__(
            backbone,
            pretrained,
            learning_rate=learning_rate,
            backbone_learning_rate=backbone_learning_rate,
            weight_decay=weight_decay,
            layer_decay=layer_decay,
            betas=betas,
            warmup_epochs=warmup_epochs,
            final_learning_rate=final_learning_rate,
            channels_last=channels_last,
            seed=seed,
            optimizer=optimizer,
        )
        self.freeze_batch_norm = freeze_batch_norm
        self.max_detections, self.threshold, self.scorer = max_detections, threshold, scorer
        start = start_from(str(pretrained), data, new_head) if backbone is None else backbone
        self.model = new_detector(start, data, head) if isinstance(start, Backbone) else start
        if self.model.num_classes == data.num_classes:
            self.model.classes = self.model.classes or tuple(data.classes)
            self.model.category_ids = self.model.category_ids or tuple(data.category_ids)
        self.model.preprocess = data.preprocess
        self.data_labels = torch.tensor(labels_of_data(self.model, data))  # (classes of the model,)
        self.kinds = ("bbox", "segm") if isinstance(self.model.head, MaskRcnnHead) else ("bbox",)
        if "segm" in self.kinds and not data.has_masks:
            raise ValueError("the head learns masks and the data have none: choose another one, task/head=faster_rcnn")
        judged = [f"val/{name}" for kind in self.kinds for name in metric_names(kind)]
        if monitor not in judged:
            raise ValueError(f"monitor {monitor!r} is none of {', '.join(judged)}")
        # Of the split that is or was evaluated: COCO results by image id, and what is found and there in some images.
        self.results: dict[int, list[dict[str, Any]]] = {}
        self.examples: dict[int, tuple[Detections, dict[str, Tensor]]] = {}
        self.scores: DetectionScores | None = None
        self.truth: dict[str, Any] = {}
        self.prepare()
        for name, parameter in self.model.backbone.named_parameters():
            if self.model.backbone.layer_of(name) < frozen_layers:
                parameter.requires_grad_(False)
        if not self.is_frozen:
            freeze_unused(self.model)
        if compile:
            self.model.backbone.compile()
        self.train()

    def train(self, mode: bool = True) -> ObjectDetection:
        """As ever, but what is frozen stays as it is tested."""
        super().train(mode)
        for module in self.model.backbone.modules():
            is_trained = any(parameter.requires_grad for parameter in module.parameters())
            if isinstance(module, _BatchNorm) and (self.freeze_batch_norm or not is_trained):
                module.eval()
        return self

    @property
    def data(self) -> DetectionData:
        return self.trainer.datamodule  # type: ignore[attr-defined]

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        images, targets, index = batch
        real = index >= 0  # the others only fill up the batch
        if real.any() and not real.all():
            images = ImageBatch(*(part[real] for part in images))
            targets = [target for target, counts in zip(targets, real.tolist(), strict=True) if counts]
        parts = self.model.loss(images._replace(images=self.laid_out(images.images)), targets)
        loss = torch.stack(list(parts.values())).sum() * real.any()
        self.log("train/loss", loss, prog_bar=True, on_step=True, on_epoch=False, batch_size=len(index))
        for name, part in parts.items():
            self.log(f"train/{name.removeprefix('loss_')}", part, on_step=True, on_epoch=False, batch_size=len(index))
        return loss

    def on_validation_epoch_start(self) -> None:
        self.begin("validation")

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self.find_objects(batch)

    def on_validation_epoch_end(self) -> None:
        self.score("val")
        if self.trainer.is_global_zero and not self.trainer.sanity_checking:
            self.draw_examples(Path(self.trainer.default_root_dir), self.data, "validation")

    def on_test_epoch_start(self) -> None:
        self.begin("test")

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        self.find_objects(batch)

    def on_test_epoch_end(self) -> None:
        self.score("test")

    def begin(self, split: str) -> None:
        """Forgets what was found in another split, or before."""
        self.results, self.examples = {}, {}
        self.truth = self.data.ground_truth(split)

    def find_objects(self, batch: Batch) -> None:
        """Keeps what is found in each image, in pixels of its file."""
        images, targets, index = batch
        shown = example_index(len(self.truth["images"]))
        found = self.model.predict(images._replace(images=self.laid_out(images.images)), self.max_detections)
        for detections, size, target, place in zip(found, images.sizes.tolist(), targets, index.tolist(), strict=True):
            if place < 0:  # only fills up the batch
                continue
            in_file = self.as_of_data(detections).resized(size, target["orig_size"].tolist())
            image_id = int(target["image_id"])
            self.results[image_id] = coco_results(in_file, image_id, self.data.category_ids)
            if place in shown:
                self.examples[place] = (in_file.above(self.threshold), truth_in_file(target, size))

    def as_of_data(self, found: Detections) -> Detections:
        """Detections with the labels that the data have for their classes; those of other classes are left out."""
        labels = self.data_labels.to(found.labels.device)[found.labels]
        kept = labels >= 0
        if kept.all():
            return found._replace(labels=labels)
        masks = None if found.masks is None else found.masks[kept]
        return Detections(found.boxes[kept], found.scores[kept], labels[kept], masks)

    def score(self, prefix: str) -> None:
        """Gathers the results of all processes and logs what they are worth."""
        self.results = gathered(self.results)
        numbers: dict[str, float] = {}
        if self.trainer.is_global_zero:
            entries = [entry for image_id in sorted(self.results) for entry in self.results[image_id]]
            self.scores = evaluate_detections(
                self.truth, entries, self.kinds, self.scorer, image_ids=sorted(self.results)
            )
            for kind in self.kinds:
                numbers |= named_numbers(kind, getattr(self.scores, kind), every=prefix == "test")
        numbers = self.trainer.strategy.broadcast(numbers)
        for name, value in numbers.items():
            self.log(f"{prefix}/{name}", value, prog_bar=name.endswith(("AP", "AP50")), sync_dist=True)

    def save_results(self, folder: Path, data: DetectionData) -> None:
        """Writes `model/` (portable), `results.json` (COCO's format), `detections.png` and `precision_recall.png`."""
        save_pretrained(self.model, folder / "model")
        entries = [entry for image_id in sorted(self.results) for entry in self.results[image_id]]
        with atomic_path(folder / "results.json") as temporary:
            temporary.write_text(json.dumps(entries) + "\n", encoding="utf-8")
        self.draw_examples(folder, data, "test")
        assert self.scores is not None
        for kind, name in (("bbox", "precision_recall.png"), ("segm", "mask_precision_recall.png")):
            scores = getattr(self.scores, kind)
            if scores is not None:
                with atomic_path(folder / name) as temporary:
                    precision_recall_figure(scores, data.classes).save(temporary)

    def draw_examples(self, folder: Path, data: DetectionData, split: str) -> None:
        """Writes `detections.png`: images of the split that was evaluated last, what is found beside what is there."""
        places = sorted(self.examples)
        if not places:
            return
        found, truths = zip(*(self.examples[place] for place in places), strict=True)
        pictures = [data.open(split, place) for place in places]
        picture = detection_grid(pictures, found, truths, data.classes, self.threshold)
        with atomic_path(folder / "detections.png") as temporary:
            picture.save(temporary)


def new_detector(
    backbone: Backbone, data: DetectionData, head: Callable[[Sequence[int], Sequence[int], int], nn.Module]
) -> ObjectDetector:
    """A detector with a new head; the data take over the backbone's colours if it is trained."""
    data.preprocess = data.preprocess.with_colors_of(backbone.preprocess)
    return ObjectDetector(backbone, head(backbone.channels, backbone.strides, data.num_classes))


def start_from(source: str, data: DetectionData, new_head: bool) -> ObjectDetector | Backbone:
    """A pretrained detector for these data, which are prepared as it expects from here on; or a classifier's backbone.

    Raises:
        ValueError: the source is a classifier, or a detector of other classes, and shall not get a new head.
    """
    model = load_pretrained(source)
    if not isinstance(model, ObjectDetector):
        if not new_head:
            raise ValueError(f"{source}: is no detector but a {type(model).__name__}; there is nothing to test")
        return classifier_backbone(source, data.image_size)
    data.preprocess = model.preprocess or data.preprocess
    same_number = model.num_classes == data.num_classes
    if new_head:
        is_fit = same_number and model.classes in (None, tuple(data.classes))
        return model if is_fit else with_other_classes(model, data.num_classes)
    if same_number if model.classes is None else set(data.classes) <= set(model.classes):
        return model
    raise ValueError(
        f"{source}: finds {model.num_classes} classes, {str(model.classes or 'without names')[:80]}, and the data "
        f"have {data.num_classes}, {str(tuple(data.classes))[:80]}; there is nothing to test"
    )


def labels_of_data(model: ObjectDetector, data: DetectionData) -> list[int]:
    """What the data call each class of the model, by its name; -1 for those that they don't have."""
    assert model.classes is not None
    places = {name: label for label, name in enumerate(data.classes)}
    return [places.get(name, -1) for name in model.classes]


def with_other_classes(model: ObjectDetector, num_classes: int) -> ObjectDetector:
    """The detector with a head for so many classes, new where the number of classes decides about the weights."""
    head = type(model.head)(model.backbone.channels, model.backbone.strides, num_classes, **model.head.arguments)
    fresh = head.state_dict()
    kept = {
        name: tensor
        for name, tensor in model.head.state_dict().items()
        if name in fresh and fresh[name].shape == tensor.shape
    }
    head.load_state_dict(fresh | kept)
    return ObjectDetector(model.backbone, head)


def freeze_unused(model: ObjectDetector) -> None:
    """Freezes what of the backbone no map that the head reads rests on, such as layers before a classifier.

    Several processes would wait for its gradients.
    """
    twin = copy.deepcopy(model)
    twin.backbone.eval()
    height, width = twin.backbone.image_size
    image = torch.zeros(3, height, width)  # twice, since batch norm needs several places
    target = {
        "boxes": torch.tensor([[0.0, 0.0, width, height]]),
        "labels": torch.zeros(1, dtype=torch.long),
        "masks": torch.ones(1, height, width, dtype=torch.uint8),
        "area": torch.tensor([float(width * height)]),
        "iscrowd": torch.zeros(1, dtype=torch.long),
    }
    with torch.random.fork_rng(devices=[]):
        parts = twin.loss(pad_images([image, image], 1), [target, target])
    torch.stack(list(parts.values())).sum().backward()
    for parameter, ghost in zip(model.backbone.parameters(), twin.backbone.parameters(), strict=True):
        if ghost.grad is None:
            parameter.requires_grad_(False)


def example_index(count: int) -> list[int]:
    """The places of the images to draw, spread evenly over a split of so many."""
    return torch.linspace(0, count - 1, min(_shown, count)).long().tolist()


def truth_in_file(target: dict[str, Any], size: Sequence[int]) -> dict[str, Tensor]:
    """The objects of an image of this (height, width) in pixels of its file."""
    boxes, labels, masks = target["boxes"], target["labels"], target.get("masks")
    objects = Detections(boxes, torch.ones(len(boxes)), labels, masks).resized(size, target["orig_size"].tolist())
    truth = {"boxes": objects.boxes.cpu(), "labels": objects.labels.cpu()}
    return truth if objects.masks is None else truth | {"masks": objects.masks.cpu()}


def metric_names(kind: str) -> list[str]:
    """What is logged in validation."""
    return [f"{_prefixes[kind]}{name}" for name in ("AP", "AP50", "AP75")]


def named_numbers(kind: str, scores: KindScores, every: bool) -> dict[str, float]:
    """Scores by the names under which they are logged: three of them, or all twelve and those of each class."""
    prefix = _prefixes[kind]
    if not every:
        return {name: scores.numbers[name.removeprefix(prefix)] for name in metric_names(kind)}
    numbers = {f"{prefix}{name}": value for name, value in scores.numbers.items()}
    for one in scores.per_class:
        numbers |= {f"{prefix}AP/{one.name}": one.AP, f"{prefix}AP50/{one.name}": one.AP50}
    return numbers


_prefixes = {"bbox": "", "segm": "mask_"}
