import pytest
import timm
import torch
from timm.models.swin_transformer import SwinTransformer as TimmSwinTransformer
from transformers import SwinConfig, SwinModel

from tests.backbones.timm_layout import perturb, swin_weights
from visattn.backbones import SwinTransformer, swin_base, swin_small, swin_tiny
from visattn.heads import ImageClassifier


@pytest.mark.parametrize("window_size", [4, 7, (7, 7, 4)])
@pytest.mark.parametrize("size", [32, (64, 48), (48, 60), (28, 128)])
def test_outputs_equal_timm_padding_included(window_size, size):
    torch.manual_seed(0)
    options = {"depths": (2, 2, 2), "num_heads": (2, 4, 8), "window_size": window_size}
    original = perturb(TimmSwinTransformer(img_size=size, num_classes=11, embed_dim=24, **options))
    model = ImageClassifier(SwinTransformer(size, dim=24, **options), 11).eval()
    model.load_state_dict(swin_weights(original))
    images = torch.randn(2, 3, *((size, size) if isinstance(size, int) else size))
    with torch.no_grad():
        torch.testing.assert_close(model(images), original(images), rtol=0, atol=1e-5)
        tokens = original.forward_features(images).flatten(1, 2)
        torch.testing.assert_close(model.features(images).tokens, tokens, rtol=0, atol=3e-5)


def test_any_input_equals_a_network_built_for_that_size():
    torch.manual_seed(0)
    options = {"dim": 16, "depths": (2, 2), "num_heads": (1, 2), "window_size": 4}
    trained, built = SwinTransformer(32, **options).eval(), SwinTransformer((52, 76), **options).eval()
    built.load_state_dict(trained.state_dict())
    images = torch.randn(2, 3, 52, 76)
    torch.testing.assert_close(trained(images), built(images))


@pytest.mark.parametrize("size", [(56, 56), (44, 60)])
def test_padding_before_the_shift_equals_transformers(size):
    torch.manual_seed(0)
    config = SwinConfig(
        image_size=56, patch_size=4, embed_dim=16, depths=[2, 2], num_heads=[1, 2], window_size=5, drop_path_rate=0.0
    )
    original = perturb(SwinModel(config, add_pooling_layer=False))
    model = SwinTransformer(56, 4, 16, (2, 2), (1, 2), window_size=5, padding="before_shift").eval()
    model.load_state_dict(weights_of_transformers(original, window_size=5))
    images = torch.randn(2, 3, *size)
    with torch.no_grad():
        torch.testing.assert_close(model(images).tokens, original(images).last_hidden_state, rtol=0, atol=3e-5)


def weights_of_transformers(model, window_size):
    """The weights of a SwinModel under our names."""
    theirs, weights = model.state_dict(), {}
    for part, ours in [("patch_embeddings.projection", "projection"), ("norm", "norm")]:
        for kind in ("weight", "bias"):
            weights[f"patch_embedding.{ours}.{kind}"] = theirs[f"embeddings.{part}.{kind}"]
    for index, stage in enumerate(model.encoder.layers):
        if index:
            merging = model.encoder.layers[index - 1].downsample
            weights |= {f"stages.{index}.downsample.{key}": value for key, value in merging.state_dict().items()}
        for number, block in enumerate(stage.blocks):
            prefix, parts = f"stages.{index}.blocks.{number}", dict(block.named_parameters())

            def take(pattern, parts=parts):
                (value,) = [value for key, value in parts.items() if key.endswith(pattern)]
                return value.data

            for kind in ("weight", "bias"):
                for ours, pattern in [
                    ("norm1", f"layernorm_before.{kind}"),
                    ("norm2", f"layernorm_after.{kind}"),
                    ("attention.projection", f"o_proj.{kind}"),
                    ("mlp.fc1", f"fc1.{kind}"),
                    ("mlp.fc2", f"fc2.{kind}"),
                ]:
                    weights[f"{prefix}.{ours}.{kind}"] = take(pattern)
                qkv = [take(f"{name}.{kind}") for name in ("q_proj", "k_proj", "v_proj")]
                weights[f"{prefix}.attention.qkv.{kind}"] = torch.cat(qkv)
            table = take("relative_position_bias_table")
            weights[f"{prefix}.attention.relative_position_bias"] = table.T.unflatten(
                1, (2 * window_size - 1, 2 * window_size - 1)
            )
    return weights | {f"norm.{kind}": theirs[f"layernorm.{kind}"] for kind in ("weight", "bias")}


@pytest.mark.parametrize(
    ("preset", "name"),
    [
        (swin_tiny, "swin_tiny_patch4_window7_224"),
        (swin_small, "swin_small_patch4_window7_224"),
        (swin_base, "swin_base_patch4_window7_224"),
    ],
)
def test_presets_have_as_many_parameters_as_the_published_ones(preset, name):
    with torch.device("meta"):
        ours, theirs = ImageClassifier(preset(), 1000), timm.create_model(name)
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in theirs.parameters())


def test_small_images_keep_a_map_of_useful_size():
    assert swin_tiny(32).strides == (2, 4, 8, 16)
    assert swin_tiny(224).strides == (4, 8, 16, 32)


def test_errors_say_what_disagrees():
    with pytest.raises(ValueError, match="differ in stages"):
        SwinTransformer(32, depths=(2, 2), num_heads=(1, 2, 3))
    with pytest.raises(ValueError, match="choose after_shift or before_shift"):
        SwinTransformer(32, padding="none")
