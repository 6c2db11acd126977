import json
from functools import partial

import pytest
import timm
import torch
from timm.layers import LayerNorm, RmsNorm, SwiGLU, SwiGLUPacked
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import ParallelScalingBlock, ParallelThingsBlock, ResPostBlock
from timm.models.vision_transformer import VisionTransformer as TimmVisionTransformer
from torch import nn

from tests.backbones.timm_layout import perturb, vit_weights
from visattn.attention import MultiHeadAttention, NeighborhoodAttention
from visattn.backbones import LocalHybrid, VisionTransformer, vit_base, vit_local_tiny, vit_small, vit_tiny
from visattn.backbones.attention_kinds import attention_kinds
from visattn.backbones.embedding import PatchEmbedding, resample_positions
from visattn.backbones.layers import drop_path, drop_path_rates
from visattn.checkpoints import load_pretrained, save_pretrained
from visattn.heads import ImageClassifier
from visattn.interpret import record_attention

# Each group of models that timm builds from its class: timm's arguments, ours.
averaged = {"class_token": False, "pooling": "average"}
variants = {
    "vit": ({}, {}),
    "deit3": ({"no_embed_class": True, "init_values": 0.2}, {"prefix_positions": False, "layer_scale": 0.2}),
    "clip": (
        {"pre_norm": True, "norm_layer": partial(LayerNorm, eps=1e-5), "act_layer": "quick_gelu"},
        {"pre_norm": True, "patch_bias": False, "norm_eps": 1e-5, "activation": "quick_gelu"},
    ),
    "gap": (
        {"class_token": False, "global_pool": "avg", "fc_norm": False, "qkv_bias": False},
        averaged | {"qkv_bias": False},
    ),
    "gap_with_registers": (
        {"class_token": False, "global_pool": "avg", "reg_tokens": 4, "no_embed_class": True, "init_values": 0.3},
        averaged | {"final_norm": "after_pooling", "num_registers": 4, "prefix_positions": False, "layer_scale": 0.3},
    ),
    "eva": ({"global_pool": "avg"}, {"pooling": "average", "final_norm": "after_pooling"}),
    "max": ({"global_pool": "max"}, {"pooling": "max", "final_norm": "after_pooling"}),
    "avgmax_qk_norm": (
        {"global_pool": "avgmax", "qk_norm": True},
        {"pooling": "average_max", "final_norm": "after_pooling", "qk_norm": True},
    ),
    "dinov2_giant": (
        {
            "reg_tokens": 4,
            "no_embed_class": True,
            "init_values": 0.3,
            "mlp_layer": SwiGLUPacked,
            "act_layer": nn.SiLU,
            "mlp_ratio": 5.33334,
        },
        {
            "num_registers": 4,
            "prefix_positions": False,
            "layer_scale": 0.3,
            "mlp": "gated",
            "activation": "silu",
            "mlp_ratio": 5.33334 / 2,
        },
    ),
    "aimv2": (
        {
            "class_token": False,
            "global_pool": "avg",
            "fc_norm": False,
            "qkv_bias": False,
            "proj_bias": False,
            "act_layer": "silu",
            "mlp_layer": SwiGLU,
            "mlp_ratio": 2.75,
            "norm_layer": partial(RmsNorm, eps=1e-5),
            "embed_norm_layer": partial(RmsNorm, eps=1e-5),
        },
        averaged
        | {
            "qkv_bias": False,
            "projection_bias": False,
            "mlp_bias": False,
            "activation": "silu",
            "mlp": "gated",
            "mlp_ratio": 2.75,
            "norm": "rms",
            "norm_eps": 1e-5,
            "patch_norm": True,
        },
    ),
    "siglip": (
        {"class_token": False, "global_pool": "map", "act_layer": "gelu_tanh"},
        {"class_token": False, "pooling": "attention", "activation": "gelu_tanh"},
    ),
    "attention_pooling_of_registers": (
        {"class_token": False, "global_pool": "map", "pool_include_prefix": True, "reg_tokens": 1, "mlp_ratio": 2},
        {"class_token": False, "pooling": "attention", "pooling_prefix": True, "num_registers": 1, "mlp_ratio": 2},
    ),
    "beit3": (
        {"global_pool": "avg", "scale_attn_norm": True, "scale_mlp_norm": True},
        {"pooling": "average", "final_norm": "after_pooling", "sub_norm": True},
    ),
    "radio": (
        {"final_norm": False, "reg_tokens": 7, "no_embed_class": True},
        {"final_norm": "none", "num_registers": 7, "prefix_positions": False},
    ),
    "parallel": (
        {"block_fn": ParallelScalingBlock, "pre_norm": True, "qk_norm": True, "qkv_bias": False, "norm_layer": RmsNorm},
        {"block": "parallel", "pre_norm": True, "patch_bias": False, "qk_norm": True, "qkv_bias": False, "norm": "rms"},
    ),
    "parallel_with_bias": (
        {"block_fn": ParallelScalingBlock, "class_token": False, "global_pool": "avg", "init_values": 0.1},
        averaged | {"block": "parallel", "final_norm": "after_pooling", "layer_scale": 0.1},
    ),
    "post_norm": (
        {"block_fn": ResPostBlock, "class_token": False, "global_pool": "avg", "init_values": 1e-5, "qkv_bias": False},
        averaged | {"block": "post_norm", "final_norm": "after_pooling", "layer_scale": 1e-5, "qkv_bias": False},
    ),
    "twin": ({"block_fn": ParallelThingsBlock, "init_values": 0.1}, {"block": "twin", "layer_scale": 0.1}),
    "distilled": ({}, {"distillation_token": True}),
}


