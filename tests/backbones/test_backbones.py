"""The contract that every backbone keeps."""

import pytest
import torch

from visattn import backbones

small_models = {
    "vit": lambda size: backbones.vit_tiny(size, patch_size=8, dim=24, depth=2, num_registers=1),
    "vit_local": lambda size: backbones.vit_local_tiny(size, patch_size=8, dim=24, depth=4, num_heads=2, kernel_size=3),
    "swin": lambda size: backbones.swin_tiny(size, dim=12, depths=(2, 1, 2), num_heads=(1, 2, 3), window_size=3),
    "swin_v2": lambda size: backbones.swin_v2_32(
        size, dim=12, depths=(2, 1, 2), num_heads=(1, 2, 3), window_size=3, branch_scale=1.0
    ),
    "pvt_v2": lambda size: backbones.pvt_v2_32(
        size, dims=(16, 24, 32), depths=(1, 2, 1), num_heads=(1, 2, 4), mlp_ratios=(2, 2, 2), stem_dim=8
    ),
    "hiera": lambda size: backbones.hiera_32(size, dim=12, depths=(1, 2, 1), num_heads=(1, 2, 3), stem_dim=8),
    "vig": lambda size: backbones.vig_32(size, dims=(16, 24), depths=(1, 2), num_heads=(2, 3), reductions=(2, 1)),
    "vig of max_relative": lambda size: backbones.pyramid_vig_tiny(
        size, dims=(16, 24), depths=(1, 2), num_heads=(1, 1), reductions=(2, 1), pooled_dim=20
    ),
    "local_hybrid": lambda size: backbones.local_hybrid_tiny(
        size, dims=(16, 24), depths=(1, 2), num_heads=(2, 3), stem_dim=8, kernel_size=3
    ),
    "dinat": lambda size: backbones.nat_mini(
        size, dim=12, depths=(2, 1, 2), num_heads=(1, 2, 3), kernel_size=3, dilation=((1, 2), 1, (2, 1))
    ),
    "botnet": lambda size: backbones.botnet_32(size, widths=(16, 24, 32), depths=(1, 2, 2), stem_width=8, num_heads=2),
    "botnet of stride 1": lambda size: backbones.botnet50(
        size,
        widths=(16, 24, 32),
        depths=(1, 2, 1),
        attention_blocks=((), (0,), (0,)),
        num_heads=2,
        stem="tiered",
        stem_width=16,
        group_width=2,
        channel_attention="efficient",
    ),
    "augmented_resnet": lambda size: backbones.augmented_resnet_32(
        size, widths=(16, 24, 32), depths=(1, 2, 1), stem_width=8, num_heads=2, augmented_stages=(1, 2)
    ),
    "bottlenecks of augmented_resnet": lambda size: backbones.augmented_resnet50(
        size, widths=(32, 48), depths=(1, 2), num_heads=2, augmented_stages=(0, 1), value_ratio=1.0, min_key_dim=3
    ),
    "cct": lambda size: backbones.cct_14_7x2(size, patch_size=8, dim=24, depth=2, num_heads=2),
    "maxvit": lambda size: backbones.maxvit_32(
        size, dims=(16, 24), depths=(2, 1), stem_dims=(8, 16), head_dim=8, window_size=3
    ),
    "coatnet": lambda size: backbones.coatnet_32(
        size, dims=(16, 24, 32), depths=(1, 2, 1), stem_dims=(8, 16), head_dim=8
    ),
}


@pytest.fixture(params=small_models)
def make(request):
    torch.manual_seed(0)
    return small_models[request.param]


