"""timm's MaxxVit networks, and what it builds from the same class but visattn doesn't."""

import pytest
import timm
import torch
from timm.models import maxxvit, save_for_hf

from visattn.checkpoints import CheckpointError, load_pretrained
from visattn.checkpoints import timm as layout
from visattn.checkpoints.maxvit import maxvit_backbone

sizes = {"img_size": 64, "embed_dim": (32, 64), "depths": (2, 1), "stem_width": (8, 16)}
windows = sizes | {"transformer_window_size": (4, 4)}
# timm's name and arguments that make it small: one of each way in which its networks differ.
originals = {
    "maxvit_tiny_tf_224": windows | {"block_type": ("M", "M"), "head_hidden_size": 24},
    "maxvit_tiny_rw_224": windows | {"block_type": ("M", "M")},
    "maxvit_rmlp_small_rw_224": windows | {"block_type": ("M", "M"), "transformer_rel_pos_dim": 16},
    "maxvit_rmlp_base_rw_224": windows | {"block_type": ("M", "M"), "transformer_use_nchw_attn": True},
    "coatnet_0_224": sizes | {"embed_dim": (32, 64, 96), "depths": (1, 2, 2), "block_type": ("C", "C", "T")},
    "coatnet_nano_rw_224": sizes | {"block_type": ("C", "T")},
    "coatnet_0_rw_224": sizes | {"block_type": ("C", "T")},
    "coatnet_3_rw_224": sizes | {"block_type": ("C", "T")},
    "coatnet_bn_0_rw_224": sizes | {"block_type": ("C", "T")},
    "coatnet_rmlp_1_rw_224": sizes | {"block_type": ("C", "T"), "transformer_rel_pos_dim": 16},
    "coatnet_rmlp_2_rw_224": sizes | {"block_type": ("C", "T"), "transformer_rel_pos_dim": 16},
    "coatnet_nano_cc_224": sizes | {"depths": (1, 3), "block_type": ("C", ("C", "T"))},
}


def perturbed(name, arguments):
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=11, **arguments)
    for parameter in model.parameters():
        parameter.data.add_(torch.randn_like(parameter) * 0.1)
    for buffer_name, buffer in model.named_buffers():
        if "running" in buffer_name:
            buffer.add_(torch.rand_like(buffer) * 0.5)
    return model.eval()


def check(model, original, size):
    images = torch.randn(2, 3, *size)
    with torch.no_grad():
        expected, maps = original(images), original.forward_features(images)
        torch.testing.assert_close(model(images), expected, rtol=0, atol=1e-4)
        features = model.features(images)
    torch.testing.assert_close(model(images).detach(), expected, rtol=0, atol=1e-4)  # norms not folded
    torch.testing.assert_close(features.maps[-1], maps, rtol=1e-4, atol=1e-4)
    assert expected.std() > 0.1


@pytest.mark.parametrize("name", originals)
def test_a_hub_folder_gives_the_logits_and_features_of_timm(name, tmp_path):
    original = perturbed(name, originals[name])
    save_for_hf(original, tmp_path, model_args=originals[name], safe_serialization=True)
    model = load_pretrained(tmp_path)
    assert not model.training
    check(model, original, (64, 64))


@pytest.mark.parametrize("name", ["maxvit_tiny_tf_224", "maxvit_rmlp_small_rw_224"])
def test_windows_serve_other_image_sizes(name, tmp_path):
    original = perturbed(name, originals[name])
    save_for_hf(original, tmp_path, model_args=originals[name], safe_serialization=True)
    check(load_pretrained(tmp_path), original, (96, 32))


@pytest.mark.filterwarnings("ignore::UserWarning:timm")  # of how it resamples
@pytest.mark.parametrize("name", ["maxvit_tiny_tf_224", "coatnet_0_224", "coatnet_rmlp_2_rw_224"])
def test_positions_are_resampled_as_timm_does(name, tmp_path):
    original = perturbed(name, originals[name])
    save_for_hf(original, tmp_path, model_args=originals[name], safe_serialization=True)
    arguments = originals[name] | {"img_size": 96}
    resized = timm.create_model(name, num_classes=11, **arguments).eval()
    resized.load_state_dict(maxxvit.checkpoint_filter_fn(dict(original.state_dict()), resized))
    model = load_pretrained(tmp_path, image_size=96)
    assert model.backbone.image_size == (96, 96)
    check(model, resized, (96, 96))


refused = ("maxxvit", "coatnext", "maxvit_tiny_pm")
built = [
    name
    for name in timm.list_models(module="maxxvit")
    if not name.startswith(refused) and not name.endswith(("_384", "_512"))
]


@pytest.mark.parametrize("name", built)
def test_every_variant_has_the_weights_of_timm(name):
    with torch.device("meta"):
        original = timm.create_model(name, num_classes=0)
        backbone = maxvit_backbone(original, name)
    count, expected = (sum(parameter.numel() for parameter in one.parameters()) for one in (backbone, original))
    assert count == expected


def test_most_variants_are_built():
    assert len(built) >= 30


@pytest.mark.parametrize("name", ["maxxvit_rmlp_nano_rw_256", "maxxvitv2_nano_rw_256", "coatnext_nano_rw_224"])
def test_blocks_of_convnext_are_refused_by_name(name):
    with pytest.raises(CheckpointError, match=rf"{name}: timm's blocks of type ConvNeXtBlock has no counterpart"):
        layout.build({"architecture": name}, {}, name)


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        ({"block_type": ("PM",) * 2}, "blocks of type ParallelMaxxVitBlock"),
        ({"block_type": ("M", "T")}, "MaxxVitBlock beside other blocks"),
        ({"transformer_no_block_attn": True}, "blocks without attention within windows"),
        ({"conv_attn_layer": "eca"}, "channel attention of type EcaModule"),
        ({"conv_kernel_size": 5}, "inverted bottleneck without depthwise 3x3 convolutions"),
        ({"conv_stride_mode": "1x1"}, "stride of the first 1x1 convolution"),
        ({"conv_pool_type": "avg"}, "pooling by AvgPool2d"),
        ({"conv_act_layer": "hard_swish"}, "activation Hardswish"),
        ({"global_pool": "max"}, "pooling 'max'"),
    ],
)
def test_parts_without_counterpart_are_refused_by_name(arguments, part):
    config = {"architecture": "maxvit_tiny_rw_224", "model_args": windows | {"block_type": ("M", "M")} | arguments}
    with pytest.raises(CheckpointError, match=f"weights: timm's {part}"):
        layout.build(config, {}, "weights")
