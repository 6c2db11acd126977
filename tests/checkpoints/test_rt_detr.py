"""RT-DETR as transformers writes it: small originals with random weights, loaded by us."""

import json
import re

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torchvision.ops import box_convert

from tests.checkpoints.test_published_preprocess import picture
from visattn.checkpoints import CheckpointError, load_pretrained, save_pretrained
from visattn.checkpoints.rt_detr import renamed_weights
from visattn.heads import ObjectDetector
from visattn.interpret import object_attention

small = {
    "num_labels": 7,
    "encoder_hidden_dim": 24,
    "encoder_ffn_dim": 44,
    "encoder_attention_heads": 2,
    "d_model": 32,
    "decoder_in_channels": [24, 24, 24],
    "decoder_ffn_dim": 52,
    "decoder_attention_heads": 4,
    "decoder_layers": 3,
    "num_queries": 23,
    "hidden_expansion": 0.5,
}
basic = {"embedding_size": 16, "hidden_sizes": [16, 20, 24, 28], "depths": [2, 1, 2, 1], "layer_type": "basic"}
bottleneck = {"embedding_size": 8, "hidden_sizes": [16, 24, 32, 40], "depths": [1, 2, 1, 2], "layer_type": "bottleneck"}
variants = {
    "r18vd-like": ("RTDetrV2", {}, basic),
    "r50vd-like": ("RTDetrV2", {"hidden_expansion": 1.0, "encoder_layers": 2}, bottleneck),
    "discrete": ("RTDetrV2", {"decoder_method": "discrete", "decoder_offset_scale": 0.7, "decoder_n_points": 3}, basic),
    "without denoising": ("RTDetrV2", {"num_denoising": 0, "freeze_backbone_batch_norms": False}, basic),
    "version 1": ("RTDetr", {}, basic),
}


def original_of(variant, seed=0):
    """A model whose every parameter and statistic has been moved."""
    torch.manual_seed(seed)
    name, options, backbone = variants[variant]
    inner = transformers.RTDetrResNetConfig(**backbone, out_indices=[2, 3, 4])
    config = getattr(transformers, f"{name}Config")(backbone_config=inner, **(small | options))
    model = getattr(transformers, f"{name}ForObjectDetection")(config)
    for tensor in [*model.parameters(), *model.buffers()]:
        if tensor.is_floating_point():
            tensor.data.add_(0.1 * torch.randn_like(tensor))
    for name, tensor in model.named_buffers():
        if name.endswith("running_var"):
            tensor.data.copy_(tensor.abs() + 0.5)
        if name.endswith("n_points_scale"):
            tensor.data.copy_(1 / torch.full_like(tensor, config.decoder_n_points))
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.weight.data += 1.0
    assert len({head.weight.data_ptr() for head in model.model.decoder.class_embed}) == 3
    return model.eval()


