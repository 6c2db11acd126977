"""Hiera from timm and from transformers."""

import pytest
import timm
import torch
import transformers
from timm.models import save_for_hf
from transformers import HieraConfig

from visattn import backbones
from visattn.backbones.embedding import resample_positions
from visattn.checkpoints import CheckpointError, load_pretrained
from visattn.checkpoints import timm as layout
from visattn.checkpoints.hiera import hiera_backbone, transformers_hiera_backbone
from visattn.heads import ImageClassifier

small = {"img_size": (96, 64), "embed_dim": 12, "num_heads": 1, "stages": (1, 2, 2, 1)}
originals = {
    "hiera_tiny_224": small,
    "hiera_base_224": small | {"mask_unit_attn": (True, False, False, False), "stages": (2, 1, 2, 1)},
    "hiera_base_plus_224": small
    | {"mask_unit_attn": (True,) * 3, "stages": (1, 1, 2), "q_pool": 2, "mask_unit_size": (4, 4)},
    "hiera_small_abswin_256": small | {"global_pos_size": (5, 5)},
    "hiera_base_abswin_256": small,
}


def perturbed(model):
    torch.manual_seed(0)
    for parameter in model.parameters():
        parameter.data.add_(torch.randn_like(parameter) * 0.1)
    return model.eval()


@pytest.mark.parametrize("name", originals)
def test_a_hub_folder_gives_the_logits_and_maps_of_timm(name, tmp_path):
    original = perturbed(timm.create_model(name, num_classes=11, **originals[name]))
    save_for_hf(original, tmp_path, model_args=originals[name], safe_serialization=True)
    model = load_pretrained(tmp_path)
    assert model.backbone.image_size == (96, 64)
    images = torch.randn(2, 3, 96, 64)
    with torch.no_grad():
        expected, maps = original(images), original.forward_intermediates(images, intermediates_only=True)
        torch.testing.assert_close(model(images), expected, rtol=0, atol=1e-4)
        for ours, theirs in zip(model.features(images).maps, maps, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)
    assert not model.training
    assert expected.std() > 0.1


def test_stretched_positions_serve_another_image_size_as_in_timm(tmp_path):
    arguments = originals["hiera_small_abswin_256"]
    original = perturbed(timm.create_model("hiera_small_abswin_256", num_classes=11, **arguments))
    save_for_hf(original, tmp_path, model_args=arguments, safe_serialization=True)
    larger = timm.create_model("hiera_small_abswin_256", num_classes=11, **arguments | {"img_size": (128, 160)}).eval()
    larger.load_state_dict(original.state_dict())
    images = torch.randn(2, 3, 128, 160)
    with torch.no_grad():
        expected = larger(images)
        torch.testing.assert_close(load_pretrained(tmp_path)(images), expected, rtol=0, atol=1e-4)
        resized = load_pretrained(tmp_path, image_size=(128, 160))
        torch.testing.assert_close(resized(images), expected, rtol=0, atol=1e-4)
    assert resized.backbone.image_size == (128, 160)


def test_learned_positions_are_resampled_to_another_image_size(tmp_path):
    arguments = small | {"img_size": 64}
    original = perturbed(timm.create_model("hiera_tiny_224", num_classes=11, **arguments))
    save_for_hf(original, tmp_path, model_args=arguments, safe_serialization=True)
    larger = timm.create_model("hiera_tiny_224", num_classes=11, **small).eval()
    positions = resample_positions(original.pos_embed, (16, 16), (24, 16))
    larger.load_state_dict(original.state_dict() | {"pos_embed": positions})
    images = torch.randn(2, 3, 96, 64)
    with torch.no_grad():
        for model in (load_pretrained(tmp_path), load_pretrained(tmp_path, image_size=(96, 64))):
            torch.testing.assert_close(model(images), larger(images), rtol=0, atol=1e-4)


