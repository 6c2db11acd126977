"""Image captioning: an encoder and a decoder, cross-entropy and then self-critical training, scored as captions are."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from visattn.backbones import Backbone
from visattn.checkpoints import load_pretrained, save_pretrained
from visattn.data.captions import CaptionData
from visattn.evaluation.captions import METRICS, Meteor, evaluate
from visattn.files import atomic_path
from visattn.heads import CaptionDecoder, ImageCaptioner
from visattn.interpret.caption_grid import caption_grid
from visattn.tasks.caption_features import cached_features
from visattn.tasks.self_critical import CaptionReward, pad_samples, policy_gradient_loss, sequence_log_probabilities
from visattn.tasks.task import BackboneTask, classifier_backbone, gathered, refuse_other_backbone


class ImageCaptioning(BackboneTask):
    """Trains and tests an `ImageCaptioner`.

    Args:
        data: the data module; it gives the tokenizer, the image size and the preprocessing that the model keeps.
        backbone: images (B, 3, H, W) -> Features. None takes it from `pretrained`.
        pretrained: a source of `visattn.load_pretrained` to start from: a captioner, whose tokenizer and preprocessing
            the data then use; or a classifier, whose backbone becomes the encoder of a new captioner.
        new_decoder: allow the latter.
        decoder: keywords of `visattn.heads.CaptionDecoder` for a new captioner.
        encoder_depth, encoder_heads: see `visattn.heads.ImageCaptioner`.
        objective: "cross_entropy", or "scst" for self-critical sequence training: no dropout, and the reward of
            sampled captions rises.
        learning_rate: the peak of the schedule with cross-entropy.
        scst_learning_rate: that with self-critical training.
        backbone_learning_rate: that of the backbone; None is the one of the rest. 0 freezes it: no gradients, no
            dropout, and batch norm keeps its statistics.
        weight_decay: of matrices and kernels; vectors and position tables are not decayed.
        layer_decay: factor on the learning rate from each layer of the backbone to the one below it.
        betas: of AdamW.
        warmup_epochs: length of the linear warm-up, may be a fraction.
        final_learning_rate: fraction of the peak at which the cosine ends.
        label_smoothing: as in Szegedy et al. 2016 (https://arxiv.org/abs/1512.00567), section 7.
        scheduled_sampling: probability, in the last epoch, that a word which the decoder reads in training is one that
            it predicts itself; it rises from 0 linearly over the epochs.
        num_samples: captions that are sampled for each image in self-critical training.
        bleu_weight: of BLEU-4 in their reward, beside CIDEr-D.
        cache_features: compute what a frozen backbone sees in the images of training and validation once, and keep it
            on disk.
        feature_views: how many features of each training image: of itself, its mirror image, and then as augmented.
        cache_folder: where features are kept; None is a folder in the user's cache.
        validation_beams, test_beams: captions that the beam search follows at a time; 1 is greedy.
        max_new_tokens: words of a caption at most, its end among them.
        decoding: further options of `visattn.text.decoding.generate` for validation and test.
        monitor: the metric of validation that picks the best epoch.
        compile: run the network of training through torch.compile.
        channels_last: keep images and kernels in channels-last memory, which convolutions prefer.
        seed: of the random numbers in training (dropout, drop path, samples).

    Raises:
        ValueError: not exactly one of `backbone` and `pretrained` is given, the pretrained model is no captioner and
            shall not get a decoder, an option is unknown, or features of a backbone that is trained shall be kept.

    The values of a run are in conf/task/captioning.yaml.

    Source: scheduled sampling of Bengio et al. 2015 (https://arxiv.org/abs/1506.03099), in two passes as Mihaylova &
        Martins 2019 (https://arxiv.org/abs/1906.07651) do for transformers; self-critical training of Rennie et al.
        2017 (https://arxiv.org/abs/1612.00563) with the baseline of Luo 2020 (https://arxiv.org/abs/2003.09971).
    """

    model: ImageCaptioner

    def __init__(
        self,
        data: CaptionData,
        backbone: Backbone | None = None,
        pretrained: str | None = None,
        *,
        new_decoder: bool,
        decoder: Mapping[str, Any],
        encoder_depth: int | None,
        encoder_heads: int,
        objective: str,
        learning_rate: float,
        scst_learning_rate: float,
        backbone_learning_rate: float | None,
        weight_decay: float,
        layer_decay: float,
        betas: Sequence[float],
        warmup_epochs: float,
        final_learning_rate: float,
        label_smoothing: float,
        scheduled_sampling: float,
        num_samples: int,
        bleu_weight: float,
        cache_features: bool,
        feature_views: int,
        cache_folder: str | None,
        validation_beams: int,
        test_beams: int,
        max_new_tokens: int,
        decoding: Mapping[str, Any],
        monitor: str,
        compile: bool,
        channels_last: bool,
        seed: int,
    ) -> None:
        super().__init__(
            backbone,
            pretrained,
            learning_rate=scst_learning_rate if objective == "scst" else learning_rate,
            backbone_learning_rate=backbone_learning_rate,
            weight_decay=weight_decay,
            layer_decay=layer_decay,
            betas=betas,
            warmup_epochs=warmup_epochs,
            final_learning_rate=final_learning_rate,
            channels_last=channels_last,
            seed=seed,
        )
        if objective not in ("cross_entropy", "scst"):
            raise ValueError(f"objective {objective!r} is unknown; choose cross_entropy or scst")
        if monitor not in [f"val/{name}" for name in metrics()]:
            raise ValueError(f"monitor {monitor!r} is none of {', '.join(f'val/{name}' for name in metrics())}")
        if cache_features and not self.is_frozen:
            raise ValueError(
                "cache_features keeps what a frozen backbone sees: set task.backbone_learning_rate=0, or leave it out"
            )
        start = start_from(str(pretrained), data, new_decoder) if backbone is None else backbone
        if isinstance(start, Backbone):
            start = new_captioner(start, data, decoder, encoder_depth, encoder_heads)
        self.model = start
        self.model.preprocess = data.preprocess
        if objective == "scst":
            data.pairs, data.captions_per_image = "images", 1  # captions are read as references only
        self.objective = objective
        self.label_smoothing, self.scheduled_sampling = label_smoothing, scheduled_sampling
        self.num_samples, self.bleu_weight = num_samples, bleu_weight
        self.cache_features, self.feature_views, self.cache_folder = cache_features, feature_views, cache_folder
        self.validation_beams, self.test_beams = validation_beams, test_beams
        self.max_new_tokens, self.decoding = max_new_tokens, dict(decoding)
        self.captions: dict[int, str] = {}  # of the split that is or was evaluated: index of an image to its caption
        self.prepare()
        if compile:
            for part in (self.model.backbone, self.model.encoder, self.model.decoder):
                if part is not None:
                    part.compile()
        self.train()

    def train(self, mode: bool = True) -> ImageCaptioning:
        """As ever, but a frozen backbone, and in self-critical training the whole model, stay as they are tested."""
        super().train(mode)
        if self.objective == "scst":
            self.model.eval()
        return self

    @property
    def data(self) -> CaptionData:
        return self.trainer.datamodule  # type: ignore[attr-defined]

    def setup(self, stage: str) -> None:
        """Before training: the features of a frozen backbone, and what rewards are computed from."""
        if stage != "fit":
            return
        data = self.data
        if self.cache_features:
            views = {"train": self.feature_views, "validation": 1}
            data.use_features({split: self.features_of(data, split, number) for split, number in views.items()})
        if self.objective == "scst":
            self.reward = CaptionReward(list(data.references("train").values()), self.bleu_weight)

    def features_of(self, data: CaptionData, split: str, views: int) -> NDArray[np.float16]:
        """What the backbone sees in a split, computed by one process of each machine."""

        def features() -> NDArray[np.float16]:
            with self.trainer.precision_plugin.forward_context():
                return cached_features(
                    self.model.backbone.eval(),
                    data.stored_images(split),
                    views,
                    self.cache_folder,
                    device=self.device,
                    num_workers=data.num_workers,
                    title=f"features of {split}",
                )

        first = features() if self.trainer.local_rank == 0 else None
        self.trainer.strategy.barrier()
        return features() if first is None else first

    def memory(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W), or what the backbone saw in them (B, N, C), to what the decoder reads (B, M, dim)."""
        if images.ndim == 3:
            return self.model.memory(features=images)
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.is_frozen):
            features = self.model.features(self.laid_out(images))
        return self.model.memory(features=features)

    def training_step(self, batch: tuple[Tensor, Tensor, Tensor], batch_idx: int) -> Tensor:
        images, token_ids, index = batch  # (B, 3, H, W) or (B, N, C), (B * n, T), (B * n,)
        memory = self.memory(images)
        if self.objective == "scst":
            loss = self.self_critical_loss(memory, index)
        else:
            loss = self.word_loss(memory, token_ids, index)
        self.log("train/loss", loss, prog_bar=True, on_step=True, on_epoch=False)
        return loss

    def word_loss(self, memory: Tensor, token_ids: Tensor, index: Tensor) -> Tensor:
        """Cross-entropy, the mean over the words and ends of all processes' captions (B * n, T).

        Those of index -1 only fill up the batch.
        """
        targets = self.model.tokenizer.targets(token_ids)  # (B * n, T - 1), -100 where there is nothing to say
        targets = targets.masked_fill(index[:, None] < 0, -100)
        logits = self.model.decoder(memory, self.words_to_read(memory, token_ids)[:, :-1])  # (B * n, T - 1, V)
        counted = targets != -100
        total = functional.cross_entropy(
            logits[counted], targets[counted], reduction="sum", label_smoothing=self.label_smoothing
        )
        words = self.trainer.strategy.reduce(counted.sum().to(total.dtype), reduce_op="mean")
        return total / words.clamp(min=1)

    @torch.no_grad()
    def words_to_read(self, memory: Tensor, token_ids: Tensor) -> Tensor:
        """Captions (B * n, T) in which some words are replaced by what the decoder would have said in their place."""
        epochs = max((self.trainer.max_epochs or 1) - 1, 1)
        probability = self.scheduled_sampling * self.trainer.current_epoch / epochs
        if not probability:
            return token_ids
        logits = self.model.decoder(memory, token_ids[:, :-1])  # (B * n, T - 1, V)
        torch.clear_autocast_cache()  # which holds weights without gradients now
        said = logits.float().softmax(dim=-1).flatten(0, 1).multinomial(1).view_as(token_ids[:, 1:])
        replaced = torch.rand(said.shape, device=said.device) < probability
        return torch.cat([token_ids[:, :1], torch.where(replaced, said, token_ids[:, 1:])], dim=1)

    def self_critical_loss(self, memory: Tensor, index: Tensor) -> Tensor:
        """What lets the expected reward of captions rise, from samples for B images; index is (B * n,)."""
        tokenizer, limit, count = self.model.tokenizer, self.max_new_tokens, self.num_samples
        index = index.view(len(memory), -1)[:, 0]  # (B,), the n captions of each stand behind each other
        real = index >= 0
        memory, index = memory[real], index[real]  # the others only fill up the batch
        groups = self.model.write(memory.detach(), 1, limit, num_return=count, sample=True)
        captions = [caption for group in groups for caption in group]  # B * count
        token_ids, ended = pad_samples([caption.token_ids for caption in captions], tokenizer, limit)
        images = index.repeat_interleave(count).tolist()
        scores = self.reward([caption.text for caption in captions], ended, images)
        rewards = torch.tensor(scores, dtype=torch.float32, device=self.device).view(-1, count)

        token_ids = token_ids.to(self.device)  # (B * count, T)
        lengths = torch.tensor([len(caption.token_ids) for caption in captions]) + torch.tensor(ended)
        logits = self.model.decoder(memory, token_ids[:, :-1])  # (B * count, T - 1, V)
        log_probabilities = sequence_log_probabilities(logits, token_ids, lengths.to(self.device))
        self.log("train/reward", rewards.mean(), prog_bar=True, on_step=True, on_epoch=False)
        self.log("train/words", lengths.float().mean(), on_step=True, on_epoch=False)
        return policy_gradient_loss(log_probabilities.view_as(rewards), rewards)

    def on_validation_epoch_start(self) -> None:
        self.captions = {}

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self.write_captions(*batch, self.validation_beams)

    def on_validation_epoch_end(self) -> None:
        self.score("validation", "val")
        if self.trainer.is_global_zero and not self.trainer.sanity_checking:
            self.draw_captions(Path(self.trainer.default_root_dir), self.data, "validation")

    def on_test_epoch_start(self) -> None:
        self.captions = {}

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self.write_captions(*batch, self.test_beams)

    def on_test_epoch_end(self) -> None:
        self.score("test", "test")

    def write_captions(self, images: Tensor, index: Tensor, num_beams: int) -> None:
        """Keeps the best caption of each image; index is (B,), -1 for images that only fill up the batch."""
        captions = self.model.write(self.memory(images), num_beams, self.max_new_tokens, **self.decoding)
        for image, (best, *_) in zip(index.tolist(), captions, strict=True):
            if image >= 0:
                self.captions[image] = " ".join(best.text.split())  # on one line, as caption files have them

    def score(self, split: str, prefix: str) -> None:
        """Gathers the captions of all processes and logs what they are worth."""
        self.captions = gathered(self.captions)
        scores: dict[str, float] = {}
        if self.trainer.is_global_zero:
            references = list(self.data.references(split).values())
            judged = {image: references[image] for image in self.captions if references[image]}
            candidates = {image: self.captions[image] for image in judged}
            scores = evaluate(judged, candidates, metrics()).corpus
        scores = self.trainer.strategy.broadcast(scores)
        for name, value in scores.items():
            self.log(f"{prefix}/{name}", value, prog_bar=name == "CIDEr", sync_dist=True)

    def on_load_checkpoint(self, checkpoint: dict) -> None:
        super().on_load_checkpoint(checkpoint)
        if self.is_frozen:
            refuse_other_backbone(checkpoint["state_dict"], self.model.backbone)

    def save_results(self, folder: Path, data: CaptionData) -> None:
        """Writes `model/` (portable), `results.json` (COCO's format) and `captions.png` of the test."""
        save_pretrained(self.model, folder / "model")
        ids = list(data.references("test"))
        results = [{"image_id": ids[image], "caption": text} for image, text in sorted(self.captions.items())]
        with atomic_path(folder / "results.json") as temporary:
            temporary.write_text(json.dumps(results, ensure_ascii=False) + "\n", encoding="utf-8")
        self.draw_captions(folder, data, "test")

    def draw_captions(self, folder: Path, data: CaptionData, split: str) -> None:
        """Writes `captions.png`: images of the split that was evaluated last, with captions and references."""
        images, index = data.examples(24, split)
        shown = [row for row, image in enumerate(index.tolist()) if image in self.captions]
        if not shown:
            return
        chosen, references = index[shown].tolist(), list(data.references(split).values())
        picture = caption_grid(
            data.preprocess.invert(images[shown]),
            [self.captions[image] for image in chosen],
            [references[image] for image in chosen],
        )
        with atomic_path(folder / "captions.png") as temporary:
            picture.save(temporary)


@cache
def metrics() -> tuple[str, ...]:
    """The metrics that can be computed here: METEOR needs an extra."""
    try:
        Meteor()
    except ModuleNotFoundError as error:
        warnings.warn(f"captions are scored without METEOR: {error}", stacklevel=2)
        return tuple(name for name in METRICS if name != "METEOR")
    return METRICS


def new_captioner(
    backbone: Backbone,
    data: CaptionData,
    decoder: Mapping[str, Any],
    encoder_depth: int | None,
    encoder_heads: int,
) -> ImageCaptioner:
    """A captioner with new weights but for the backbone's, whose colours the data take over if it is trained."""
    data.preprocess = data.preprocess.with_colors_of(backbone.preprocess)
    options = {str(name): value for name, value in decoder.items()}
    width = backbone.channels[-1] if encoder_depth is None else options["dim"]
    return ImageCaptioner(
        backbone,
        CaptionDecoder(data.tokenizer.vocabulary_size, width, **options),
        data.tokenizer,
        encoder_depth=encoder_depth,
        encoder_heads=encoder_heads,
        dropout=options["dropout"],
    )


def start_from(source: str, data: CaptionData, new_decoder: bool) -> ImageCaptioner | Backbone:
    """A pretrained captioner, whose tokenizer and preprocessing the data take over; or a classifier's backbone.

    Raises:
        ValueError: the source is a classifier and shall not get a decoder.
    """
    model = load_pretrained(source)
    if isinstance(model, ImageCaptioner):
        data.tokenizer = model.tokenizer
        data.preprocess = model.preprocess or data.preprocess
        return model
    if not new_decoder:
        raise ValueError(f"{source}: is no captioner but a {type(model).__name__}; there is nothing to test")
    return classifier_backbone(source, data.image_size)