@pytest.mark.parametrize("name", variants)
def test_every_variant_equals_timm_at_its_own_and_at_other_sizes(name):
    torch.manual_seed(0)
    theirs, ours = variants[name]
    original = (VisionTransformerDistilled if name == "distilled" else TimmVisionTransformer)(
        img_size=32, patch_size=8, embed_dim=48, depth=3, num_heads=3, num_classes=11, dynamic_img_size=True, **theirs
    )
    perturb(original)
    model = ImageClassifier(VisionTransformer(32, 8, 48, 3, 3, **ours), 11).eval()
    model.load_state_dict(vit_weights(original))
    with torch.no_grad():
        for size in [(32, 32), (48, 56), (24, 16)]:
            images = torch.randn(2, 3, *size)
            torch.testing.assert_close(model(images), original(images), rtol=0, atol=1e-5)
            tokens = original.forward_features(images)
            torch.testing.assert_close(model.features(images).tokens, tokens, rtol=0, atol=3e-5)


@pytest.mark.parametrize(
    ("preset", "name"),
    [
        (vit_tiny, "vit_tiny_patch16_224"),
        (vit_small, "vit_small_patch16_224"),
        (vit_base, "vit_base_patch16_224"),
    ],
)
def test_presets_have_as_many_parameters_as_the_published_ones(preset, name):
    with torch.device("meta"):
        ours, theirs = ImageClassifier(preset(), 1000), timm.create_model(name)
    assert count(ours) == count(theirs)


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize("kind", attention_kinds)
@pytest.mark.parametrize("family", [VisionTransformer, LocalHybrid])
def test_every_kind_of_attention_fits_every_block(kind, family):
    torch.manual_seed(0)
    sizes = {"dim": 12, "depth": 2, "num_heads": 2, "class_token": False, "pooling": "average", "patch_size": 4}
    if family is LocalHybrid:
        sizes = {"dims": (12, 16), "depths": (1, 1), "num_heads": (2, 2), "patch_size": 4, "stem_dim": 8}
    options = {"window": {"window_size": 4}, "linformer": {"num_mixtures": 5}, "nystrom": {"num_landmarks": 5}}
    chosen = {kind: options[kind]} if kind in options else None
    model = family(32, attention=(kind, "global"), attention_options=chosen, kernel_size=3, **sizes)
    features = model(torch.randn(2, 3, 24, 40))
    features.pooled.square().sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    first = next(module for module in model.modules() if type(module) in attention_kinds.values())
    assert type(first) is attention_kinds[kind]
    for name, value in (chosen or {}).get(kind, {}).items():
        assert getattr(first, name, value) in (value, (value, value))
    twin = family(**json.loads(json.dumps(model.arguments)))
    twin.load_state_dict(model.state_dict())
    with record_attention(model.eval()) as maps:
        recorded = model(torch.ones(1, 3, 32, 32)).pooled
    torch.testing.assert_close(recorded, twin.eval()(torch.ones(1, 3, 32, 32)).pooled, rtol=1e-4, atol=1e-5)
    assert len(maps) == 2


def test_class_and_register_tokens_are_part_of_local_attention():
    torch.manual_seed(0)
    model = VisionTransformer(32, 4, 12, 2, 2, attention=("local", "global"), kernel_size=3, num_registers=2).eval()
    images = torch.randn(2, 3, 32, 32)
    with record_attention(model) as maps:
        recorded = model(images).pooled
    torch.testing.assert_close(recorded, model(images).pooled, rtol=1e-4, atol=1e-5)
    local, _ = maps.values()  # (2, heads, 3 + 64, 3 + 64)
    assert ((local > 0).sum(dim=-1)[:, :, 3:] == 3 + 9).all()
    with pytest.raises(ValueError, match="window attention has no place for 3"):
        VisionTransformer(32, 4, 12, 2, 2, attention=("window",), num_registers=2)


def test_a_linformer_fitted_to_another_size_computes_what_it_did_there_before(tmp_path):
    torch.manual_seed(0)
    backbone = VisionTransformer(
        16, 4, 12, 1, 2, attention=("linformer",), class_token=False, pooling="average", position="none"
    )
    model = ImageClassifier(backbone, 5).eval()
    save_pretrained(model, tmp_path)
    images = torch.randn(2, 3, 24, 32)
    fitted = load_pretrained(tmp_path, image_size=(24, 32))
    assert fitted.backbone.blocks[0].attention.key_mixture.shape == (64, 6, 8)
    torch.testing.assert_close(fitted(images), model(images), rtol=1e-4, atol=1e-5)