@pytest.mark.parametrize("trained_size", [32, (67, 83)])
@pytest.mark.parametrize("size", [(32, 32), (41, 61), (67, 83), (8, 97)])
def test_features_describe_images_of_any_size(make, trained_size, size):
    backbone = make(trained_size).eval()
    features = backbone(torch.randn(5, 3, *size))
    assert len(features.maps) == len(backbone.channels) == len(backbone.strides)
    for feature_map, channels, stride in zip(features.maps, backbone.channels, backbone.strides, strict=True):
        assert feature_map.shape == (5, channels, -(-size[0] // stride), -(-size[1] // stride))
    assert list(backbone.strides) == sorted(backbone.strides)
    cells = features.maps[-1].shape[2] * features.maps[-1].shape[3]
    assert features.tokens.shape == (5, backbone.num_prefix_tokens + cells, backbone.channels[-1])
    assert features.pooled.shape == (5, backbone.num_features)


def test_the_last_map_holds_the_tokens_in_reading_order(make):
    backbone = make(32).eval()
    features = backbone(torch.randn(2, 3, 40, 56))
    tokens = features.tokens[:, backbone.num_prefix_tokens :]
    torch.testing.assert_close(features.maps[-1].flatten(2).transpose(1, 2), tokens)


def test_arguments_rebuild_the_same_architecture(make):
    backbone = make(40).eval()
    twin = type(backbone)(**backbone.arguments).eval()
    twin.load_state_dict(backbone.state_dict())
    images = torch.randn(2, 3, 40, 40)
    torch.testing.assert_close(twin(images), backbone(images), rtol=0, atol=0)
    assert twin.arguments == backbone.arguments


def test_arguments_are_plain_data(make):
    def is_plain(value):
        if isinstance(value, tuple):
            return all(is_plain(item) for item in value)
        return value is None or isinstance(value, (bool, int, float, str))

    assert all(is_plain(value) for value in make([32, 48]).arguments.values())


def test_layers_cover_all_depths_in_the_order_of_the_forward_pass(make):
    backbone = make(32)
    layers = [backbone.layer_of(name) for name, _ in backbone.named_parameters()]
    assert set(layers) == set(range(backbone.num_layers))
    block_layers = {
        name.split("attention")[0]: backbone.layer_of(name)
        for name, _ in backbone.named_parameters()
        if name.endswith(("attention.qkv.weight", "attention.query.weight"))
    }
    assert list(block_layers.values()) == sorted(block_layers.values())  # of a block several, or none
    for name, _ in backbone.named_parameters():
        for prefix, layer in block_layers.items():
            assert not name.startswith(prefix) or backbone.layer_of(name) == layer


def test_images_of_a_batch_do_not_touch_each_other(make):
    backbone = make(32).eval()
    images = torch.randn(3, 3, 32, 32)
    alone = torch.cat([backbone(image[None]).pooled for image in images])
    torch.testing.assert_close(backbone(images).pooled, alone, rtol=1e-4, atol=1e-5)


def test_every_parameter_learns(make):
    backbone = make(32).train()
    features = backbone(torch.randn(2, 3, 32, 32))
    (features.pooled.square().sum() + sum(feature_map.square().sum() for feature_map in features.maps)).backward()
    assert [name for name, parameter in backbone.named_parameters() if parameter.grad is None] == []


@pytest.mark.parametrize("option", ["dropout", "attention_dropout", "drop_path"])
def test_randomness_belongs_to_training_alone(make, option):
    plain = make(32)
    if option == "dropout" and option not in plain.arguments:
        pytest.skip("it has no MLP to drop from")
    if option == "attention_dropout" and plain.arguments.get("aggregation") == "max_relative":
        pytest.skip("it has no weights to drop")
    backbone = type(plain)(**plain.arguments | {option: 0.5})
    images = torch.randn(4, 3, 32, 32)
    assert not torch.equal(backbone(images).pooled, backbone(images).pooled)
    backbone.eval()
    assert torch.equal(backbone(images).pooled, backbone(images).pooled)


def test_half_precision_stays_close(make):
    backbone = make(32).eval()
    images = torch.randn(2, 3, 32, 32)
    exact = backbone(images).pooled
    rounded = backbone.bfloat16()(images.bfloat16()).pooled
    assert rounded.dtype == torch.bfloat16
    torch.testing.assert_close(rounded.float(), exact, rtol=0.1, atol=0.1)


def test_eager_and_no_grad_agree(make):
    backbone = make(32).eval()
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        pooled = backbone(images).pooled
    torch.testing.assert_close(pooled, backbone(images).pooled)


def test_channels_last_changes_memory_alone(make):
    backbone = make(32).eval()
    images = torch.randn(2, 3, 32, 48)
    expected = backbone(images).pooled
    backbone.to(memory_format=torch.channels_last)
    pooled = backbone(images.to(memory_format=torch.channels_last)).pooled
    torch.testing.assert_close(pooled, expected, rtol=1e-4, atol=1e-5)


def test_an_empty_batch_gives_empty_features(make):
    features = make(32).eval()(torch.randn(0, 3, 41, 61))
    assert len(features.pooled) == len(features.tokens) == len(features.maps[0]) == 0


@pytest.mark.parametrize("name", ["vit_local", "swin", "dinat"])
def test_compiled_networks_equal_eager_ones(name):
    torch.manual_seed(0)
    backbone, images = small_models[name](32), torch.randn(2, 3, 40, 56)
    torch.compiler.reset()
    compiled = torch.compile(backbone, fullgraph=True, backend="aot_eager")
    for training in (False, True):
        backbone.train(training)
        expected = backbone(images).pooled
        torch.testing.assert_close(compiled(images).pooled, expected, rtol=1e-4, atol=1e-5)


def test_drop_path_rises_with_depth_and_is_off_outside_training(make):
    torch.manual_seed(0)
    plain = make(32)
    backbone = type(plain)(**plain.arguments | {"drop_path": 0.9})
    rates = [module.drop_path for module in backbone.modules() if hasattr(module, "drop_path")]
    assert rates == sorted(rates)
    assert (rates[0], rates[-1]) == (0, pytest.approx(0.9))
    backbone.load_state_dict(plain.state_dict())
    images = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(backbone.eval()(images).pooled, plain.eval()(images).pooled, rtol=0, atol=0)
