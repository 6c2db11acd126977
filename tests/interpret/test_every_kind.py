"""What `visattn attend` draws is there for every backbone of the zoo, and for every kind of attention by name."""

import pytest
import torch

import visattn
from visattn.backbones.attention_kinds import attention_kinds
from visattn.interpret import attention_heatmap, attention_layers, attention_rollout, layer_attention, record_attention


def looks_somewhere(heatmap):
    """Whether a map (1, 32, 32) goes from 0, at its darkest place, to 1."""
    return heatmap.shape == (1, 32, 32) and heatmap.amin() == 0 and heatmap.amax() == 1


@pytest.mark.parametrize("name", [*visattn.list_models("*_32"), "swin_tiny", "vit_tiny", "vit_local_tiny"])
def test_every_backbone_shows_where_it_looks(name):
    torch.manual_seed(0)
    model = visattn.create_model(name, 5, 32).eval()
    images = torch.randn(1, 3, 32, 32)
    layers = attention_layers(model, images)
    for layer in (layers[0], layers[-1]):
        assert looks_somewhere(layer_attention(model, images, layer.name, 0, (1, 1)))
    assert looks_somewhere(attention_rollout(model, images))
    assert looks_somewhere(attention_heatmap(model, images, torch.tensor([1])))


@pytest.mark.parametrize("kind", [*attention_kinds, "local+linear"])
def test_every_kind_shows_where_it_looks(kind):
    torch.manual_seed(0)
    plain = {"class_token": False, "pooling": "average"}
    model = visattn.create_model("vit_tiny", 5, 32, depth=1, num_heads=4, dim=32, attention=(kind,), **plain).eval()
    images = torch.randn(1, 3, 32, 32)
    for name in [layer.name for layer in attention_layers(model, images)]:
        assert looks_somewhere(layer_attention(model, images, name, 0, (1, 1)))
    with torch.no_grad(), record_attention(model, full=True) as maps:
        model(images)
    for weights in maps.values():
        assert weights.shape[2:] == (64, 64)
        if kind not in ("linformer", "nystrom"):  # whose weights may be negative
            torch.testing.assert_close(weights.sum(dim=-1), torch.ones(weights.shape[:3]))
            assert (weights >= 0).all()
