"""Image classification: a backbone, a linear head, cross-entropy, and what a finished run leaves to look at."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassConfusionMatrix

from visattn.backbones import Backbone
from visattn.checkpoints import load_pretrained, save_pretrained
from visattn.data import ImageClassificationData
from visattn.files import atomic_path
from visattn.heads import ImageClassifier
from visattn.interpret import attention_heatmap, prediction_grid
from visattn.tasks.task import BackboneTask


class ImageClassification(BackboneTask):
    """Trains and tests an `ImageClassifier`.

    Args:
        data: the data module; it gives the classes, the image size and the preprocessing that the model keeps.
        backbone: images (B, 3, H, W) -> Features. None takes backbone and head from `pretrained`.
        pretrained: a source of `visattn.load_pretrained` to start from. Its head is kept if it has as many classes as
            the data.
        replace_head: give a pretrained model of other classes a new head, to be trained, rather than refuse it.
        optimizer: "adamw", or "muon", which learns in fewer epochs at about three times the learning rate.
        learning_rate: the peak of the schedule.
        weight_decay: of matrices and kernels; vectors and position tables are not decayed.
        layer_decay: factor on the learning rate from each layer to the one below it; 1 for training from scratch.
        betas: of AdamW, and the first of Muon (Loshchilov & Hutter 2019, https://arxiv.org/abs/1711.05101).
        warmup_epochs: length of the linear warm-up, may be a fraction.
        final_learning_rate: fraction of the peak at which the cosine ends.
        label_smoothing: as in Szegedy et al. 2016 (https://arxiv.org/abs/1512.00567), section 7.
        dropout: before the linear head.
        monitor: the metric of validation that picks the best epoch.
        test_views: of each test image, whose mean logits also count, as `test/accuracy_views`: 1 leaves that out, 2
            adds the mirrored image, 6 also both shifted by a pixel.
        compile: run the network through torch.compile.
        channels_last: keep images and kernels in channels-last memory, which convolutions prefer.
        seed: of the random numbers in the network (dropout, drop path).

    Raises:
        ValueError: not exactly one of `backbone` and `pretrained` is given, the pretrained model's classes are not
            those of the data and its head shall stay, `monitor` is no metric of validation, or `test_views` is no
            number of views.

    The values of a run are in conf/task/classification.yaml.
    """

    model: ImageClassifier

    def __init__(
        self,
        data: ImageClassificationData,
        backbone: Backbone | None = None,
        pretrained: str | None = None,
        *,
        replace_head: bool,
        optimizer: str,
        learning_rate: float,
        weight_decay: float,
        layer_decay: float,
        betas: Sequence[float],
        warmup_epochs: float,
        final_learning_rate: float,
        label_smoothing: float,
        dropout: float,
        monitor: str,
        test_views: int,
        compile: bool,
        channels_last: bool,
        seed: int,
    ) -> None:
        super().__init__(
            backbone,
            pretrained,
            learning_rate=learning_rate,
            weight_decay=weight_decay,
            layer_decay=layer_decay,
            betas=betas,
            warmup_epochs=warmup_epochs,
            final_learning_rate=final_learning_rate,
            channels_last=channels_last,
            seed=seed,
            optimizer=optimizer,
        )
        if backbone is not None:
            self.model = ImageClassifier(backbone, data.num_classes, dropout=dropout)
            data.preprocess = data.preprocess.with_colors_of(backbone.preprocess)  # if its weights are trained ones
            if backbone.adaptation_images and backbone.preprocess is None:
                backbone.adapt(data.examples(backbone.adaptation_images, "train")[0])
        else:
            self.model = start_from(str(pretrained), data, replace_head).train()
        self.model.classes = tuple(data.classes)
        self.model.preprocess = data.preprocess
        self.label_smoothing = label_smoothing
        self.prepare()
        if compile:
            self.model.compile()

        metrics = MetricCollection({"accuracy": MulticlassAccuracy(data.num_classes, average="micro", ignore_index=-1)})
        if data.num_classes > 5:
            metrics["accuracy_top5"] = MulticlassAccuracy(data.num_classes, top_k=5, average="micro", ignore_index=-1)
        self.validation_metrics = metrics.clone(prefix="val/")
        self.test_metrics = metrics.clone(prefix="test/")
        judged = [f"val/{name}" for name in metrics.keys()]  # noqa: SIM118 (its iterator tells mypy no names)
        if monitor not in judged:
            raise ValueError(f"monitor {monitor!r} is none of {', '.join(judged)}")
        if test_views not in (1, 2, 6):
            raise ValueError(f"test_views {test_views} must be 1, 2 (mirrored) or 6 (mirrored and shifted)")
        self.test_views = test_views
        self.views_accuracy = MulticlassAccuracy(data.num_classes, average="micro", ignore_index=-1)
        self.test_confusion = MulticlassConfusionMatrix(data.num_classes, ignore_index=-1)

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W), preprocessed, to logits (B, classes)."""
        return self.model(self.laid_out(images))

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        images, labels = batch  # labels: (B,) or, mixed, (B, classes)
        # Labels of -1 fill up the last batch.
        loss = functional.cross_entropy(self(images), labels, ignore_index=-1, label_smoothing=self.label_smoothing)
        self.log("train/loss", loss, prog_bar=True, on_step=True, on_epoch=False)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        images, labels = batch
        logits = self(images)
        self.validation_metrics(logits, labels)
        self.log_loss("val/loss", logits, labels)
        self.log_dict(self.validation_metrics, prog_bar=True)

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        images, labels = batch
        logits = self(images)
        self.test_metrics(logits, labels)
        self.test_confusion.update(logits, labels)
        self.log_loss("test/loss", logits, labels)
        self.log_dict(self.test_metrics)
        if self.test_views > 1:
            self.views_accuracy(logits_of_views(self, images, self.test_views), labels)
            self.log("test/accuracy_views", self.views_accuracy)

    def on_test_epoch_end(self) -> None:
        counts = self.test_confusion.compute()  # here, where all processes take part
        split = self.trainer.distributed_sampler_kwargs
        # Processes that share the tokens of the same images all count them.
        self.confusion = counts // (self.trainer.world_size // split["num_replicas"]) if split else counts

    def log_loss(self, name: str, logits: Tensor, labels: Tensor) -> None:
        """The mean over all images but those of label -1, which only fill up the batches of several processes."""
        real = int((labels >= 0).sum())
        loss = functional.cross_entropy(logits, labels, ignore_index=-1, reduction="sum") / max(real, 1)
        self.log(name, loss, sync_dist=True, batch_size=max(real, 1))

    @torch.no_grad()
    def save_results(self, folder: Path, data: ImageClassificationData) -> None:
        """Writes `model/` (portable), `predictions.png` and `confusion.png` into the run's folder."""
        save_pretrained(self.model, folder / "model")

        self.model.eval()
        images, targets = data.examples(24)
        images, labels = images.to(self.device), targets.tolist()
        probabilities = self(images).float().softmax(dim=-1)  # (24, classes)
        attention = attention_heatmap(self.model, images)  # (24, H, W)
        picture = prediction_grid(
            data.preprocess.invert(images).cpu(), attention.cpu(), probabilities.cpu(), labels, self.model.classes
        )
        with atomic_path(folder / "predictions.png") as temporary:
            picture.save(temporary)

        figure, _ = self.test_confusion.plot(
            self.confusion.cpu(), labels=list(data.classes), add_text=data.num_classes <= 20
        )
        with atomic_path(folder / "confusion.png") as temporary:
            figure.savefig(temporary, dpi=120, bbox_inches="tight")


def logits_of_views(model: nn.Module, images: Tensor, count: int) -> Tensor:
    """Mean logits (B, classes) of images (B, 3, H, W) and their mirror images, and with 6 views of both shifted.

    Shifted by a pixel up and to the left, and down and to the right; these four weigh as much as the first two.

    Source: Jordan 2024 (https://arxiv.org/abs/2404.00498), section 3.5.
    """
    views = [images]
    if count == 6:
        padded = functional.pad(images, (1, 1, 1, 1), mode="reflect")
        views += [padded[..., 2:, 2:], padded[..., :-2, :-2]]
    logits = torch.stack([(model(view) + model(view.flip(-1))) / 2 for view in views])  # (1 or 3, B, classes)
    return logits[0] if count == 2 else (logits[0] + logits[1:].mean(dim=0)) / 2


def start_from(source: str, data: ImageClassificationData, replace_head: bool) -> ImageClassifier:
    """A pretrained model for these data, which are normalised as it expects from here on."""
    model = load_pretrained(source, num_classes=data.num_classes if replace_head else None, image_size=data.image_size)
    if model.num_classes != data.num_classes:
        raise ValueError(f"{source}: has {model.num_classes} classes and the data {data.num_classes}; nothing to test")
    if not replace_head and model.classes is not None and model.classes != tuple(data.classes):
        raise ValueError(
            f"{source}: its classes {model.classes[:5]}... are not those of the data {data.classes[:5]}..."
        )
    data.preprocess = data.preprocess.with_colors_of(model.preprocess)
    return model