def test_a_headless_source_gives_features(tmp_path):
    original = perturbed(timm.create_model("hiera_tiny_224", num_classes=0, **small))
    save_for_hf(original, tmp_path, model_args=small, safe_serialization=True)
    images = torch.randn(2, 3, 96, 64)
    with torch.no_grad():
        torch.testing.assert_close(load_pretrained(tmp_path).features(images).pooled, original(images))


@pytest.mark.parametrize("name", timm.list_models("hiera_*"))
def test_every_published_size_has_as_many_parameters_as_ours(name):
    with torch.device("meta"):
        theirs = timm.create_model(name, num_classes=1000)
        ours = ImageClassifier(hiera_backbone(theirs, name), 1000)
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in theirs.parameters())
    if name == "hiera_tiny_224":
        with torch.device("meta"):
            preset = ImageClassifier(backbones.hiera_tiny(), 1000)
        assert {key: value.shape for key, value in preset.state_dict().items()} == {
            key: value.shape for key, value in ours.state_dict().items()
        }


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"global_pool": "max"}, "pooling 'max'"),
        ({"q_pool": 2}, r"pooling of queries by \(2, 2\) in 2 of 4 stages"),
        ({"dim_mul": 1.5, "embed_dim": 16}, r"stages of \[16, 24, 36, 54\] channels"),
        ({"mask_unit_size": (8, 16)}, r"mask units of \(8, 16\) tokens"),
        ({"patch_kernel": (4, 4), "patch_padding": (0, 0)}, r"patches of \(4, 4\) pixels"),
    ],
)
def test_what_timm_could_build_and_visattn_does_not_is_named(arguments, message):
    config = {"architecture": "hiera_tiny_224", "model_args": small | {"img_size": 128} | arguments}
    with pytest.raises(CheckpointError, match=message):
        layout.build(config, {}, "weights")


published = {
    "image_size": [64, 64],
    "embed_dim": 12,
    "depths": [1, 2, 2, 1],
    "num_labels": 11,
}


@pytest.mark.parametrize("name", ["HieraForImageClassification", "HieraModel"])
@pytest.mark.parametrize("larger", [False, True])
def test_a_folder_of_transformers_gives_its_logits_and_features(name, larger, tmp_path):
    original = perturbed(getattr(transformers, name)(HieraConfig(**published, layer_norm_eps=1e-3)))
    original.save_pretrained(tmp_path)
    model = load_pretrained(tmp_path)
    images = torch.randn(2, 3, 64, 64)
    if larger:  # theirs are of one size; its positions are resampled without a low-pass filter
        twin = getattr(transformers, name)(HieraConfig(**published | {"image_size": [96, 96]}, layer_norm_eps=1e-3))
        base = "hiera." if name == "HieraForImageClassification" else ""
        weights, table = original.state_dict(), f"{base}embeddings.position_embeddings"
        weights[table] = resample_positions(weights[table], (16, 16), (24, 24), antialias=False)
        twin.load_state_dict(weights)
        original, images = twin.eval(), torch.randn(2, 3, 96, 96)
    with torch.no_grad():
        outputs = original(images)
        if name == "HieraModel":
            pooled = model.features(images).pooled
            torch.testing.assert_close(pooled, outputs.pooler_output, rtol=0, atol=1e-4)
        else:
            torch.testing.assert_close(model(images), outputs.logits, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_query_pool": 2}, "pooling of queries by .* in 2 stages"),
        ({"masked_unit_attention": [False, True, False, False]}, "in stages .False, True"),
        ({"embed_dim_multiplier": 1.5}, "stages 1.5 times as wide"),
        ({"patch_size": [4, 4], "patch_padding": [0, 0]}, r"patches of \[4, 4\] pixels"),
        ({"hidden_act": "relu"}, "activation 'relu'"),
    ],
)
def test_what_transformers_could_build_and_visattn_does_not_is_named(change, message):
    with pytest.raises(CheckpointError, match=message):
        transformers_hiera_backbone(HieraConfig(**published).to_dict() | change, "config.json")
