import math

import pytest
import torch
from torch import nn

from visattn.attention import RelativePositionAttention
from visattn.backbones import BoTNet, botnet50, botnet_32
from visattn.backbones.botnet import AttentionLayer, EfficientChannelAttention
from visattn.backbones.residual import Place
from visattn.checkpoints import load_pretrained, save_pretrained
from visattn.heads import ImageClassifier
from visattn.interpret import attention_heatmap, attention_rollout, record_attention

small = {"widths": (16, 24, 32), "depths": (1, 2, 2), "stem_width": 8, "num_heads": 2}


def small_classifier(size):
    torch.manual_seed(0)
    model = ImageClassifier(botnet_32(size, **small), 5)
    for parameter in model.parameters():
        parameter.data.add_(torch.randn_like(parameter) * 0.1)
    return model.eval()


@pytest.mark.parametrize("last_stride", [1, 2])
def test_the_published_one_has_the_published_number_of_parameters(last_stride):
    with torch.device("meta"):
        model = ImageClassifier(botnet50(224, last_stride=last_stride), 1000)
    count = sum(parameter.numel() for parameter in model.parameters())
    assert math.floor(count / 1e5) / 10 == 20.8  # as the paper's 25.5 of ResNet-50, which has 25.557


def test_a_last_stage_that_keeps_its_stride_gives_the_map_of_that_stride():
    with torch.device("meta"):
        kept, halved = botnet50(224), botnet50(224, last_stride=2)
        images = torch.empty(2, 3, 224, 224)
        assert [feature_map.shape[1:] for feature_map in kept(images).maps] == [
            (256, 56, 56),
            (512, 28, 28),
            (2048, 14, 14),
        ]
    assert halved.strides == (4, 8, 16, 32)
    assert halved.channels == (256, 512, 1024, 2048)


def test_the_chosen_blocks_attend_on_the_maps_that_they_read():
    backbone = BoTNet(
        64, 4, (2, 3), (16, 24), attention_blocks=((1,), (0, 2)), num_heads=2, last_stride=2, bottleneck=0.5
    )
    attending = [
        (stage, block)
        for stage, blocks in enumerate(backbone.stages)
        for block, module in enumerate(blocks)
        if isinstance(module.spatial, AttentionLayer)
    ]
    assert attending == [(0, 1), (1, 0), (1, 2)]
    tables = [m.row_positions for m in backbone.modules() if isinstance(m, RelativePositionAttention)]
    assert [table.shape[0] for table in tables] == [31, 31, 15]  # sides of 16, 16 and 8 cells


def test_a_stride_of_attention_is_the_mean_of_what_was_attended():
    torch.manual_seed(0)
    layer = AttentionLayer(Place(0, 0, 6, 6, 2, (4, 5)), 2, None, 0.0, "relu").eval()
    layer.norm = nn.Identity()
    cells = torch.randn(2, 6, 4, 5)
    attended = layer.attention(cells.flatten(2).transpose(1, 2), (4, 5)).transpose(1, 2).unflatten(2, (4, 5))
    expected = torch.stack(
        [attended[:, :, y : y + 2, x : x + 2].mean((2, 3)) for y in (0, 2) for x in (0, 2, 4)], dim=2
    )
    torch.testing.assert_close(layer(cells), expected.relu().unflatten(2, (2, 3)))


def test_channel_attention_weighs_channels_by_the_means_of_their_neighbors():
    torch.manual_seed(0)
    module = EfficientChannelAttention(256)
    assert module.convolution.kernel_size == (5,)
    assert EfficientChannelAttention(64).convolution.kernel_size == (3,)
    cells = torch.randn(2, 256, 3, 5)
    means = torch.nn.functional.pad(cells.mean((2, 3)), (2, 2))
    gates = torch.stack([means[:, i : i + 5] @ module.convolution.weight[0, 0] for i in range(256)], dim=1)
    torch.testing.assert_close(module(cells), cells * gates.sigmoid()[:, :, None, None])


def test_presets_serve_small_and_large_images():
    with torch.device("meta"):
        assert botnet_32().strides == (2, 4, 8)
        assert botnet_32(224).strides == (4, 8, 16)


def test_a_saved_network_comes_back_and_fits_another_size(tmp_path):
    model = small_classifier(32)
    save_pretrained(model, tmp_path)
    loaded, fitted = load_pretrained(tmp_path), load_pretrained(tmp_path, image_size=(48, 40))
    assert fitted.backbone.image_size == (48, 40)
    images = torch.randn(2, 3, 48, 40)
    torch.testing.assert_close(loaded(images), model(images))
    torch.testing.assert_close(fitted(images), model(images), rtol=1e-4, atol=1e-5)


def test_its_attention_can_be_seen():
    model, images = small_classifier(32), torch.randn(2, 3, 32, 48)
    with torch.no_grad(), record_attention(model) as maps:
        recorded = model(images)
    assert [weights.shape for weights in maps.values()] == [(2, 2, n, n) for n in (8 * 12, 8 * 12, 4 * 6)]
    torch.testing.assert_close(recorded, model(images).detach(), rtol=1e-4, atol=1e-5)
    for show in (attention_heatmap, attention_rollout):
        shown = show(model, images)
        assert shown.shape == (2, 32, 48)
        assert shown.std() > 0


def test_compiled_networks_equal_eager_ones():
    model, images = small_classifier(32).backbone, torch.randn(2, 3, 40, 56)
    torch.compiler.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(images).pooled, model(images).pooled, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"depths": (1, 2)}, "attention_blocks .* depths are"),
        ({"attention_blocks": ((), (2,), ())}, "which of its blocks attend"),
        ({"widths": (16, 24)}, "3 depths don't fit 2 widths"),
        ({"num_heads": 5}, "5 heads don't divide"),
        ({"group_width": 3}, "are no groups of 3"),
        ({"channel_attention": "squeeze"}, "choose none or efficient"),
        ({"stem": "patch"}, "choose single, tiered or fine"),
        ({"patch_size": 6}, "choose a power of two"),
        ({"last_stride": 3}, "must be 1 or 2"),
        ({"activation": "tanh"}, "'tanh' is unknown"),
    ],
)
def test_what_does_not_fit_is_an_error(options, message):
    with pytest.raises(ValueError, match=message):
        botnet_32(32, **(small | options))
