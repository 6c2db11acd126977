import json
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import visattn
from visattn.backbones import SwinTransformer, TimmBackbone, VisionTransformer, local_hybrid_tiny
from visattn.checkpoints import CheckpointError, load_pretrained, model_config, read_weights, save_pretrained
from visattn.data import Preprocess
from visattn.heads import ImageClassifier

backbones = {
    "vit": lambda: VisionTransformer(32, 8, 24, 2, 2),
    "local": lambda: VisionTransformer(
        32, 4, 24, 2, 2, attention=("local", "global"), kernel_size=5, class_token=False, pooling="average"
    ),
    "swin": lambda: SwinTransformer(32, 2, 12, (2, 2), (2, 4), window_size=4),
    "hybrid": lambda: local_hybrid_tiny(32, dims=(16, 24), depths=(1, 1), num_heads=(2, 2), stem_dim=8),
    "timm": lambda: TimmBackbone("test_efficientnet", 32),
}


def model_of(kind):
    torch.manual_seed(0)
    model = ImageClassifier(backbones[kind](), 3).eval()
    model.classes = ("ant", "bee", "cat")
    model.preprocess = Preprocess(32, mean=(0.5, 0.4, 0.3), std=(0.1, 0.2, 0.3))
    return model


@pytest.mark.parametrize("kind", backbones)
def test_a_saved_model_comes_back_with_its_classes_and_its_preprocessing(kind, tmp_path):
    model = model_of(kind)
    save_pretrained(model, tmp_path)
    loaded = visattn.load_pretrained(tmp_path)
    images = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(loaded(images), model(images), rtol=0, atol=0)
    assert loaded.classes == model.classes
    assert loaded.preprocess.arguments == model.preprocess.arguments
    assert not loaded.training


def test_half_precision_halves_the_file_and_loads_as_float32(tmp_path):
    model = model_of("vit")
    save_pretrained(model, tmp_path, precision="float16")
    assert {tensor.dtype for tensor in load_file(tmp_path / "model.safetensors").values()} == {torch.float16}
    loaded = load_pretrained(tmp_path)
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.float32}
    images = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(loaded(images), model(images), rtol=0, atol=1e-2)


def test_a_run_checkpoint_loads_like_a_model(tmp_path):
    model = model_of("local")
    state = {f"model.{name}": tensor for name, tensor in model.state_dict().items()} | {"metrics.total": torch.ones(1)}
    torch.save({"state_dict": state, "visattn_model": model_config(model)}, tmp_path / "last.ckpt")
    images = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(load_pretrained(tmp_path / "last.ckpt")(images), model(images), rtol=0, atol=0)


@pytest.mark.parametrize("kind", backbones)
def test_another_image_size_and_number_of_classes_fit(kind, tmp_path):
    save_pretrained(model_of(kind), tmp_path)
    model = load_pretrained(tmp_path, num_classes=7, image_size=48)
    assert model(torch.randn(2, 3, 48, 48)).shape == (2, 7)
    assert model.backbone.image_size == model.preprocess.image_size == (48, 48)


def test_a_resized_model_equals_the_same_model_on_larger_images(tmp_path):
    model = model_of("vit")
    save_pretrained(model, tmp_path)
    images = torch.randn(2, 3, 48, 48)
    torch.testing.assert_close(load_pretrained(tmp_path, image_size=48)(images), model(images))


class Malicious:
    """Unpickled carelessly, it writes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


@pytest.mark.parametrize("name", ["weights.pth", "last.ckpt", "pytorch_model.bin"])
@pytest.mark.parametrize("layout", ["zip", "legacy", "plain pickle"])
def test_a_pickle_that_wants_to_execute_code_is_refused(name, layout, tmp_path):
    evidence = tmp_path / "code was executed"
    content = {"state_dict": {"weight": Malicious(evidence)}}
    if layout == "plain pickle":
        (tmp_path / name).write_bytes(pickle.dumps(content, protocol=2))
    else:
        torch.save(content, tmp_path / name, _use_new_zipfile_serialization=layout == "zip")
    with pytest.raises(CheckpointError, match="refused, since reading it could execute code"):
        load_pretrained(tmp_path / name, "vit_tiny_patch16_224")
    with pytest.raises(CheckpointError, match="refused"):
        read_weights(tmp_path / name)
    (tmp_path / "config.json").write_text('{"architecture": "vit_tiny_patch16_224"}')
    if name == "pytorch_model.bin":
        with pytest.raises(CheckpointError, match="refused"):
            load_pretrained(tmp_path)
    assert not evidence.exists()
    torch.load(tmp_path / name, weights_only=False) if layout != "plain pickle" else pickle.loads(pickle.dumps(content))
    assert evidence.exists()  # the attack itself works where code may run


def test_damaged_files_are_named(tmp_path):
    save_pretrained(model_of("vit"), tmp_path)
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=r"model\.safetensors: no whole safetensors file"):
        load_pretrained(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"config\.json: no JSON"):
        load_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "visattn-99"}, "a newer visattn may know it"),
        ({"backbone": "os.system"}, "is none of"),
        ({"arguments": {"no_such_argument": 1}}, "doesn't describe a model"),
    ],
)
def test_a_configuration_can_name_only_what_we_know(change, message, tmp_path):
    save_pretrained(model_of("vit"), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(CheckpointError, match=message):
        load_pretrained(tmp_path)


def test_missing_and_unexpected_weights_are_named(tmp_path):
    model = model_of("vit")
    save_pretrained(model, tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    weights["backbone.blocks.9.norm1.weight"] = weights.pop("backbone.blocks.1.norm1.weight")
    from safetensors.torch import save_file

    save_file(weights, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"1 weights are missing: backbone\.blocks\.1\.norm1\.weight"):
        load_pretrained(tmp_path)


def test_what_is_not_there_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nothing\.ckpt: there is no such file"):
        load_pretrained(tmp_path / "nothing.ckpt")
    with pytest.raises(FileNotFoundError, match=r"has no config\.json"):
        load_pretrained(tmp_path)
    with pytest.raises(ValueError, match="precision 'float8'"):
        save_pretrained(model_of("vit"), tmp_path, precision="float8")
