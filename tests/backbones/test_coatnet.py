import pytest
import timm
import torch

from visattn import load_pretrained
from visattn.backbones import CoAtNet, coatnet_0, coatnet_32
from visattn.checkpoints import save_pretrained
from visattn.heads import ImageClassifier
from visattn.interpret import record_attention

tiny = {"dims": (16, 24, 32), "depths": (1, 3, 1), "layout": ("C", "CT", "T"), "stem_dims": (8, 16), "head_dim": 8}


def test_the_preset_has_as_many_parameters_as_the_published_network():
    with torch.device("meta"):
        ours, theirs = ImageClassifier(coatnet_0(), 1000), timm.create_model("coatnet_0_224")
    counts = [sum(parameter.numel() for parameter in model.parameters()) for model in (ours, theirs)]
    assert counts[0] == counts[1]
    assert round(counts[0] / 1e6) == 25  # million, as published


def test_small_images_keep_a_map_of_useful_size():
    assert coatnet_32().strides == (2, 4, 8)
    assert coatnet_0(32).strides == (2, 4, 8, 16)
    assert coatnet_0(224).strides == (4, 8, 16, 32)


def test_the_last_letter_of_a_layout_goes_on_to_the_end_of_the_stage():
    model = CoAtNet(32, 2, **tiny).eval()
    kinds = [type(block).__name__ for stage in model.stages for block in stage]
    assert kinds == ["MobileConvolution", "MobileConvolution", "HalvingBlock", "HalvingBlock", "HalvingBlock"]
    with record_attention(model) as maps:
        model(torch.randn(2, 3, 32, 32))
    assert [tuple(weights.shape) for weights in maps.values()] == [(2, 3, 64, 64), (2, 3, 64, 64), (2, 4, 16, 16)]


@pytest.mark.parametrize(("widen", "shape"), [("heads", (3 * 32, 24)), ("projection", (3 * 24, 24))])
def test_a_stage_widens_in_its_heads_or_behind_them(widen, shape):
    attention = CoAtNet(32, 2, **tiny, widen=widen).stages[2][0].attention
    assert attention.qkv.weight.shape == shape
    assert attention.projection.out_features == 32


@pytest.mark.parametrize("options", [{}, {"bias_hidden_dim": 8, "pooled_dim": 20, "norm": "batch", "layer_scale": 0.1}])
@pytest.mark.parametrize("size", [(48, 40), (24, 56)])
def test_a_saved_network_comes_back_for_another_image_size(options, size, tmp_path):
    torch.manual_seed(0)
    model = ImageClassifier(CoAtNet(32, 2, **tiny, **options), 5).eval()
    save_pretrained(model, tmp_path)
    images = torch.randn(2, 3, *size)
    loaded = load_pretrained(tmp_path, image_size=size)
    assert loaded.backbone.grid_of(1) == (size[0] // 4, size[1] // 4)
    assert loaded(images).shape == (2, 5)
    if "bias_hidden_dim" in options:  # a function of distance needs no resampling
        torch.testing.assert_close(loaded(images), model(images))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layout": ("C", "T")}, r"layout \('C', 'T'\) should name the blocks of 3 stages by C and T"),
        ({"layout": ("C", "T", "")}, "should name the blocks of 3 stages"),
        ({"layout": ("C", "T", "X")}, "should name the blocks of 3 stages"),
        ({"widen": "both"}, "widen 'both' is unknown; choose heads or projection"),
        ({"depths": (1, 1)}, r"differ in stages"),
        ({"patch_size": 3}, "choose 2, 4 or 8"),
    ],
)
def test_what_does_not_fit_is_an_error(options, message):
    with pytest.raises(ValueError, match=message):
        CoAtNet(32, **{"patch_size": 2} | tiny | options)
