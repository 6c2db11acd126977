"""Networks of timm keep the contract of backbones and compute what timm computes."""

import pytest
import timm
import torch

from visattn.backbones import TimmBackbone

small_networks = {
    "resnet": lambda size: TimmBackbone("test_resnet", size),
    "efficientnet": lambda size: TimmBackbone("test_efficientnet", size),
    "convnext": lambda size: TimmBackbone("test_convnext", size),
    "vit": lambda size: TimmBackbone("test_vit", size, dynamic_img_size=True, dynamic_img_pad=True),
    "swin": lambda size: TimmBackbone(
        "swin_tiny_patch4_window7_224",
        size,
        embed_dim=12,
        depths=(1, 1, 2, 1),
        num_heads=(1, 2, 3, 4),
        window_size=2,
        strict_img_size=False,
    ),
    "class tokens": lambda size: TimmBackbone("coat_lite_tiny", size),  # of which timm doesn't tell the number
}


@pytest.fixture(params=small_networks)
def make(request):
    torch.manual_seed(0)
    return small_networks[request.param]


def test_features_describe_the_image(make):
    size = (64, 96)
    backbone = make(size).eval()
    features = backbone(torch.randn(5, 3, *size))
    assert len(features.maps) == len(backbone.channels) == len(backbone.strides)
    for feature_map, channels, stride in zip(features.maps, backbone.channels, backbone.strides, strict=True):
        assert feature_map.shape == (5, channels, -(-size[0] // stride), -(-size[1] // stride))
    assert list(backbone.strides) == sorted(set(backbone.strides))
    cells = features.maps[-1].shape[2] * features.maps[-1].shape[3]
    assert features.tokens.shape == (5, backbone.num_prefix_tokens + cells, backbone.channels[-1])
    assert features.pooled.shape == (5, backbone.num_features)
    tokens = features.tokens[:, backbone.num_prefix_tokens :]
    torch.testing.assert_close(features.maps[-1].flatten(2).transpose(1, 2), tokens)


@pytest.mark.parametrize("kind", ["resnet", "efficientnet", "convnext", "vit"])
def test_images_of_other_sizes_work(kind):
    backbone = small_networks[kind](64).eval()
    for size in ((41, 61), (67, 83), (32, 97)):
        if kind == "convnext":  # its patches have no padding
            size = tuple(side // 32 * 32 for side in size)
        features = backbone(torch.randn(2, 3, *size))
        for feature_map, stride in zip(features.maps, backbone.strides, strict=True):
            assert feature_map.shape[2:] == (-(-size[0] // stride), -(-size[1] // stride))


@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet", "test_vit", "mobilenetv3_small_050"])
def test_a_linear_layer_on_the_pooled_features_is_the_classifier_of_timm(name):
    torch.manual_seed(0)
    original = timm.create_model(name, num_classes=7, in_chans=1).eval()
    backbone = TimmBackbone(name, original.pretrained_cfg["input_size"][-1], in_channels=1).eval()
    backbone.network.load_state_dict(original.state_dict(), strict=False)
    images = torch.randn(2, 1, *backbone.image_size)
    logits = original.get_classifier()(backbone(images).pooled)
    torch.testing.assert_close(logits, original(images), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet", "test_convnext"])
def test_maps_are_those_of_features_only(name):
    torch.manual_seed(0)
    original = timm.create_model(name, features_only=True).eval()
    backbone = TimmBackbone(name, 64).eval()
    weights = {
        key.replace("stages_", "stages.").replace("stem_", "stem."): value
        for key, value in original.state_dict().items()
    }
    problem = backbone.network.load_state_dict(weights, strict=False)
    assert not problem.unexpected_keys
    images = torch.randn(2, 3, 64, 64)
    expected = original(images)[-len(backbone.strides) :]
    for ours, theirs in zip(backbone(images).maps, expected, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_levels_can_be_chosen():
    torch.manual_seed(0)
    every, two = TimmBackbone("test_resnet", 64), TimmBackbone("test_resnet", 64, out_indices=[-3, 4])
    assert (two.strides, two.channels) == ((8, 32), (every.channels[2], every.channels[4]))
    two.load_state_dict(every.state_dict())
    images = torch.randn(2, 3, 64, 64)
    finer, last = two.eval()(images).maps
    torch.testing.assert_close(finer, every.eval()(images).maps[2])
    torch.testing.assert_close(last, every(images).maps[4])
    for unfit in ((0, 1), (4, 0), (3, 3, 4), (-9, 4), ()):
        with pytest.raises(ValueError, match=r"must rise and end with 4, .* strides are 2, 4, 8, 16, 32"):
            TimmBackbone("test_resnet", 64, out_indices=unfit)


def test_arguments_rebuild_the_same_architecture(make):
    backbone = make([64, 64]).eval()
    twin = type(backbone)(**backbone.arguments).eval()
    twin.load_state_dict(backbone.state_dict())
    images = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(twin(images).pooled, backbone(images).pooled, rtol=0, atol=0)
    assert twin.arguments == backbone.arguments
    assert twin.arguments["image_size"] == (64, 64)


def test_layers_cover_all_depths_in_the_order_of_the_forward_pass(make):
    backbone = make(64)
    layers = {name: backbone.layer_of(name) for name, _ in backbone.named_parameters()}
    assert set(layers.values()) == set(range(backbone.num_layers))
    assert backbone.num_layers > 4
    first = next(iter(layers))  # the stem's
    assert layers[first] == 0
    blocks = [layer for name, layer in layers.items() if "block" in name or "stages" in name]
    assert blocks == sorted(blocks)


def test_a_network_whose_layers_timm_does_not_tell_apart_is_one_layer():
    with torch.device("meta"):
        backbone = TimmBackbone("caformer_s18", 64)
    assert {backbone.layer_of(name) for name, _ in backbone.named_parameters()} == {0}
    assert backbone.num_layers == 1


def test_every_parameter_learns(make):
    backbone = make(64).train()
    features = backbone(torch.randn(4, 3, 64, 64))
    (features.pooled.square().sum() + sum(feature_map.square().sum() for feature_map in features.maps)).backward()
    assert [name for name, parameter in backbone.named_parameters() if parameter.grad is None] == []


def test_images_of_a_batch_do_not_touch_each_other(make):
    backbone = make(64).eval()
    images = torch.randn(3, 3, 64, 64)
    alone = torch.cat([backbone(image[None]).pooled for image in images])
    torch.testing.assert_close(backbone(images).pooled, alone, rtol=1e-4, atol=1e-5)


def test_randomness_belongs_to_training_alone():
    backbone = TimmBackbone("test_vit", 64, drop_path_rate=0.5).train()
    images = torch.randn(4, 3, 64, 64)
    assert not torch.equal(backbone(images).pooled, backbone(images).pooled)
    backbone.eval()
    assert torch.equal(backbone(images).pooled, backbone(images).pooled)


def test_channels_last_changes_memory_alone(make):
    backbone = make(64).eval()
    images = torch.randn(2, 3, 64, 64)
    expected = backbone(images).pooled
    backbone.to(memory_format=torch.channels_last)
    pooled = backbone(images.to(memory_format=torch.channels_last)).pooled
    torch.testing.assert_close(pooled, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"architecture": "resnt18"}, "knows no architecture 'resnt18'; did you mean resnet18"),
        ({"architecture": "hf-hub:timm/resnet18"}, "knows no architecture"),
        ({"architecture": "qqqqqqqq"}, r"timm\.list_models\(\) names all"),
        ({"architecture": "test_resnet", "stem": "deep"}, r"builds no test_resnet with image_size=.*stem='deep': "),
        ({"architecture": "test_resnet", "drop_path_rate": object()}, "option drop_path_rate must be plain data"),
        (
            {"architecture": "test_convnext", "image_size": 70},
            "a map of 17x17 cells of 70x70 pixels, and stride 4 .* 18x18",
        ),
        (
            {"architecture": "test_vit", "image_size": 70},
            "gives no feature maps of 70x70 pixels: .* divisible by patch",
        ),
        ({"architecture": "efficientformer_l1", "image_size": 256}, "gives no feature maps of 256x256 pixels"),
        ({"architecture": "pit_ti_224"}, r"final features \(1, 1, 256\) that are no map of 49 cells"),
    ],
)
def test_what_timm_cannot_build_is_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        TimmBackbone(**arguments)


@pytest.mark.parametrize("option", [{"pretrained": True}, {"checkpoint_path": "weights.pth"}, {"num_classes": 3}])
def test_a_configuration_can_fetch_no_weights(option):
    with pytest.raises(ValueError, match=f"option {next(iter(option))} of timm.create_model is not for a backbone"):
        TimmBackbone("test_resnet", **option)


def test_frozen_norms_keep_their_statistics_in_training():
    backbone = TimmBackbone("test_resnet", 64, frozen_norms=True).train()
    before = {name: tensor.clone() for name, tensor in backbone.state_dict().items()}
    backbone(torch.randn(2, 3, 64, 64)).pooled.sum().backward()
    assert all(torch.equal(before[name], tensor) for name, tensor in backbone.state_dict().items())
    trained = {name for name, parameter in backbone.named_parameters() if parameter.grad is not None}
    assert trained == {name for name in before if before[name].ndim == 4}
    again = TimmBackbone(**backbone.arguments)
    assert not any(norm.training for norm in again.train().batch_norms())
    assert all(norm.training for norm in TimmBackbone("test_resnet", 64).batch_norms())
