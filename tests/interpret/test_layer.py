import pytest
import torch

from tests.interpret.small_models import images_for, model_of
from visattn.interpret import attention_layers, layer_attention, record_attention


@pytest.mark.parametrize(
    ("kind", "kinds", "grids"),
    [
        ("vit", ["global"] * 2, [(4, 4)] * 2),
        ("local", ["neighborhood 3x3", "neighborhood 3x3", "global"], [(8, 8)] * 3),
        ("dilated", ["neighborhood 3x3, dilation 2x2"] * 2, [(8, 8)] * 2),
        ("swin", ["window 4x4", "window 4x4, shifted"] * 2, [(16, 16)] * 2 + [(8, 8)] * 2),
        ("padded swin", ["window 4x4", "window 4x4, shifted"] * 2, [(22, 22)] * 2 + [(11, 11)] * 2),
        ("pooled by attention", ["global"] * 3, [(4, 4)] * 3),
    ],
)
def test_layers_say_their_kind_and_grid(kind, kinds, grids):
    model = model_of(kind)
    layers = attention_layers(model, images_for(model))
    assert [layer.kind for layer in layers] == kinds
    assert [layer.grid for layer in layers] == grids


@pytest.mark.parametrize("kind", ["vit", "local", "swin", "padded swin", "hybrid"])
@pytest.mark.parametrize("head", [1, "mean"])
def test_the_map_of_a_query_is_its_row_of_the_attention(kind, head):
    model = model_of(kind)
    images = images_for(model)
    layer = attention_layers(model, images)[1]
    with torch.no_grad(), record_attention(model, full=True) as maps:
        model(images)
    weights = maps[f"backbone.{layer.name}"]
    weights = weights.mean(dim=1) if head == "mean" else weights[:, head]
    (height, width), prefix = layer.grid, model.backbone.num_prefix_tokens
    row = weights[:, prefix + 2 * width + 3, prefix:].view(2, 1, height, width)
    row = torch.nn.functional.interpolate(row, images.shape[-2:], mode="bilinear")[:, 0]
    row = row - row.amin((1, 2), keepdim=True)
    expected = row / row.amax((1, 2), keepdim=True)
    torch.testing.assert_close(layer_attention(model, images, 1, head, (2, 3)), expected)
    torch.testing.assert_close(layer_attention(model, images, layer.name, head, (2, 3)), expected)


def test_a_layer_can_be_named_by_the_part_that_tells_it_apart():
    model = model_of("swin")
    images = images_for(model)
    expected = layer_attention(model, images, 2)
    for name in ("stages.1.blocks.0", "backbone.stages.1.blocks.0.attention"):
        torch.testing.assert_close(layer_attention(model, images, name), expected)
    with pytest.raises(ValueError, match=r"2 attention layers are called 'stages\.1'; there are: stages\.0"):
        layer_attention(model, images, "stages.1")


@pytest.mark.parametrize(
    ("kind", "arguments", "message"),
    [
        ("vit", {"layer": 2}, "there is no layer 2; the 2 attention layers are counted from 0"),
        ("vit", {"layer": "norm"}, r"no attention layer is called 'norm'; there are: blocks\.0\.attention"),
        ("vit", {"head": 2}, r"blocks\.1\.attention has no head 2; its 2 heads"),
        ("vit", {"query": (0, 4)}, "no token at row 0, column 4 of its 4x4 grid"),
        ("local", {"query": "class"}, "has no class token"),
        ("pooled by attention", {"query": (0, 0)}, "has a single query"),
    ],
)
def test_what_is_not_there_is_an_error_that_says_what_is(kind, arguments, message):
    model = model_of(kind)
    with pytest.raises(ValueError, match=message):
        layer_attention(model, images_for(model), **arguments)
