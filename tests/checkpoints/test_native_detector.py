"""Detectors in our own format: what is saved comes back, with its classes and its way to prepare pictures."""

from __future__ import annotations

import json

import pytest
import torch

import visattn
from visattn.backbones import LocalHybrid, TimmBackbone, VisionTransformer
from visattn.checkpoints import CheckpointError, load_pretrained, model_config, save_pretrained
from visattn.data.detection_preprocess import DetectionPreprocess
from visattn.data.image_batch import pad_images
from visattn.heads import (
    DeformableDetrHead,
    DetrHead,
    FasterRcnnHead,
    FcosHead,
    ImageClassifier,
    MaskRcnnHead,
    ObjectDetector,
    RetinaNetHead,
)

pyramid = {"out_channels": 32, "levels": (3, 4, 5)}
regions = pyramid | {"hidden": 16, "samples": 8, "proposals": 20}
heads = {
    DetrHead: {
        "dim": 16,
        "num_heads": 2,
        "encoder_depth": 1,
        "decoder_depth": 2,
        "feedforward_dim": 24,
        "num_queries": 7,
    },
    DeformableDetrHead: {
        "dim": 16,
        "num_heads": 2,
        "decoder_depth": 2,
        "hidden_dim": 24,
        "num_queries": 7,
        "denoising": 5,
    },
    FcosHead: pyramid | {"convolutions": 1},
    RetinaNetHead: pyramid,
    FasterRcnnHead: regions,
    MaskRcnnHead: regions | {"mask_channels": 8, "mask_convolutions": 1},
}
backbones = {
    "vit": lambda: VisionTransformer(64, 16, 24, 1, 2),
    "hybrid": lambda: LocalHybrid(64, 4, (8, 12), (1, 1), (1, 2), stem_dim=8),
    "timm": lambda: TimmBackbone("test_resnet", 64),
}


def detector(head: type = FcosHead, backbone: str = "hybrid") -> ObjectDetector:
    torch.manual_seed(0)
    network = backbones[backbone]()
    model = ObjectDetector(
        network, head(network.channels, network.strides, 3, **heads[head]), ("cat", "dog", "red panda")
    )
    model.preprocess = DetectionPreprocess(60, 90, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))
    model.category_ids = (1, 7, 90)
    return model.eval()


def found(model: ObjectDetector) -> list[torch.Tensor]:
    torch.manual_seed(1)
    images = pad_images([torch.randn(3, 64, 48), torch.randn(3, 50, 64)])
    with torch.no_grad():
        return [part for one in model.predict(images) for part in one if part is not None]


@pytest.mark.parametrize("head", heads)
@pytest.mark.parametrize("backbone", backbones)
def test_a_saved_detector_comes_back(head, backbone, tmp_path):
    model = detector(head, backbone)
    save_pretrained(model, tmp_path)
    loaded = visattn.load_pretrained(tmp_path)
    assert isinstance(loaded, ObjectDetector)
    assert not loaded.training
    torch.testing.assert_close(found(loaded), found(model), rtol=0, atol=0)
    assert loaded.classes == ("cat", "dog", "red panda")
    assert loaded.category_ids == (1, 7, 90)
    assert loaded.preprocess.arguments == model.preprocess.arguments
    config = json.loads((tmp_path / "config.json").read_text())
    assert (config["kind"], config["head"]) == ("detection", head.__name__)
    assert not (tmp_path / "tokenizer.json").exists()


def test_a_run_checkpoint_holds_a_detector(tmp_path):
    model = detector()
    state = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    torch.save({"state_dict": state, "visattn_model": model_config(model)}, tmp_path / "last.ckpt")
    loaded = load_pretrained(tmp_path / "last.ckpt", expected=ObjectDetector)
    torch.testing.assert_close(found(loaded), found(model), rtol=0, atol=0)


def test_a_detector_may_know_no_names_and_no_preprocessing(tmp_path):
    model = detector()
    model.classes = model.preprocess = model.category_ids = None
    save_pretrained(model, tmp_path)
    loaded = load_pretrained(tmp_path)
    assert loaded.classes is loaded.preprocess is loaded.category_ids is None
    assert loaded.num_classes == 3


def test_a_detector_keeps_its_classes(tmp_path):
    save_pretrained(detector(), tmp_path)
    with pytest.raises(ValueError, match="of class ObjectDetector, and ImageClassifier is wanted"):
        load_pretrained(tmp_path, expected=ImageClassifier)
    with pytest.raises(ValueError, match="num_classes"):
        load_pretrained(tmp_path, num_classes=5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"head": "CrystalBall"}, "head 'CrystalBall' is none of"),
        ({"head_arguments": {"no_such_argument": 1}}, "doesn't describe a model"),
        ({"num_classes": None}, "doesn't describe a model"),
        ({"classes": ["cat"]}, "doesn't describe a model"),
        ({"preprocess": {"size": 3}}, "doesn't describe a model"),
    ],
)
def test_a_configuration_that_describes_no_detector_is_refused(change, message, tmp_path):
    save_pretrained(detector(), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(CheckpointError, match=message):
        load_pretrained(tmp_path)
