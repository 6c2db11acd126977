import json

import pytest
import torch
from safetensors.torch import load_file

import visattn
from tests.heads.test_captioner import captioner
from visattn.backbones import VisionTransformer
from visattn.checkpoints import CheckpointError, load_pretrained, model_config, save_pretrained
from visattn.heads import ImageCaptioner, ImageClassifier


def logits_of(model, images):
    return model(images, model.tokenizer.batch(["a red dog", "two people ride"]))


@pytest.mark.parametrize("kind", ["vit", "swin", "hybrid"])
@pytest.mark.parametrize("encoder_depth", [None, 0, 1])
def test_a_saved_captioner_comes_back_with_its_words(kind, encoder_depth, tmp_path):
    model = captioner(kind, encoder_depth)
    save_pretrained(model, tmp_path)
    loaded = visattn.load_pretrained(tmp_path)
    images = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(logits_of(loaded, images), logits_of(model, images), rtol=0, atol=0)
    assert isinstance(loaded, ImageCaptioner)
    assert not loaded.training
    assert loaded.preprocess.arguments == model.preprocess.arguments
    assert loaded.tokenizer.arguments == model.tokenizer.arguments
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["kind"] == "captioning"
    assert "tokenizer" not in config
    assert (tmp_path / "tokenizer.json").is_file()


def test_tied_weights_are_stored_once(tmp_path):
    model = captioner()
    save_pretrained(model, tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    shape = model.decoder.embedding.weight.shape
    assert [name for name, tensor in weights.items() if tensor.shape == shape] == ["decoder.embedding.weight"]


def test_a_run_checkpoint_carries_the_words_as_plain_data(tmp_path):
    model = captioner("hybrid", 1)
    state = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    torch.save({"state_dict": state, "visattn_model": model_config(model)}, tmp_path / "last.ckpt")
    loaded = load_pretrained(tmp_path / "last.ckpt", expected=ImageCaptioner)
    images = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(logits_of(loaded, images), logits_of(model, images), rtol=0, atol=0)
    assert loaded.tokenizer.arguments == model.tokenizer.arguments


@pytest.mark.parametrize("kind", ["vit", "swin", "hybrid"])
def test_a_captioner_fitted_to_larger_images_reads_them_as_before(kind, tmp_path):
    model = captioner(kind, 1)
    save_pretrained(model, tmp_path)
    loaded = load_pretrained(tmp_path, image_size=48)
    assert loaded.backbone.image_size == loaded.preprocess.image_size == (48, 48)
    images = torch.randn(2, 3, 48, 48)
    assert loaded.encoder.position_embedding.shape[1] == loaded.features(images).maps[-1][0, 0].numel()
    if kind == "vit":  # windows of Swin grow with the image, and the hybrid pads
        torch.testing.assert_close(logits_of(loaded, images), logits_of(model, images))


def test_configurations_without_a_kind_are_classifiers(tmp_path):
    save_pretrained(ImageClassifier(VisionTransformer(32, 8, 24, 1, 2), 3), tmp_path)
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({name: value for name, value in config.items() if name != "kind"}))
    assert load_pretrained(tmp_path, expected=ImageClassifier).num_classes == 3


def test_a_model_of_another_kind_than_wanted_is_an_error(tmp_path):
    save_pretrained(captioner(), tmp_path)
    with pytest.raises(ValueError, match="of class ImageCaptioner, and ImageClassifier is wanted"):
        load_pretrained(tmp_path, expected=ImageClassifier)
    with pytest.raises(ValueError, match="no classes; leave num_classes out"):
        load_pretrained(tmp_path, num_classes=3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "poetry"}, "kind 'poetry' is unknown"),
        ({"decoder": {"no_such_argument": 1}}, "doesn't describe a model"),
        ({"encoder_depth": "deep"}, "doesn't describe a model"),
    ],
)
def test_a_configuration_that_describes_no_captioner_is_refused(change, message, tmp_path):
    save_pretrained(captioner(), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(CheckpointError, match=message):
        load_pretrained(tmp_path)


def test_a_missing_or_damaged_tokenizer_is_named(tmp_path):
    save_pretrained(captioner(), tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"tokenizer\.json"):
        load_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"tokenizer\.json: there is no such file"):
        load_pretrained(tmp_path)
