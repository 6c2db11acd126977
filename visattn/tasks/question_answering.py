"""Visual question answering: a backbone, a question encoder, targets from ten people's answers, official accuracy."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from visattn.backbones import Backbone
from visattn.checkpoints import load_pretrained, save_pretrained
from visattn.data import QuestionData
from visattn.data.questions import Question, QuestionBatch, people
from visattn.evaluation.vqa import AnswerScores, leave_one_out_accuracies, score_answers
from visattn.files import atomic_path
from visattn.heads import QuestionEncoder, VisualQuestionAnswerer
from visattn.interpret.answer_grid import answer_grid
from visattn.interpret.questions import explain_answer
from visattn.tasks.task import BackboneTask, classifier_backbone, gathered
from visattn.text.answers import normalize_answer


class QuestionAnswering(BackboneTask):
    """Trains and tests a `VisualQuestionAnswerer`.

    Each answer of the vocabulary is judged by itself, and is to be as probable as its official accuracy says: an answer
    that two of ten people gave is worth 0.6.

    Args:
        data: the data module; it gives words and answers, the image size and the preprocessing that the model keeps.
        backbone: images (B, 3, H, W) -> Features. None takes it from `pretrained`.
        pretrained: a source of `visattn.load_pretrained` to start from: a model that answers questions, whose words,
            answers and preprocessing the data then use; or a classifier, whose backbone gets a new question encoder.
        new_questions: allow the latter.
        questions: keywords of `visattn.heads.QuestionEncoder` for a new model.
        encoder_depth, encoder_heads, dropout: see `visattn.heads.VisualQuestionAnswerer`.
        learning_rate: the peak of the schedule.
        backbone_learning_rate: that of the backbone; None is the one of the rest. 0 freezes it: no gradients, no
            dropout, and batch norm keeps its statistics.
        weight_decay: of matrices and kernels; vectors and position tables are not decayed.
        layer_decay: factor on the learning rate from each layer of the backbone to the one below it.
        betas: of AdamW.
        warmup_epochs: length of the linear warm-up, may be a fraction.
        final_learning_rate: fraction of the peak at which the cosine ends.
        monitor: the metric of validation that picks the best epoch.
        compile: run the network through torch.compile.
        channels_last: keep images and kernels in channels-last memory, which convolutions prefer.
        seed: of the random numbers in the network (dropout, drop path).

    Raises:
        ValueError: not exactly one of `backbone` and `pretrained` is given, the pretrained model answers no questions
            and shall not learn it, or `monitor` is no metric of validation.

    The values of a run are in conf/task/vqa.yaml.

    Source: Teney et al. 2017, https://arxiv.org/abs/1708.02711, for answers as classes with soft targets.
    """

    model: VisualQuestionAnswerer

    def __init__(
        self,
        data: QuestionData,
        backbone: Backbone | None = None,
        pretrained: str | None = None,
        *,
        new_questions: bool,
        questions: Mapping[str, Any],
        encoder_depth: int,
        encoder_heads: int,
        dropout: float,
        learning_rate: float,
        backbone_learning_rate: float | None,
        weight_decay: float,
        layer_decay: float,
        betas: Sequence[float],
        warmup_epochs: float,
        final_learning_rate: float,
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
        )
        if monitor != "val/accuracy":
            raise ValueError(f"monitor {monitor!r} is not val/accuracy")
        start = start_from(str(pretrained), data, new_questions) if backbone is None else backbone
        if isinstance(start, Backbone):
            start = new_model(start, data, questions, encoder_depth, encoder_heads, dropout)
        self.model = start
        self.model.preprocess = data.preprocess
        self.worth = torch.tensor(leave_one_out_accuracies(people))  # of an answer by how many people gave it
        self.answers: dict[int, str] = {}  # of the split that is or was evaluated: place of a question to its answer
        self.prepare()
        if compile:
            for part in (self.model.backbone, self.model.encoder, self.model.questions):
                part.compile()
        self.train()

    @property
    def data(self) -> QuestionData:
        return self.trainer.datamodule  # type: ignore[attr-defined]

    def forward(self, images: Tensor, token_ids: Tensor) -> Tensor:
        """Images (B, 3, H, W) and questions about each (B, Q, T) to logits (B, Q, answers)."""
        return self.model(self.laid_out(images), token_ids)

    def training_step(self, batch: QuestionBatch, batch_idx: int) -> Tensor:
        asked = batch.places >= 0  # (B, Q)
        loss = self.loss(self(batch.images, batch.token_ids)[asked], batch.counts[asked])
        # The mean over the questions of all processes; there may be more in one than in another.
        count = self.trainer.strategy.reduce(asked.sum().float(), reduce_op="mean")
        loss = loss / count.clamp(min=1)
        self.log("train/loss", loss, prog_bar=True, on_step=True, on_epoch=False)
        return loss

    def loss(self, logits: Tensor, counts: Tensor) -> Tensor:
        """Cross-entropy of the probability of each answer, summed over answers and questions: (N, answers) to ()."""
        targets = self.worth.to(counts.device)[counts.long()]
        return functional.binary_cross_entropy_with_logits(logits.float(), targets, reduction="sum")

    def on_validation_epoch_start(self) -> None:
        self.begin_answers()

    def validation_step(self, batch: QuestionBatch, batch_idx: int) -> None:
        self.answer(batch, "validation")

    def on_validation_epoch_end(self) -> None:
        self.score("validation", "val")

    def on_test_epoch_start(self) -> None:
        self.begin_answers()

    def test_step(self, batch: QuestionBatch, batch_idx: int) -> None:
        self.answer(batch, "test")

    def on_test_epoch_end(self) -> None:
        scores = self.score("test", "test")
        for name, value in {**scores.per_question_type, **scores.per_answer_type}.items():
            self.log(f"test/accuracy/{name}", value, sync_dist=True)

    def begin_answers(self) -> None:
        self.answers = {}
        self.losses = torch.zeros(2, device=self.device)  # sum over questions, and how many

    def answer(self, batch: QuestionBatch, split: str) -> None:
        """Keeps the best answer to each question of a batch, and the loss where people's answers are known."""
        logits = self(batch.images, batch.token_ids)  # (B, Q, answers)
        asked = batch.places >= 0
        logits, counts, places = logits[asked], batch.counts[asked], batch.places[asked].tolist()
        for place, number in zip(places, logits.argmax(dim=1).tolist(), strict=True):
            self.answers[place] = self.model.answers[number]
        questions = self.data.splits[split].questions
        known = torch.tensor([bool(questions[place].answers) for place in places], dtype=torch.bool)
        loss = self.loss(logits[known], counts[known])
        self.losses += torch.stack([loss, loss.new_tensor(float(known.sum()))])

    def score(self, split: str, prefix: str) -> AnswerScores:
        """Gathers the answers of all processes and logs what they are worth; nothing where people's are not known."""
        self.answers = gathered(self.answers)
        total, count = self.trainer.strategy.reduce(self.losses, reduce_op="sum").tolist()
        judged = {place: self.data.splits[split].questions[place] for place in self.answers}
        judged = {place: question for place, question in judged.items() if question.answers}
        if not judged:
            return AnswerScores(math.nan, {}, {}, {})
        scores = score_answers({place: self.answers[place] for place in judged}, judged)
        self.log(f"{prefix}/loss", total / count, sync_dist=True)
        self.log(f"{prefix}/accuracy", scores.accuracy, prog_bar=True, sync_dist=True)
        return scores

    def save_results(self, folder: Path, data: QuestionData) -> None:
        """Writes `model/` (portable), `results.json` (VQA's format) and `answers.png` of the test."""
        save_pretrained(self.model, folder / "model")
        questions = data.splits["test"].questions
        results = [
            {"question_id": questions[place].question_id, "answer": text}
            for place, text in sorted(self.answers.items())
        ]
        with atomic_path(folder / "results.json") as temporary:
            temporary.write_text(json.dumps(results, ensure_ascii=False) + "\n", encoding="utf-8")
        examples = data.examples(24)
        shown = [questions[place] for place in examples.places[:, 0].tolist()]
        picture = answer_grid(
            data.preprocess.invert(examples.images),
            [question.text for question in shown],
            [
                explain_answer(self.model, image[None].to(self.device), token_ids[0])
                for image, token_ids in zip(examples.images, examples.token_ids, strict=True)
            ],
            [most_given(question) for question in shown],
        )
        with atomic_path(folder / "answers.png") as temporary:
            picture.save(temporary)


