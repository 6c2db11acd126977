"""Swin V2 from timm and from transformers."""

import pytest
import timm
import torch
import transformers
from timm.models import save_for_hf
from transformers import Swinv2Config

from visattn.checkpoints import CheckpointError, load_pretrained
from visattn.checkpoints import timm as layout

small = {"embed_dim": 12, "depths": (2, 2), "num_heads": (2, 4)}
originals = {
    "swinv2_tiny_window8_256": small | {"img_size": 64},
    "swinv2_tiny_window16_256": small | {"img_size": (60, 76), "window_size": 5},
    "swinv2_small_window8_256": small | {"img_size": 48, "window_size": (3, 5), "qkv_bias": False},
    "swinv2_base_window12to16_192to256": small | {"img_size": 64, "pretrained_window_sizes": (12, 6)},
}
swin = Swinv2Config(
    image_size=56,
    patch_size=4,
    embed_dim=12,
    depths=[2, 2],
    num_heads=[2, 4],
    window_size=5,
    pretrained_window_sizes=[3, 0],
    num_labels=11,
)


def perturbed(model):
    torch.manual_seed(0)
    for parameter in model.parameters():
        parameter.data.add_(torch.randn_like(parameter) * 0.2)
    return model.eval()


@pytest.mark.parametrize("name", originals)
def test_a_hub_folder_gives_the_logits_and_features_of_timm(name, tmp_path):
    original = perturbed(timm.create_model(name, num_classes=11, **originals[name]))
    save_for_hf(original, tmp_path, model_args=originals[name], safe_serialization=True)
    model = load_pretrained(tmp_path)
    images = torch.randn(2, 3, *model.backbone.image_size)
    with torch.no_grad():
        expected, tokens = original(images), original.forward_features(images).flatten(1, 2)
        torch.testing.assert_close(model(images), expected, rtol=0, atol=1e-4)
        torch.testing.assert_close(model.features(images).tokens, tokens, rtol=0, atol=1e-4)
    assert not model.training
    assert expected.std(dim=0).max() > 0.01


@pytest.mark.parametrize("size", [48, 112])
def test_another_image_size_is_built_as_timm_does(size, tmp_path):
    original = perturbed(timm.create_model("swinv2_tiny_window8_256", num_classes=11, img_size=64, **small))
    save_for_hf(original, tmp_path, model_args=small | {"img_size": 64}, safe_serialization=True)
    resized = timm.create_model("swinv2_tiny_window8_256", num_classes=11, img_size=size, **small).eval()
    resized.load_state_dict(original.state_dict())
    model = load_pretrained(tmp_path, image_size=size)
    assert model.backbone.image_size == (size, size)
    images = torch.randn(2, 3, size, size)
    with torch.no_grad():
        torch.testing.assert_close(model(images), resized(images), rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", [name for name in timm.list_models("swinv2*") if "swinv2_cr" not in name])
def test_every_published_variant_has_a_counterpart_of_its_size(name):
    with torch.device("meta"):
        original = timm.create_model(name)
        backbone = layout.families["SwinTransformerV2"][0](original, "weights")
    head = original.head.fc.weight.numel() + original.head.fc.bias.numel()
    assert sum(p.numel() for p in backbone.parameters()) + head == sum(p.numel() for p in original.parameters())


@pytest.mark.parametrize("options", [{"act_layer": "relu"}, {"always_partition": True}, {"global_pool": "max"}])
def test_what_visattn_does_not_build_is_refused(options):
    with pytest.raises(CheckpointError, match=r"ReLU|always_partition|'max'"):
        layout.build({"architecture": "swinv2_tiny_window8_256", "model_args": small | options}, {}, "weights")


@pytest.mark.parametrize("name", ["Swinv2ForImageClassification", "Swinv2Model"])
@pytest.mark.parametrize("size", [(56, 56), (76, 60)])
def test_a_folder_gives_the_logits_and_features_of_transformers(name, size, tmp_path):
    original = perturbed(getattr(transformers, name)(swin))
    original.save_pretrained(tmp_path)
    model = load_pretrained(tmp_path)
    images = torch.randn(2, 3, *size)
    with torch.no_grad():
        outputs = original(images)
        if name == "Swinv2Model":
            tokens = model.features(images).tokens
            torch.testing.assert_close(tokens, outputs.last_hidden_state, rtol=0, atol=1e-4)
        else:
            torch.testing.assert_close(model(images), outputs.logits, rtol=0, atol=1e-4)
            assert outputs.logits.std(dim=0).max() > 0.01


def test_options_of_transformers_without_counterpart_are_refused(tmp_path):
    config = Swinv2Config(**swin.to_dict() | {"use_absolute_embeddings": True})
    transformers.Swinv2Model(config).save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="absolute position embeddings"):
        load_pretrained(tmp_path)
