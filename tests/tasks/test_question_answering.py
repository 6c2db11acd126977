"""The task of answering questions: targets, scores, what a run leaves, what it may start from."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image
from torch.nn import functional

import train
import visattn
from tests.tasks.small_runs import small_backbone, trainer
from visattn.backbones import local_hybrid_tiny
from visattn.checkpoints import save_pretrained
from visattn.data import ShapesQuestionsDataModule
from visattn.data.questions import Question
from visattn.evaluation.vqa import score_answers
from visattn.heads import ImageClassifier
from visattn.tasks import QuestionAnswering
from visattn.tasks.question_answering import most_given

conf = Path(train.__file__).parent / "conf"


def scenes(**options) -> ShapesQuestionsDataModule:
    sizes = {"train_scenes": 12, "validation_scenes": 4, "test_scenes": 5, "batch_size": 4}
    data = ShapesQuestionsDataModule(16, **sizes | options)
    data.setup()
    return data


def question_answering(data, backbone=None, pretrained: str | None = None, **options) -> QuestionAnswering:
    """The task with the values of conf/, but a small model."""
    keywords = OmegaConf.to_container(OmegaConf.load(conf / "task" / "vqa.yaml"), resolve=False)
    assert keywords.pop("_target_") == "visattn.tasks.QuestionAnswering"
    small = {"seed": 0, "new_questions": True, "questions": {"dim": 16, "depth": 1, "num_heads": 2}, "encoder_heads": 2}
    if backbone is None and pretrained is None:
        backbone = small_backbone()
    return QuestionAnswering(data, backbone, pretrained, **keywords | small | options)


@pytest.fixture
def data() -> ShapesQuestionsDataModule:
    torch.manual_seed(0)
    return scenes()


@pytest.mark.filterwarnings("ignore:.*does not have many workers.*")
@pytest.mark.filterwarnings("ignore:.*in eval mode at the start of training.*")  # what is frozen
@pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning")  # between Lightning and torch
class TestRun:
    def test_a_run_leaves_model_results_and_picture_that_agree(self, data, tmp_path):
        task = question_answering(data)
        run = trainer(tmp_path, epochs=2)
        run.fit(task, datamodule=data)
        assert {"val/accuracy", "val/loss"} <= run.callback_metrics.keys()
        run.test(task, datamodule=data, verbose=False)
        task.save_results(tmp_path, data)
        questions = {question.question_id: question for question in data.splits["test"].questions}
        results = json.loads((tmp_path / "results.json").read_text())
        assert [entry["question_id"] for entry in results] == list(questions)
        scores = score_answers({entry["question_id"]: entry["answer"] for entry in results}, questions)
        assert run.callback_metrics["test/accuracy"] == pytest.approx(scores.accuracy)
        assert run.callback_metrics["test/accuracy/relation"] == pytest.approx(scores.per_question_type["relation"])
        assert run.callback_metrics["test/accuracy/yes/no"] == pytest.approx(scores.per_answer_type["yes/no"])
        model = visattn.load_pretrained(tmp_path / "model")
        batch = data.examples(3)
        asked = [questions_of(data)[place] for place in batch.places[:, 0].tolist()]
        again = model.answer(batch.images, [question.text for question in asked])
        answers = {entry["question_id"]: entry["answer"] for entry in results}
        assert [answers[question.question_id] for question in asked] == [best.text for (best,) in again]
        with Image.open(tmp_path / "answers.png") as picture:
            assert min(picture.size) > 300

    def test_the_loss_of_validation_is_the_mean_over_its_questions(self, data, tmp_path):
        task, run = question_answering(data), trainer(tmp_path)
        run.validate(task, datamodule=data, verbose=False)
        losses = []
        task.eval()
        with torch.no_grad():
            for batch in data.val_dataloader():
                logits = task.model(batch.images, batch.token_ids)
                truth = batch.counts.float() / 10  # all ten say the same
                losses += functional.binary_cross_entropy_with_logits(logits, truth, reduction="none").sum(2).flatten()
        assert len(losses) == 36
        assert run.callback_metrics["val/loss"] == pytest.approx(float(torch.stack(losses).mean()), rel=1e-5)

    def test_a_frozen_backbone_stays_as_it_is(self, data, tmp_path):
        backbone = local_hybrid_tiny(16, dims=(8, 16), depths=(1, 1), num_heads=(1, 2), stem_dim=8, drop_path=0.5)
        before = {name: tensor.clone() for name, tensor in backbone.state_dict().items()}
        task = question_answering(data, backbone, backbone_learning_rate=0)
        trainer(tmp_path, limit_val_batches=0).fit(task, datamodule=data)
        for name, tensor in task.model.backbone.state_dict().items():
            assert torch.equal(tensor, before[name]), name
        assert not task.train().model.backbone.training
        assert task.model.questions.training

    def test_questions_without_answers_are_answered_and_not_scored(self, data, tmp_path):
        split = data.splits["test"]
        known = [question for question in split.questions if question.image > 0]
        hidden = [question._replace(answers=()) for question in split.questions if question.image == 0]
        data.splits["test"] = split._replace(questions=hidden + known)
        task, run = question_answering(data), trainer(tmp_path)
        run.test(task, datamodule=data, verbose=False)
        scores = score_answers(
            {place: task.answers[place] for place in range(9, 45)},
            {place: question for place, question in enumerate(hidden + known) if question.answers},
        )
        assert run.callback_metrics["test/accuracy"] == pytest.approx(scores.accuracy)
        assert len(task.answers) == 45

        data.splits["test"] = split._replace(questions=[question._replace(answers=()) for question in split.questions])
        run = trainer(tmp_path)
        run.test(task, datamodule=data, verbose=False)
        assert not run.callback_metrics
        task.save_results(tmp_path, data)
        assert len(json.loads((tmp_path / "results.json").read_text())) == 45
        assert (tmp_path / "answers.png").exists()

    def test_a_pretrained_model_brings_words_answers_and_preprocessing(self, data, tmp_path):
        first = question_answering(data)
        save_pretrained(first.model, tmp_path / "model")
        other = scenes(train_scenes=2, mean=(0.1, 0.2, 0.3), seed=9)
        assert other.answers != data.answers
        task = question_answering(other, pretrained=str(tmp_path / "model"), new_questions=False)
        assert other.answers == task.model.answers == data.answers
        assert other.tokenizer.arguments == data.tokenizer.arguments
        assert other.preprocess.mean == data.preprocess.mean
        trainer(tmp_path).fit(task, datamodule=other)

    def test_training_lowers_the_loss_and_asks_only_some_questions_where_told(self, data, tmp_path):
        few = scenes(questions_per_image=2)
        task, run = question_answering(few, learning_rate=1e-2), trainer(tmp_path, epochs=15)
        run.validate(task, datamodule=few, verbose=False)
        before = float(run.callback_metrics["val/loss"])
        run.fit(task, datamodule=few)
        assert next(iter(few.train_dataloader())).token_ids.shape[1] == 2
        assert run.callback_metrics["val/loss"] < 0.85 * before


def questions_of(data):
    return data.splits["test"].questions


def test_targets_are_the_official_accuracies_of_what_ten_people_said(data):
    task = question_answering(data)
    logits = torch.zeros(1, 5, requires_grad=True)
    task.loss(logits, torch.tensor([[0, 1, 2, 3, 10]], dtype=torch.uint8)).backward()
    assert (0.5 - logits.grad[0]).tolist() == pytest.approx([0, 0.3, 0.6, 0.9, 1])


def test_a_classifiers_backbone_learns_to_answer_with_its_colours(data, tmp_path):
    classifier = ImageClassifier(small_backbone(), 4)
    classifier.preprocess = data.preprocess.with_colors_of(type(data.preprocess)(16, mean=(0.1, 0.2, 0.3)))
    save_pretrained(classifier, tmp_path / "classifier")
    task = question_answering(data, pretrained=str(tmp_path / "classifier"))
    for name, tensor in classifier.backbone.state_dict().items():
        assert torch.equal(tensor, task.model.backbone.state_dict()[name])
    assert task.model.preprocess.mean == data.preprocess.mean == (0.1, 0.2, 0.3)
    with pytest.raises(ValueError, match=r"answers no questions .*ImageClassifier.; there is nothing to test"):
        question_answering(data, pretrained=str(tmp_path / "classifier"), new_questions=False)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"backbone": small_backbone(), "pretrained": "somewhere"}, "give one of backbone"),
        ({"monitor": "val/CIDEr"}, "monitor 'val/CIDEr' is not val/accuracy"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_runs(data, options, message):
    with pytest.raises(ValueError, match=message):
        question_answering(data, **options)


def test_a_run_is_not_continued_with_other_answers_or_another_question_encoder(data):
    task = question_answering(data)
    checkpoint: dict = {}
    task.on_save_checkpoint(checkpoint)
    task.on_load_checkpoint(checkpoint)
    deeper = question_answering(data, questions={"dim": 16, "depth": 2, "num_heads": 2})
    with pytest.raises(ValueError, match=r"differing in questions.depth \(1 instead of 2\)"):
        deeper.on_load_checkpoint(checkpoint)
    others = scenes(train_scenes=2, seed=9)
    with pytest.raises(ValueError, match=r"differing in answers \(\['.* instead of \["):
        question_answering(others).on_load_checkpoint(checkpoint)


def test_the_answer_shown_beside_ours_is_that_of_most_people():
    asked = Question(1, 0, "how many?", ("two", "2", "Two!", "3"), "how many", "number")
    assert most_given(asked) == "2"
    assert most_given(asked._replace(answers=())) == ""
