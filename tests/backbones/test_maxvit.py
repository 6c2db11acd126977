import pytest
import timm
import torch

from visattn import load_pretrained
from visattn.attention import GridAttention, WindowAttention
from visattn.backbones import MaxViT, maxvit_32, maxvit_tiny
from visattn.checkpoints import save_pretrained
from visattn.heads import ImageClassifier
from visattn.interpret import record_attention

tiny = {"dims": (16, 24), "depths": (1, 2), "stem_dims": (8, 16), "head_dim": 8, "window_size": 4}


def test_the_preset_has_as_many_parameters_as_the_published_network():
    with torch.device("meta"):
        ours, theirs = ImageClassifier(maxvit_tiny(), 1000), timm.create_model("maxvit_tiny_tf_224")
    counts = [sum(parameter.numel() for parameter in model.parameters()) for model in (ours, theirs)]
    assert counts[0] == counts[1]
    assert round(counts[0] / 1e6) == 31  # million, as published


def test_small_images_keep_a_map_of_useful_size():
    assert maxvit_32().strides == (2, 4, 8)
    assert maxvit_tiny(32).strides == (2, 4, 8, 16)
    assert maxvit_tiny(224).strides == (4, 8, 16, 32)


def test_each_block_attends_within_windows_and_over_a_grid():
    torch.manual_seed(0)
    model = MaxViT(32, 2, **tiny, grid_size=2).eval()
    with record_attention(model, full=False) as maps:
        model(torch.randn(2, 3, 32, 32))
    assert list(maps) == [
        f"stages.{place}.{part}.attention" for place in ("0.0", "1.0", "1.1") for part in ("window", "grid")
    ]
    assert maps["stages.0.0.window.attention"].shape == (2, 2, 256, 16)
    assert maps["stages.1.1.grid.attention"].shape == (2, 3, 64, 4)
    assert isinstance(model.get_submodule("stages.1.1.grid.attention"), GridAttention)
    assert isinstance(model.get_submodule("stages.1.1.window.attention"), WindowAttention)


def test_one_block_connects_distant_cells_by_the_grid():
    torch.manual_seed(0)
    model = MaxViT(32, 2, **tiny | {"depths": (1, 1)}).eval()
    images = torch.randn(1, 3, 32, 32)
    changed = images.clone()
    changed[..., :2, :2] += 1
    with torch.no_grad():
        difference = (model(images).maps[0] - model(changed).maps[0]).abs().amax(1)[0]  # (16, 16)
    assert difference[12:, 12:].max() > 1e-4


@pytest.mark.parametrize("options", [{}, {"bias_hidden_dim": 8, "pooled_dim": 20, "norm": "batch", "layer_scale": 0.1}])
def test_a_saved_network_comes_back_for_another_image_size(options, tmp_path):
    torch.manual_seed(0)
    model = ImageClassifier(MaxViT(32, 2, **tiny, **options), 5).eval()
    save_pretrained(model, tmp_path)
    images = torch.randn(2, 3, 48, 40)
    loaded = load_pretrained(tmp_path, image_size=(48, 40))
    assert loaded.backbone.image_size == (48, 40)
    torch.testing.assert_close(loaded(images), model(images))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"depths": (1, 1, 1)}, r"dims \(16, 24\) and depths \(1, 1, 1\) differ in stages"),
        ({"head_dim": 7}, r"head_dim 7 doesn't divide all of dims \(16, 24\)"),
        ({"patch_size": 16}, "patch_size 16 doesn't fit a stem of two convolutions; choose 2, 4 or 8"),
        ({"activation": "swish"}, "activation 'swish' is unknown"),
        ({"convolution_activation": "swish"}, "activation 'swish' is unknown"),
    ],
)
def test_what_does_not_fit_is_an_error(options, message):
    with pytest.raises(ValueError, match=message):
        MaxViT(32, **{"patch_size": 2} | tiny | options)