def pixels(height, width, batch=2, seed=1):
    return torch.rand(batch, 3, height, width, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module", params=variants)
def pair(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("rt_detr")
    original = original_of(request.param)
    original.save_pretrained(folder)
    return original, load_pretrained(folder, expected=ObjectDetector)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rt_detr_r18vd")
    original_of("r18vd-like").save_pretrained(folder)
    transformers.RTDetrImageProcessor(size={"height": 64, "width": 96}).save_pretrained(folder)
    return folder


@torch.no_grad()
@pytest.mark.parametrize("size", [(128, 128), (64, 160), (93, 125)])
def test_logits_and_boxes_are_those_of_transformers(pair, size):
    original, model = pair
    expected = original(pixel_values=pixels(*size))
    output = model(pixels(*size))
    assert output.logits.shape == (2, 23, 7)
    torch.testing.assert_close(output.logits, expected.logits, rtol=0, atol=1e-4)
    torch.testing.assert_close(output.boxes, expected.pred_boxes, rtol=0, atol=1e-4)
    assert expected.logits.std() > 0.1
    assert expected.pred_boxes.std() > 0.01


def test_gradients_in_evaluation_give_the_same(pair):
    """Where gradients are recorded nothing is folded."""
    original, model = pair
    output = model(pixels(64, 96))
    with torch.no_grad():
        torch.testing.assert_close(model(pixels(64, 96)).logits, output.logits, rtol=0, atol=1e-4)
    torch.testing.assert_close(output.logits, original(pixel_values=pixels(64, 96)).logits, rtol=0, atol=1e-4)


@pytest.mark.parametrize("size", [(64, 96), (333, 500)])
def test_pictures_are_prepared_as_published(folder, size):
    processor = transformers.RTDetrImageProcessor.from_pretrained(folder)
    expected = processor(picture(*size), return_tensors="pt")["pixel_values"][0]
    torch.testing.assert_close(load_pretrained(folder).preprocess(picture(*size)), expected, rtol=0, atol=1e-4)


def test_without_a_processor_pictures_are_stretched_to_640_pixels(folder, tmp_path):
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    pixels = load_pretrained(tmp_path).preprocess(picture(48, 72))
    expected = transformers.RTDetrImageProcessor()(picture(48, 72), return_tensors="pt")["pixel_values"][0]
    torch.testing.assert_close(pixels, expected, rtol=0, atol=1e-4)


@torch.no_grad()
def test_detections_are_those_of_transformers(folder):
    """Boxes are cut off at the borders of the picture, which transformers leaves to others."""
    original, model = original_of("r18vd-like"), load_pretrained(folder)
    processor = transformers.RTDetrImageProcessor.from_pretrained(folder)
    pictures = [picture(50, 80), picture(70, 40)]
    outputs = original(**processor(pictures, return_tensors="pt"))
    expected = processor.post_process_object_detection(outputs, threshold=0.5, target_sizes=[(50, 80), (70, 40)])
    found = model.detect(pictures, threshold=0.5, max_detections=23)
    for one, published, (width, height) in zip(found, expected, [(80, 50), (40, 70)], strict=True):
        assert 3 < len(one.scores) < 24
        torch.testing.assert_close(one.scores, published["scores"], rtol=0, atol=1e-4)
        assert torch.equal(one.labels, published["labels"])
        border = torch.tensor([width, height, width, height])
        boxes = torch.minimum(published["boxes"].clamp(min=0), border)
        torch.testing.assert_close(one.boxes, boxes, rtol=0, atol=1e-2)  # of pixels


def test_classes_are_named(folder, tmp_path):
    config = json.loads((folder / "config.json").read_text())
    names = ["person", "bicycle", "car", "motorcycle", "airplane", "bus", "train"]
    config["id2label"] = {str(index): name for index, name in enumerate(names)}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    assert load_pretrained(tmp_path).classes == tuple(names)


def test_names_of_before_version_5_give_the_same_model(folder, tmp_path):
    weights = {}
    for name, tensor in load_file(folder / "model.safetensors").items():
        name = (
            name.replace(".o_proj.", ".out_proj.")
            .replace(".mlp.fc", ".fc")
            .replace("encoder.aifi.", "encoder.encoder.")
        )
        weights[name] = tensor
        if re.match(r"model\.decoder\.(class|bbox)_embed", name):  # under both names
            weights[name.removeprefix("model.decoder.")] = tensor.clone()
    assert any("encoder.encoder." in name for name in weights)
    save_file(weights, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    expected, loaded = load_pretrained(folder).state_dict(), load_pretrained(tmp_path).state_dict()
    assert expected.keys() == loaded.keys()
    assert all(torch.equal(expected[name], loaded[name]) for name in expected)


@torch.no_grad()
def test_it_comes_back_from_our_own_format(folder, tmp_path):
    model = load_pretrained(folder)
    save_pretrained(model, tmp_path)
    loaded = load_pretrained(tmp_path)
    images = pixels(64, 96)
    assert torch.equal(loaded(images).logits, model(images).logits)
    assert loaded.classes == model.classes
    assert loaded.preprocess.arguments == model.preprocess.arguments


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"normalize_before": True}, "normalize_before True"),
        ({"encode_proj_layers": [1, 2]}, r"encode_proj_layers"),
        ({"decoder_method": "cubic"}, "'cubic'"),
        ({"activation_function": "quick_gelu"}, "'quick_gelu'"),
        ({"num_feature_levels": 4}, "num_feature_levels 4"),
        ({"backbone_config": {"model_type": "swin"}}, "model_type 'swin'"),
        ({"backbone_config": None}, "backbone_config"),
        ({"d_model": 30}, "30"),
        ({"decoder_layers": 2}, "unexpected"),
        ({"decoder_layers": 4}, "missing"),
    ],
)
def test_what_is_not_supported_is_said(folder, tmp_path, change, message):
    config = json.loads((folder / "config.json").read_text()) | change
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    with pytest.raises(CheckpointError, match=message) as error:
        load_pretrained(tmp_path)
    assert str(error.value).count(str(tmp_path)) == 1


