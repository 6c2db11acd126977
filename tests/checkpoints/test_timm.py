import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.models import save_for_hf, swin_transformer, vision_transformer

import visattn
from visattn.checkpoints import CheckpointError, load_pretrained
from visattn.checkpoints import timm as layout

# timm's name and arguments that make it small: one of each kind that timm builds from its two classes.
small = {"embed_dim": 24, "depth": 2, "num_heads": 2, "img_size": 48}
originals = {
    "vit_tiny_patch16_224": small,
    "deit_tiny_distilled_patch16_224": small,
    "deit3_small_patch16_224": small,
    "vit_small_patch14_dinov2": small | {"img_size": 42},
    "vit_small_patch14_reg4_dinov2": small | {"img_size": 42},
    "vit_giant_patch14_reg4_dinov2": small | {"img_size": 42},
    "vit_base_patch16_clip_224": small,
    "vit_base_patch16_clip_quickgelu_224": small,
    "vit_base_patch16_siglip_224": small,
    "vit_medium_patch16_gap_240": small,
    "vit_medium_patch16_reg4_gap_256": small,
    "vit_so150m_patch16_reg4_map_256": small,
    "vit_base_patch16_rpn_224": small,
    "vit_base_patch16_xp_224": small,
    "vit_small_patch16_18x2_224": small,
    "vit_base_patch16_siglip_gap_224": small,
    "aimv2_large_patch14_224": small | {"img_size": 42},
    "beit3_base_patch16_224": small,
    "vit_mediumd_patch16_reg4_gap_256": small,
    "vit_wee_patch16_reg1_gap_256": small,
    "swin_tiny_patch4_window7_224": {"img_size": 56, "embed_dim": 12, "depths": (2, 2), "num_heads": (2, 4)},
    "swin_s3_tiny_224": {"img_size": 64, "embed_dim": 12, "depths": (2, 2), "num_heads": (2, 4), "window_size": (7, 7)},
}


def perturbed(name, arguments, num_classes=11):
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=num_classes, **arguments)
    for parameter in model.parameters():
        parameter.data.add_(torch.randn_like(parameter) * 0.1)
    return model.eval()


@pytest.mark.parametrize("name", originals)
def test_a_hub_folder_gives_the_logits_and_features_of_timm(name, tmp_path):
    original = perturbed(name, originals[name])
    save_for_hf(original, tmp_path, model_args=originals[name], safe_serialization=True)
    model = load_pretrained(tmp_path)
    images = torch.randn(2, 3, *model.backbone.image_size)
    with torch.no_grad():
        expected, tokens = original(images), original.forward_features(images)
        torch.testing.assert_close(model(images), expected, rtol=0, atol=1e-4)
        if tokens.ndim == 4:  # Swin: (B, height, width, C)
            tokens = tokens.flatten(1, 2)
        torch.testing.assert_close(model.features(images).tokens, tokens, rtol=0, atol=1e-4)
    assert not model.training


@pytest.mark.parametrize(
    "name", ["vit_tiny_patch16_224", "vit_small_patch14_reg4_dinov2", "swin_tiny_patch4_window7_224"]
)
def test_positions_are_resampled_as_timm_does(name, tmp_path):
    original = perturbed(name, originals[name])
    save_for_hf(original, tmp_path, model_args=originals[name], safe_serialization=True)
    size = {"vit_tiny_patch16_224": 80, "swin_tiny_patch4_window7_224": 112}.get(name, 84)
    arguments = originals[name] | {"img_size": size}
    resized = timm.create_model(name, num_classes=11, **arguments).eval()
    converter = swin_transformer if "swin" in name else vision_transformer
    resized.load_state_dict(converter.checkpoint_filter_fn(dict(original.state_dict()), resized))
    model = load_pretrained(tmp_path, image_size=size)
    assert model.backbone.image_size == (size, size)
    images = torch.randn(2, 3, size, size)
    with torch.no_grad():
        torch.testing.assert_close(model(images), resized(images), rtol=0, atol=1e-4)


def test_a_bare_file_needs_the_name_of_its_architecture(tmp_path):
    original = perturbed("vit_tiny_patch16_224", {})
    path = tmp_path / "weights.safetensors"
    save_file(original.state_dict(), path)
    with pytest.raises(CheckpointError, match="architecture="):
        load_pretrained(path)
    model = visattn.load_pretrained(path, "vit_tiny_patch16_224")
    images = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        torch.testing.assert_close(model(images), original(images), rtol=0, atol=1e-4)
    assert model.num_classes == 11
    assert model.preprocess.image_size == (224, 224)


def test_weights_that_miss_or_exceed_are_named(tmp_path):
    weights = perturbed("vit_tiny_patch16_224", {}).state_dict()
    del weights["blocks.3.attn.qkv.weight"]
    torch.save(weights, tmp_path / "weights.pth")
    with pytest.raises(CheckpointError, match=r"1 weights are missing: .*blocks\.3\.attn\.qkv\.weight"):
        load_pretrained(tmp_path / "weights.pth", "vit_tiny_patch16_224")


def test_a_headless_source_gives_features_and_says_what_it_cannot(tmp_path):
    original = perturbed("vit_small_patch14_dinov2", originals["vit_small_patch14_dinov2"], num_classes=0)
    arguments = originals["vit_small_patch14_dinov2"]
    save_for_hf(original, tmp_path, model_args=arguments, safe_serialization=True)
    model = load_pretrained(tmp_path)
    images = torch.randn(2, 3, 42, 42)
    with torch.no_grad():
        torch.testing.assert_close(model.features(images).pooled, original(images), rtol=0, atol=1e-4)
    with pytest.raises(ValueError, match="no classifier"):
        model(images)
    assert load_pretrained(tmp_path, num_classes=5)(images).shape == (2, 5)


def test_preprocess_equals_the_published_transform():
    from PIL import Image
    from timm.data import create_transform, resolve_data_config

    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (61, 83, 3), dtype=torch.uint8, generator=generator)
    picture = Image.fromarray(pixels.numpy()).resize((332, 244))
    for mode in ("center", "squash"):
        published = {"input_size": (3, 96, 96), "crop_pct": 0.9, "crop_mode": mode, "interpolation": "bicubic"}
        published |= {"mean": (0.5, 0.4, 0.3), "std": (0.2, 0.3, 0.4)}
        theirs = create_transform(**resolve_data_config(pretrained_cfg=published))(picture)
        torch.testing.assert_close(layout.preprocess_of(published, (96, 96))(picture), theirs, rtol=0, atol=1e-5)


def test_other_classes_of_timm_are_refused_by_name():
    with pytest.raises(CheckpointError, match="ResNet"):
        layout.build({"architecture": "resnet18"}, {}, "weights")
