"""Models that answer questions in our own format."""

import json

import pytest
import torch

import visattn
from tests.interpret.small_answerers import answerer_of, kinds, questions
from visattn.checkpoints import CheckpointError, build_model, model_config, save_pretrained
from visattn.heads import ImageClassifier, VisualQuestionAnswerer


@pytest.mark.parametrize("kind", kinds)
def test_a_saved_model_gives_the_same_answers(kind, tmp_path):
    model, image = answerer_of(kind), torch.randn(1, 3, 32, 32)
    save_pretrained(model, tmp_path)
    loaded = visattn.load_pretrained(tmp_path, expected=VisualQuestionAnswerer)
    assert not loaded.training
    assert loaded.answers == model.answers
    assert loaded.preprocess.arguments == model.preprocess.arguments
    assert loaded.tokenizer.arguments == model.tokenizer.arguments
    assert loaded.answer(image, questions, num_return=5) == model.answer(image, questions, num_return=5)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["kind"] == "question_answering"
    assert {path.name for path in tmp_path.iterdir()} == {
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "caption_tokenizer.json",
    }


def test_the_configuration_is_plain_data_that_builds_the_model():
    model = answerer_of("encoder")
    config = json.loads(json.dumps(model_config(model)))
    built = build_model(config)
    assert built.state_dict().keys() == model.state_dict().keys()
    assert model_config(built) == model_config(model)


def test_positions_are_fitted_to_another_image_size(tmp_path):
    model, image = answerer_of("class token"), torch.randn(1, 3, 48, 48)
    save_pretrained(model, tmp_path)
    loaded = visattn.load_pretrained(tmp_path, image_size=48)
    assert loaded.backbone.image_size == (48, 48)
    assert loaded.encoder.grid == (6, 6)
    assert loaded.preprocess.image_size == (48, 48)
    token_ids = model.tokenizer.batch(questions)[None]
    torch.testing.assert_close(loaded(image, token_ids), model(image, token_ids), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"answers": ["yes", "yes"]}, "are no vocabulary"),
        ({"answers": None}, "doesn't describe a model"),
        ({"questions": {"depth": 1}}, "doesn't describe a model"),
        ({"tokenizer": None}, "doesn't describe a model"),
        ({"kind": "telepathy"}, "kind 'telepathy' is unknown; a newer visattn may know it"),
    ],
)
def test_a_damaged_configuration_is_an_error_that_says_where(change, message):
    with pytest.raises(CheckpointError, match=f"somewhere: .*{message}"):
        build_model(model_config(answerer_of("class token")) | change, "somewhere")


def test_what_is_asked_for_must_fit_the_kind(tmp_path):
    save_pretrained(answerer_of("class token"), tmp_path)
    with pytest.raises(ValueError, match="a VisualQuestionAnswerer has no classes; leave num_classes out"):
        visattn.load_pretrained(tmp_path, num_classes=3)
    with pytest.raises(ValueError, match="of class VisualQuestionAnswerer, and ImageClassifier is wanted"):
        visattn.load_pretrained(tmp_path, expected=ImageClassifier)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(CheckpointError, match="don't fit"):
        visattn.load_pretrained(tmp_path)
