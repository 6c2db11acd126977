"""Every name that timm builds from its VisionTransformer, VisionTransformerDistilled and SwinTransformer classes."""

import re

import pytest
import timm
import torch

from visattn.checkpoints import CheckpointError
from visattn.checkpoints import timm as layout

modules = ("vision_transformer", "deit", "swin_transformer")
names = sorted({name for module in modules for name in timm.list_models(module=module)})
differential = {name for name in names if re.match(r"vit_(dwee|dpwee|dlittle)_", name)}
convolutional = sorted({*timm.list_models(module="vision_transformer_hybrid"), *timm.list_models("vitamin_*")})


def small_arguments(name):
    """What makes a variant small: two blocks or stages, few channels, a few patches."""
    if name.startswith("swin"):
        size = 8 * int(re.search(r"window(\d+)", name)[1]) if "window" in name else 56
        return {"img_size": size, "embed_dim": 16, "depths": (2, 2), "num_heads": (2, 4)} | (
            {"window_size": (7, 7)} if "s3" in name else {}
        )
    named = re.search(r"patch(\d+)", name)
    patch_size = int(named[1]) if named else 16
    return {"img_size": 3 * patch_size, "embed_dim": 24, "depth": 2, "num_heads": 2}


@pytest.mark.parametrize("name", sorted(set(names) - differential))
def test_every_variant_of_timm_gives_its_logits(name):
    torch.manual_seed(0)
    arguments = small_arguments(name)
    original = timm.create_model(name, num_classes=5, **arguments).eval()
    for parameter in original.parameters():
        parameter.data.add_(torch.randn_like(parameter) * 0.1)
    config = {"architecture": name, "num_classes": 5, "model_args": arguments}
    model = layout.build(config, original.state_dict(), name).eval()
    images = torch.randn(2, 3, *model.backbone.image_size)
    with torch.no_grad():
        torch.testing.assert_close(model(images), original(images), rtol=0, atol=1e-4)


def test_there_are_as_many_variants_as_timm_lists():
    assert len(names) >= 180
    assert len(differential) == 3


@pytest.mark.parametrize("name", sorted(differential) + convolutional[:1] + convolutional[-1:])
def test_what_visattn_does_not_build_is_said(name):
    with pytest.raises(CheckpointError, match=rf"{name}: timm's .* has no counterpart in visattn"):
        layout.build({"architecture": name}, {}, name)
