"""PVT v2 from timm and from transformers."""

import json

import pytest
import timm
import torch
import transformers
from timm.models import save_for_hf
from transformers import PvtV2Config

from visattn import backbones
from visattn.checkpoints import CheckpointError, load_pretrained
from visattn.checkpoints import timm as layout
from visattn.checkpoints.pvt_v2 import pvt_v2_backbone
from visattn.heads import ImageClassifier

small = {"embed_dims": (8, 12, 20, 24), "depths": (1, 2, 1, 1), "num_heads": (1, 2, 5, 4)}
originals = {
    "pvt_v2_b0": small,
    "pvt_v2_b5": small | {"qkv_bias": False, "sr_ratios": (4, 2, 2, 1)},
    "pvt_v2_b2_li": small,
}


def perturbed(model):
    torch.manual_seed(0)
    for parameter in model.parameters():
        parameter.data.add_(torch.randn_like(parameter) * 0.1)
    return model.eval()


@pytest.mark.parametrize("name", originals)
@pytest.mark.parametrize("size", [(64, 64), (96, 64), (75, 109)])
def test_a_hub_folder_gives_the_logits_and_features_of_timm_at_any_size(name, size, tmp_path):
    original = perturbed(timm.create_model(name, num_classes=11, **originals[name]))
    save_for_hf(original, tmp_path, model_args=originals[name], safe_serialization=True)
    model = load_pretrained(tmp_path)
    images = torch.randn(2, 3, *size)
    with torch.no_grad():
        expected, maps = original(images), original.forward_intermediates(images, intermediates_only=True)
        torch.testing.assert_close(model(images), expected, rtol=0, atol=1e-4)
        for ours, theirs in zip(model.features(images).maps, maps, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)
    assert not model.training
    assert expected.std() > 0.1


def test_the_original_repository_is_read_through_timm(tmp_path):
    original = perturbed(timm.create_model("pvt_v2_b0", num_classes=7))
    torch.save(published_names(original.state_dict()), tmp_path / "pvt_v2_b0.pth")
    model = load_pretrained(tmp_path / "pvt_v2_b0.pth", "pvt_v2_b0", image_size=64)
    assert model.backbone.image_size == model.preprocess.image_size == (64, 64)
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(model(images), original(images), rtol=0, atol=1e-4)


def published_names(weights):
    """timm's weights as https://github.com/whai362/PVT names them."""
    renamed = {}
    for name, tensor in weights.items():
        first, *rest = name.split(".")
        if first == "patch_embed":
            name = ".".join(["patch_embed1", *rest])
        elif first == "stages":
            stage = int(rest[0]) + 1
            part = {"downsample": f"patch_embed{stage}", "blocks": f"block{stage}", "norm": f"norm{stage}"}[rest[1]]
            name = ".".join([part, *rest[2:]]).replace(".dwconv.", ".dwconv.dwconv.")
        renamed[name] = tensor
    return renamed


@pytest.mark.parametrize("name", timm.list_models("pvt_v2*"))
def test_every_published_size_has_as_many_parameters_as_ours(name):
    with torch.device("meta"):
        theirs = timm.create_model(name)
        backbone = pvt_v2_backbone(theirs, name)
        ours = ImageClassifier(backbone, 1000)
        preset = ImageClassifier(getattr(backbones, name)(), 1000) if hasattr(backbones, name) else ours
    count = sum(parameter.numel() for parameter in theirs.parameters())
    assert sum(parameter.numel() for parameter in ours.parameters()) == count
    assert sum(parameter.numel() for parameter in preset.parameters()) == count
    assert {key: value.shape for key, value in preset.state_dict().items()} == {
        key: value.shape for key, value in ours.state_dict().items()
    }


def test_a_classifier_that_reads_no_mean_is_refused():
    config = {"architecture": "pvt_v2_b0", "model_args": small | {"global_pool": ""}}
    with pytest.raises(CheckpointError, match="weights: timm's pooling '' has no counterpart"):
        layout.build(config, {}, "weights")


configurations = {
    "PvtV2ForImageClassification": {},
    "PvtV2ForImageClassification, linear": {"linear_attention": True, "qkv_bias": False},
    "PvtV2Model": {"layer_norm_eps": 1e-3},
}


@pytest.mark.parametrize("case", configurations)
@pytest.mark.parametrize("size", [(64, 64), (75, 109)])
def test_a_folder_of_transformers_gives_its_logits_and_features(case, size, tmp_path):
    name = case.split(",")[0]
    config = PvtV2Config(
        image_size=64,
        hidden_sizes=[8, 12, 20, 24],
        depths=[1, 2, 1, 1],
        num_attention_heads=[1, 2, 5, 4],
        num_labels=11,
        **configurations[case],
    )
    original = perturbed(getattr(transformers, name)(config))
    original.save_pretrained(tmp_path)
    model = load_pretrained(tmp_path)
    assert model.backbone.image_size == (64, 64)
    images = torch.randn(2, 3, *size)
    with torch.no_grad():
        outputs = original(images)
        if name == "PvtV2Model":
            torch.testing.assert_close(model.features(images).maps[-1], outputs.last_hidden_state, rtol=0, atol=1e-4)
        else:
            torch.testing.assert_close(model(images), outputs.logits, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"strides": [4, 2, 2, 1]}, r"strides of \(4, 2, 2, 1\)"),
        ({"patch_sizes": [4, 3, 3, 3]}, r"patches of \(4, 3, 3, 3\) pixels"),
        ({"hidden_act": "relu"}, "activation 'relu'"),
    ],
)
def test_what_transformers_could_build_and_visattn_does_not_is_named(change, message, tmp_path):
    config = PvtV2Config(hidden_sizes=[8, 12, 20, 24], depths=[1] * 4, num_attention_heads=[1] * 4)
    transformers.PvtV2Model(config).save_pretrained(tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(written | change))
    with pytest.raises(CheckpointError, match=message):
        load_pretrained(tmp_path)