def test_missing_weights_are_named(folder, tmp_path):
    weights = load_file(folder / "model.safetensors")
    del weights["model.decoder.query_pos_head.layers.1.bias"]
    save_file(weights, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    with pytest.raises(CheckpointError, match=r"missing: head\.decoder\.query_position\.2\.bias"):
        load_pretrained(tmp_path)


def test_the_loss_and_its_gradients_are_those_of_transformers(tmp_path):
    original = original_of("without denoising")
    original.save_pretrained(tmp_path)
    model, images = load_pretrained(tmp_path).double(), pixels(64, 96).double()
    original.double()
    boxes = torch.tensor([[0.5, 0.5, 0.8, 0.9], [0.4, 0.5, 0.7, 0.8], [0.6, 0.4, 0.7, 0.7]])
    labels = torch.tensor([1, 4, 6])
    groups = (slice(0, 2), slice(2, 3))
    expected = original(
        pixel_values=images, labels=[{"class_labels": labels[one], "boxes": boxes[one].double()} for one in groups]
    )
    corners = box_convert(boxes, "cxcywh", "xyxy") * torch.tensor([96, 64] * 2)  # in pixels
    targets = [{"labels": labels[one], "boxes": corners[one]} for one in groups]
    model.head.training = model.head.decoder.training = True  # for the losses of all layers; norms stay as they are
    padding = torch.zeros(2, 64, 96, dtype=torch.bool)
    losses = model.head.loss(model.features(images).maps, padding, torch.tensor([[64, 96]] * 2), targets)
    for ours, theirs in (("class", "loss_vfl"), ("l1", "loss_bbox"), ("giou", "loss_giou")):
        torch.testing.assert_close(losses[ours].double(), expected.loss_dict[theirs].double(), rtol=1e-5, atol=0)
    total = sum(losses.values())
    torch.testing.assert_close(total.double(), expected.loss.double(), rtol=1e-5, atol=0)
    total.backward()
    expected.loss.backward()
    gradients = renamed_weights({name: parameter.grad for name, parameter in original.named_parameters()})
    assert gradients.keys() == dict(model.named_parameters()).keys()
    for name, parameter in model.named_parameters():
        tolerance = 1e-5 * gradients[name].abs().max().item() + 1e-9
        torch.testing.assert_close(parameter.grad, gradients[name], rtol=0, atol=tolerance)


def test_its_objects_are_explained(folder):
    model = load_pretrained(folder)
    found = object_attention(model, picture(50, 80), threshold=0.5)
    assert len(found) > 3
    assert all(one.attention.shape == (64, 96) and one.attention.max() == 1 for one in found)
    assert not torch.equal(found[0].attention, found[-1].attention)