def test_options_of_a_kind_that_no_block_has_are_an_error():
    with pytest.raises(ValueError, match="attention_options of window"):
        VisionTransformer(32, 4, 12, 1, 2, attention_options={"window": {"window_size": 4}})


def test_attention_kinds_follow_the_pattern_over_depth():
    backbone = VisionTransformer(
        32, 4, 16, 7, 2, attention=("local", "local", "global"), kernel_size=(3, 5, 7), dilation=(1, 2), **averaged
    )
    kinds = [type(block.attention) for block in backbone.blocks]
    local, whole = NeighborhoodAttention, MultiHeadAttention
    assert kinds == [local, local, whole, local, local, whole, local]


def test_a_local_network_sees_only_the_neighborhood():
    torch.manual_seed(0)
    backbone = VisionTransformer(36, 4, 16, 2, 2, attention=("local",), kernel_size=3, **averaged).eval()
    images = torch.randn(1, 3, 36, 36)
    changed = images.clone()
    changed[..., 16:20, 16:20] += 1  # the patch at row 4, column 4 of 9 x 9
    with torch.no_grad():
        seen = (backbone(images).maps[0] - backbone(changed).maps[0]).abs().sum(dim=(0, 1)) > 0
    expected = torch.zeros(9, 9, dtype=torch.bool)
    expected[2:7, 2:7] = True  # two blocks, each reaching one token further
    assert torch.equal(seen, expected)


def test_local_presets_serve_small_and_large_images():
    assert vit_local_tiny(32).strides == (4,)
    assert vit_local_tiny(224).strides == (16,)
    assert vit_tiny(32).grid == (8, 8)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"attention": ("axial",)}, "no place"),
        ({"attention": ("near",)}, "no pattern of global, local"),
        ({"attention": ()}, "no pattern"),
        ({"class_token": False}, "needs class_token=True"),
        ({"pooling": "mean"}, "choose one of token, average"),
        ({"block": "serial"}, "choose one of transformer"),
        ({"stem": "cnn"}, "choose one of patch"),
        ({"norm": "group"}, "choose layer, rms, batch or none"),
        ({"mlp": "swiglu"}, "choose plain or gated"),
        ({"activation": "swish"}, "choose one of gelu"),
        ({"num_heads": 5}, "dim 24 is not divisible by num_heads 5"),
        ({"stem": "convolution", "patch_size": 6}, "choose a power of two"),
    ],
)
def test_errors_say_what_is_allowed(arguments, message):
    with pytest.raises(ValueError, match=message):
        VisionTransformer(**{"image_size": 32, "patch_size": 8, "dim": 24, "depth": 1, "num_heads": 3} | arguments)


def test_patchify_is_the_convolution_it_stands_for():
    embedding = PatchEmbedding(3, 7, patch_size=5)
    images = torch.randn(2, 3, 25, 35)
    expected = embedding.projection(images).flatten(2).transpose(1, 2)
    tokens, grid = embedding(images)
    assert grid == (5, 7)
    torch.testing.assert_close(tokens, expected, rtol=1e-4, atol=1e-5)


def test_positions_of_the_same_grid_stay_as_they_are():
    positions = torch.randn(1, 2 + 3 * 5, 7)
    assert resample_positions(positions, (3, 5), (3, 5)) is positions
    resampled = resample_positions(positions, (3, 5), (11, 13))
    assert resampled.shape == (1, 2 + 11 * 13, 7)
    assert torch.equal(resampled[:, :2], positions[:, :2])


def test_drop_path_keeps_the_mean_and_drops_whole_samples():
    torch.manual_seed(0)
    dropped = drop_path(torch.ones(4096, 3), 0.25)
    assert dropped.unique().tolist() == pytest.approx([0, 1 / 0.75])
    assert torch.equal(dropped[:, 0], dropped[:, 2])
    assert dropped.mean().item() == pytest.approx(1, abs=0.03)
    assert drop_path_rates(0.3, 4) == pytest.approx([0, 0.1, 0.2, 0.3])
    assert drop_path_rates(0.3, 1) == [0]


def test_sinusoidal_positions_begin_alike_along_both_axes_and_are_learned():
    backbone = VisionTransformer(
        24, 4, 18, 1, 2, position="sinusoidal", class_token=False, pooling="average"
    )  # 6x6 cells; 4 doesn't divide 18
    table = backbone.position_embedding.detach()[0].unflatten(0, (6, 6))  # (height, width, dim)
    assert backbone.position_embedding.requires_grad
    torch.testing.assert_close(table[2, 5, :8], table[2, 0, :8])  # the rows' half
    torch.testing.assert_close(table[2, 5, 8:16], table[0, 5, 8:16])  # the columns' half
    torch.testing.assert_close(table[3, 0, :8], table[0, 3, 8:16])
    assert table[..., 16:].abs().max() == 0
    assert len(table.flatten(0, 1).unique(dim=0)) == 36
