"""Compact Convolutional Transformers in their original layout, against their forward pass written out plainly."""

import pytest
import torch
from torch.nn import functional

from visattn import backbones
from visattn.checkpoints import CheckpointError, cct, load_pretrained, save_pretrained
from visattn.heads import ImageClassifier

# Of the published architectures: blocks, channels, heads, MLP ratio, convolutions, kernel, stride, side in pixels.
small = {
    "cct_2_3x2_32": (2, 128, 2, 1, 2, 3, 1, 32),
    "cct_6_3x1_32_sine": (6, 256, 4, 2, 1, 3, 1, 32),
    "cct_7_7x2_224": (7, 256, 4, 2, 2, 7, 2, 224),
}


def published_weights(architecture, num_classes):
    """Random weights by the names of the original."""
    depth, dim, _, ratio, convolutions, kernel, stride, side = small[architecture]
    widths = [3] + [64] * (convolutions - 1) + [dim]
    shapes = {
        f"tokenizer.conv_layers.{index}.0.weight": (widths[index + 1], widths[index], kernel, kernel)
        for index in range(convolutions)
    }
    tokens = (side // (2 * stride) ** convolutions) ** 2
    shapes |= {"classifier.positional_emb": (1, tokens, dim), "classifier.attention_pool": (1, dim)}
    for index in range(depth):
        block = f"classifier.blocks.{index}"
        shapes |= {f"{block}.pre_norm": (dim,), f"{block}.norm1": (dim,)}
        shapes |= {f"{block}.self_attn.qkv.weight": (3 * dim, dim), f"{block}.self_attn.proj": (dim, dim)}
        shapes |= {f"{block}.linear1": (dim * ratio, dim), f"{block}.linear2": (dim, dim * ratio)}
    shapes |= {"classifier.norm": (dim,), "classifier.fc": (num_classes, dim)}
    weights = {}
    for key, shape in shapes.items():
        if key.endswith((".weight", ".positional_emb")):
            weights[key] = torch.randn(shape) * 0.1
        else:  # a linear layer or a norm
            weights[f"{key}.weight"] = torch.randn(shape) * 0.1 + (len(shape) == 1)
            weights[f"{key}.bias"] = torch.randn(shape[0]) * 0.1
    return weights


def expected_logits(architecture, weights, images):
    """The original's forward pass in float64."""
    depth, dim, heads, _, convolutions, kernel, stride, _ = small[architecture]
    weights = {key: tensor.double() for key, tensor in weights.items()}

    def linear(key, tokens):
        return functional.linear(tokens, weights[f"classifier.{key}.weight"], weights.get(f"classifier.{key}.bias"))

    def norm(key, tokens):
        weight, bias = weights[f"classifier.{key}.weight"], weights[f"classifier.{key}.bias"]
        return (tokens - tokens.mean(-1, keepdim=True)) / (
            tokens.var(-1, False, keepdim=True) + 1e-5
        ).sqrt() * weight + bias

    features = images.double()
    for index in range(convolutions):
        kernels = weights[f"tokenizer.conv_layers.{index}.0.weight"]
        features = functional.conv2d(features, kernels, stride=stride, padding=kernel // 2).relu()
        features = functional.max_pool2d(features, 3, stride=2, padding=1)
    tokens = features.flatten(2).transpose(1, 2) + weights["classifier.positional_emb"]
    for index in range(depth):
        block = f"blocks.{index}"
        qkv = linear(f"{block}.self_attn.qkv", norm(f"{block}.pre_norm", tokens))
        attended = torch.empty_like(tokens)
        for head in range(heads):
            part = slice(head * dim // heads, (head + 1) * dim // heads)
            query, key, value = (tensor[:, :, part] for tensor in qkv.split(dim, dim=2))
            attended[:, :, part] = (query @ key.mT * (dim // heads) ** -0.5).softmax(-1) @ value
        tokens = norm(f"{block}.norm1", tokens + linear(f"{block}.self_attn.proj", attended))
        tokens = tokens + linear(f"{block}.linear2", functional.gelu(linear(f"{block}.linear1", tokens)))
    tokens = norm("norm", tokens)
    shares = linear("attention_pool", tokens).softmax(dim=1)  # (B, N, 1)
    return linear("fc", (shares * tokens).sum(dim=1))


@pytest.mark.parametrize("architecture", small)
def test_a_file_gives_the_logits_of_the_original(architecture, tmp_path):
    torch.manual_seed(0)
    weights = published_weights(architecture, num_classes=11)
    side = small[architecture][-1]
    torch.save(weights, tmp_path / "model.pth")
    model, images = load_pretrained(tmp_path / "model.pth", architecture), torch.randn(2, 3, side, side)
    expected = expected_logits(architecture, weights, images)
    with torch.no_grad():
        logits = model(images)
    assert expected.std() > 0.1
    torch.testing.assert_close(logits.double(), expected, rtol=0, atol=1e-4)
    assert model.preprocess.image_size == (side, side)


@pytest.mark.parametrize(("preset", "millions"), [("cct_7_3x1_32", 3.76), ("cct_14_7x2", 22.36)])
def test_published_sizes_have_as_many_parameters(preset, millions):
    with torch.device("meta"):
        model = ImageClassifier(getattr(backbones, preset)(), 10 if preset == "cct_7_3x1_32" else 1000)
    count = sum(parameter.numel() for parameter in model.parameters())
    assert count / 1e6 == pytest.approx(millions, abs=0.01)


@pytest.mark.parametrize("architecture", cct.original_architectures)
def test_a_published_name_says_depth_convolutions_and_size(architecture):
    with torch.device("meta"):
        backbone = cct.backbone_of(architecture)
    depth, kernel, side = architecture.removeprefix("cct_").split("_")[:3]
    assert (len(backbone.blocks), backbone.image_size) == (int(depth), (int(side), int(side)))
    convolutions = [layer for layer in backbone.tokenizer.layers if isinstance(layer, torch.nn.Conv2d)]
    assert f"{convolutions[0].kernel_size[0]}x{len(convolutions)}" == kernel


def test_a_published_model_is_fitted_to_another_size_and_other_classes_and_saved(tmp_path):
    torch.manual_seed(0)
    torch.save(published_weights("cct_2_3x2_32", 11), tmp_path / "model.pth")
    model = load_pretrained(tmp_path / "model.pth", "cct_2_3x2_32", num_classes=3, image_size=(48, 64))
    assert model.backbone.position_embedding.shape == (1, 12 * 16, 128)
    assert model.preprocess.image_size == model.backbone.image_size == (48, 64)
    images = torch.randn(2, 3, 48, 64)
    save_pretrained(model, tmp_path / "ours")
    with torch.no_grad():
        assert torch.equal(load_pretrained(tmp_path / "ours")(images), model(images))


def test_weights_of_another_network_are_refused(tmp_path):
    torch.save(published_weights("cct_2_3x2_32", 11), tmp_path / "model.pth")
    with pytest.raises(CheckpointError, match=r"are missing: backbone\.blocks\.2"):
        load_pretrained(tmp_path / "model.pth", "cct_4_3x2_32")
    torch.save({"head.weight": torch.randn(2, 3)}, tmp_path / "model.pth")
    with pytest.raises(CheckpointError, match=r"holds no cct_7_3x1_32 of Compact-Transformers"):
        load_pretrained(tmp_path / "model.pth", "cct_7_3x1_32")