def most_given(question: Question) -> str:
    """What most people answered, in the form of the vocabulary; "" where that is not known."""
    counts = Counter(map(normalize_answer, question.answers))
    return counts.most_common(1)[0][0] if counts else ""


def new_model(
    backbone: Backbone,
    data: QuestionData,
    questions: Mapping[str, Any],
    encoder_depth: int,
    encoder_heads: int,
    dropout: float,
) -> VisualQuestionAnswerer:
    """A model with new weights but for the backbone's, whose colours the data take over if it is trained."""
    data.preprocess = data.preprocess.with_colors_of(backbone.preprocess)
    options = {str(name): value for name, value in questions.items()}
    return VisualQuestionAnswerer(
        backbone,
        QuestionEncoder(
            data.tokenizer.vocabulary_size, options["dim"], end_id=data.tokenizer.end_id, dropout=dropout, **options
        ),
        data.tokenizer,
        data.answers,
        encoder_depth=encoder_depth,
        encoder_heads=encoder_heads,
        dropout=dropout,
    )


def start_from(source: str, data: QuestionData, new_questions: bool) -> VisualQuestionAnswerer | Backbone:
    """A pretrained model that answers questions, whose words, answers and preprocessing the data take over; or the
    backbone of a classifier.

    Raises:
        ValueError: the source is a classifier and shall not get a question encoder, or a captioner.
    """
    model = load_pretrained(source)
    if isinstance(model, VisualQuestionAnswerer):
        data.tokenizer, data.answers = model.tokenizer, model.answers
        data.preprocess = model.preprocess or data.preprocess
        return model
    if not new_questions:
        raise ValueError(
            f"{source}: answers no questions (it is of class {type(model).__name__}); there is nothing to test"
        )
    return classifier_backbone(source, data.image_size)
