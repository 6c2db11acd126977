"""Image classification: a backbone, a linear head, cross-entropy, and what a finished run leaves to look at."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import lightning
import torch
from torch import Tensor, nn
from torch.nn import functional
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassConfusionMatrix

from visattn.checkpoints import load_pretrained, model_config, save_pretrained
from visattn.files import atomic_path
from visattn.heads import ImageClassifier
from visattn.interpret import attention_heatmap, prediction_grid
from visattn.tasks.optimization import parameter_groups, warmup_cosine


class ImageClassification(lightning.LightningModule):
    """Trains and tests an `ImageClassifier`.

    Args:
        data: the data module; it gives the classes, the image size and the preprocessing that the model keeps.
        backbone: images (B, 3, H, W) -> Features. None takes backbone and head from `pretrained`.
        pretrained: a source of `visattn.load_pretrained` to start from. Its head is kept if it has as many classes as
            the data, and otherwise replaced by a new one for training.
        learning_rate: the peak of the schedule.
        weight_decay: of matrices and kernels; vectors and position tables are not decayed.
        layer_decay: factor on the learning rate from each layer to the one below it; 1 for training from scratch.
        betas: of AdamW (Loshchilov & Hutter 2019, https://arxiv.org/abs/1711.05101).
        warmup_epochs: length of the linear warm-up, may be a fraction.
        final_learning_rate: fraction of the peak at which the cosine ends.
        label_smoothing: as in Szegedy et al. 2016 (https://arxiv.org/abs/1512.00567), section 7.
        dropout: before the linear head.
        compile: run the network through torch.compile.
        channels_last: keep images and kernels in channels-last memory, which convolutions prefer.
        seed: of the random numbers in the network (dropout, drop path).

    Raises:
        ValueError: not exactly one of `backbone` and `pretrained` is given.
    """

    def __init__(
        self,
        data: lightning.LightningDataModule,
        backbone: nn.Module | None = None,
        pretrained: str | None = None,
        *,
        learning_rate: float = 1e-3,
        weight_decay: float = 0.05,
        layer_decay: float = 1.0,
        betas: Sequence[float] = (0.9, 0.999),
        warmup_epochs: float = 1.0,
        final_learning_rate: float = 0.01,
        label_smoothing: float = 0.1,
        dropout: float = 0.0,
        compile: bool = False,
        channels_last: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if (backbone is None) == (pretrained is None):
            raise ValueError("give one of backbone (a new model) and pretrained (the source of a whole one)")
        if backbone is not None:
            self.model = ImageClassifier(backbone, data.num_classes, dropout=dropout)
        else:
            self.model = load_pretrained(pretrained, num_classes=data.num_classes, image_size=data.image_size)
            self.model.train()
        self.model.classes = tuple(data.classes)
        self.model.preprocess = data.preprocess
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.layer_decay = layer_decay
        self.betas = (float(betas[0]), float(betas[1]))
        self.warmup_epochs = warmup_epochs
        self.final_learning_rate = final_learning_rate
        self.label_smoothing = label_smoothing
        self.channels_last = channels_last
        self.seed = seed
        if channels_last:
            self.model.to(memory_format=torch.channels_last)
        if compile:
            self.model.compile()

        metrics = MetricCollection({"accuracy": MulticlassAccuracy(data.num_classes, average="micro")})
        if data.num_classes > 5:
            metrics["accuracy_top5"] = MulticlassAccuracy(data.num_classes, top_k=5, average="micro")
        self.validation_metrics = metrics.clone(prefix="val/")
        self.test_metrics = metrics.clone(prefix="test/")
        self.test_confusion = MulticlassConfusionMatrix(data.num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W), preprocessed, to logits (B, classes)."""
        if self.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        return self.model(images)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        images, labels = batch  # labels: (B,) or, mixed, (B, classes)
        loss = functional.cross_entropy(self(images), labels, label_smoothing=self.label_smoothing)
        self.log("train/loss", loss, prog_bar=True, on_step=True, on_epoch=False)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        images, labels = batch
        logits = self(images)
        self.validation_metrics(logits, labels)
        self.log("val/loss", functional.cross_entropy(logits, labels), sync_dist=True, batch_size=len(images))
        self.log_dict(self.validation_metrics, prog_bar=True)

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        images, labels = batch
        logits = self(images)
        self.test_metrics(logits, labels)
        self.test_confusion.update(logits, labels)
        self.log("test/loss", functional.cross_entropy(logits, labels), sync_dist=True, batch_size=len(images))
        self.log_dict(self.test_metrics)

    def configure_optimizers(self) -> dict:
        groups = parameter_groups(
            self.model, self.model.backbone, self.learning_rate, self.weight_decay, self.layer_decay
        )
        optimizer = torch.optim.AdamW(groups, betas=self.betas, fused=True)
        total_steps = int(self.trainer.estimated_stepping_batches)
        steps_per_epoch = total_steps / max(self.trainer.max_epochs or 1, 1)
        factor = warmup_cosine(round(self.warmup_epochs * steps_per_epoch), total_steps, self.final_learning_rate)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint: dict) -> None:
        # With this, visattn.load_pretrained reads a run's checkpoint like any published model.
        checkpoint["visattn_model"] = model_config(self.model)

    @torch.no_grad()
    def save_results(self, folder: Path, data: lightning.LightningDataModule) -> None:
        """Writes `model/` (portable), `predictions.png` and `confusion.png` into the run's folder."""
        save_pretrained(self.model, folder / "model")

        self.model.eval()
        images, labels = next(iter(data.test_dataloader()))
        images, labels = images[:24].to(self.device), labels[:24].tolist()
        probabilities = self(images).float().softmax(dim=-1)  # (24, classes)
        attention = attention_heatmap(self.model, images)  # (24, H, W)
        picture = prediction_grid(
            data.preprocess.invert(images).cpu(), attention.cpu(), probabilities.cpu(), labels, self.model.classes
        )
        with atomic_path(folder / "predictions.png") as temporary:
            picture.save(temporary)

        figure, _ = self.test_confusion.plot(labels=list(self.model.classes), add_text=data.num_classes <= 20)
        with atomic_path(folder / "confusion.png") as temporary:
            figure.savefig(temporary, dpi=120, bbox_inches="tight")
