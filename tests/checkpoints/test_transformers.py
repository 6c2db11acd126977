import json

import pytest
import torch
import transformers
from safetensors.torch import load_file
from transformers import (
    DeiTConfig,
    Dinov2Config,
    Dinov2WithRegistersConfig,
    SwinConfig,
    ViTConfig,
)

from visattn.checkpoints import CheckpointError, load_pretrained

sizes = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 40}
sizes |= {"image_size": 28, "patch_size": 7, "num_labels": 11}
swin = SwinConfig(
    image_size=56, patch_size=4, embed_dim=12, depths=[2, 2], num_heads=[2, 4], window_size=5, num_labels=11
)
originals = {
    "ViTForImageClassification": ViTConfig(**sizes),
    "DeiTForImageClassification": DeiTConfig(**sizes),
    "DeiTForImageClassificationWithTeacher": DeiTConfig(**sizes),
    "Dinov2ForImageClassification": Dinov2Config(**sizes),
    "Dinov2WithRegistersForImageClassification": Dinov2WithRegistersConfig(**sizes),
    "SwinForImageClassification": swin,
    "ViTModel": ViTConfig(**sizes),
    "Dinov2Model": Dinov2Config(**sizes, use_swiglu_ffn=True),
    "Dinov2WithRegistersModel": Dinov2WithRegistersConfig(**sizes),
    "SwinModel": swin,
}


def perturbed(name):
    torch.manual_seed(0)
    model = getattr(transformers, name)(originals[name])
    for parameter in model.parameters():
        parameter.data.add_(torch.randn_like(parameter) * 0.1)
    return model.eval()


@pytest.mark.parametrize("name", originals)
@pytest.mark.parametrize("larger", [False, True])
def test_a_folder_gives_the_logits_and_features_of_transformers(name, larger, tmp_path):
    original = perturbed(name)
    original.save_pretrained(tmp_path)
    side = originals[name].image_size * (2 if larger else 1)
    model = load_pretrained(tmp_path, image_size=side)
    images = torch.randn(2, 3, side, side)
    # Those without this argument resample the positions by themselves.
    options = {} if name.startswith("Dinov2") else {"interpolate_pos_encoding": larger}
    with torch.no_grad():
        outputs = original(images, **options, output_hidden_states=True)
        if name.endswith("Model"):
            tokens = model.features(images).tokens
            torch.testing.assert_close(tokens, outputs.last_hidden_state, rtol=0, atol=1e-4)
        else:
            torch.testing.assert_close(model(images), outputs.logits, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    "name", ["ViTModel", "DeiTForImageClassification", "Dinov2Model", "SwinForImageClassification"]
)
def test_names_as_transformers_5_has_them_in_memory_are_read_too(name, tmp_path):
    original = perturbed(name)
    original.save_pretrained(tmp_path / "published")
    original.save_pretrained(tmp_path / "memory", save_original_format=False)
    one, other = (load_pretrained(tmp_path / folder).state_dict() for folder in ("published", "memory"))
    assert (
        load_file(tmp_path / "memory/model.safetensors").keys()
        != load_file(tmp_path / "published/model.safetensors").keys()
    )
    assert one.keys() == other.keys()
    assert all(torch.equal(one[key], other[key]) for key in one)


def test_the_published_transform_comes_along(tmp_path):
    perturbed("ViTForImageClassification").save_pretrained(tmp_path)
    published = {
        "image_processor_type": "BitImageProcessor",
        "size": {"shortest_edge": 32},
        "crop_size": {"height": 28, "width": 28},
        "do_center_crop": True,
        "resample": 3,
        "image_mean": [0.5, 0.4, 0.3],
        "image_std": [0.2, 0.3, 0.4],
    }
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(published))
    preprocess = load_pretrained(tmp_path).preprocess
    assert (preprocess.image_size, preprocess.resize, preprocess.fit) == ((28, 28), (32, 32), "cover")
    assert (preprocess.interpolation, preprocess.mean) == ("bicubic", (0.5, 0.4, 0.3))


def test_names_of_classes_come_along(tmp_path):
    original = perturbed("ViTForImageClassification")
    original.config.id2label = {index: f"animal {index}" for index in range(11)}
    original.save_pretrained(tmp_path)
    assert load_pretrained(tmp_path).classes[3] == "animal 3"


def test_an_unknown_type_of_model_is_named(tmp_path):
    perturbed("ViTForImageClassification").save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"model_type": "resnet"}))
    with pytest.raises(CheckpointError, match="model_type 'resnet'"):
        load_pretrained(tmp_path)
