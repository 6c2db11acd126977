"""NAT and DiNAT in transformers' layout, against their definition written out plainly.

The operators of the original, the compiled package NATTEN, run on few machines. Here they are loops over pixels, within
a forward pass of our own from the published names, and within transformers' own DiNAT.
"""

import json

import pytest
import torch
import transformers
from safetensors.torch import save_file
from torch.nn import functional

from visattn import backbones
from visattn.checkpoints import CheckpointError, load_pretrained, save_pretrained
from visattn.heads import ImageClassifier
from visattn.interpret import record_attention

small = {
    "patch_size": 4,
    "num_channels": 3,
    "embed_dim": 8,
    "depths": [2, 3],
    "num_heads": [2, 4],
    "kernel_size": 3,
    "mlp_ratio": 1.5,
    "qkv_bias": True,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-5,
    "layer_scale_init_value": 0.0,
}
configs = {
    "nat": small | {"model_type": "nat"},
    "nat with layer scale": small | {"model_type": "nat", "layer_scale_init_value": 1e-5, "layer_norm_eps": 1e-3},
    "dinat": small | {"model_type": "dinat", "dilations": [[1, 2], [1, 2, 1]]},
}


def neighbors(length, kernel_size, dilation, place):
    """The positions along an axis that the one at `place` sees: the nearest of those a multiple of the dilation off."""
    group = list(range(place % dilation, length, dilation))
    start = min(max(group.index(place) - kernel_size // 2, 0), len(group) - kernel_size)
    return group[start : start + kernel_size]


def scores_of(query, key, table, kernel_size, dilation):
    """(B, heads, height, width, head_dim), and the biases by relative position, to (B, heads, height, width, keys)."""
    batch, heads, height, width, _ = query.shape
    scores = query.new_zeros(batch, heads, height, width, kernel_size**2)
    for i in range(height):
        for j in range(width):
            for n, (row, column) in enumerate(pairs(height, width, kernel_size, dilation, i, j)):
                down, right = (row - i) // dilation + kernel_size - 1, (column - j) // dilation + kernel_size - 1
                products = (query[:, :, i, j] * key[:, :, row, column]).sum(-1)
                scores[:, :, i, j, n] = products + table[:, down, right]
    return scores


def mix(weights, value, kernel_size, dilation):
    """Weights (B, heads, height, width, keys) and values to (B, heads, height, width, head_dim)."""
    _, _, height, width, _ = value.shape
    output = torch.zeros_like(value)
    for i in range(height):
        for j in range(width):
            for n, (row, column) in enumerate(pairs(height, width, kernel_size, dilation, i, j)):
                output[:, :, i, j] += weights[:, :, i, j, n, None] * value[:, :, row, column]
    return output


def pairs(height, width, kernel_size, dilation, i, j):
    columns = neighbors(width, kernel_size, dilation, j)
    return [(row, column) for row in neighbors(height, kernel_size, dilation, i) for column in columns]


def published_weights(config, num_classes):
    """Random weights by the names of the original."""
    name, dim, channels = config["model_type"], config["embed_dim"], config["num_channels"]
    shapes = {
        "embeddings.patch_embeddings.projection.0.weight": (dim // 2, channels, 3, 3),
        "embeddings.patch_embeddings.projection.0.bias": (dim // 2,),
        "embeddings.patch_embeddings.projection.1.weight": (dim, dim // 2, 3, 3),
        "embeddings.patch_embeddings.projection.1.bias": (dim,),
        "embeddings.norm": (dim,),
    }
    for level, (depth, heads) in enumerate(zip(config["depths"], config["num_heads"], strict=True)):
        hidden, side = int(dim * config["mlp_ratio"]), 2 * config["kernel_size"] - 1
        for layer in range(depth):
            block = f"encoder.levels.{level}.layers.{layer}"
            shapes |= {f"{block}.{norm}": (dim,) for norm in ("layernorm_before", "layernorm_after")}
            shapes |= {f"{block}.attention.self.{part}": (dim, dim) for part in ("query", "key", "value")}
            shapes |= {
                f"{block}.attention.self.rpb": (heads, side, side),
                f"{block}.attention.output.dense": (dim, dim),
            }
            shapes |= {f"{block}.intermediate.dense": (hidden, dim), f"{block}.output.dense": (dim, hidden)}
            if config["layer_scale_init_value"] > 0:
                shapes[f"{block}.layer_scale_parameters"] = (2, dim)
        if level < len(config["depths"]) - 1:
            shapes[f"encoder.levels.{level}.downsample.reduction.weight"] = (2 * dim, dim, 3, 3)
            shapes[f"encoder.levels.{level}.downsample.norm"] = (2 * dim,)
            dim *= 2
    shapes["layernorm"] = (dim,)
    shapes = {f"{name}.{key}": shape for key, shape in shapes.items()} | {"classifier": (num_classes, dim)}
    weights = {}
    for key, shape in shapes.items():
        if key.endswith((".rpb", ".layer_scale_parameters", ".weight", ".bias")):
            weights[key] = torch.randn(shape) * 0.3
        else:  # a linear layer or a norm
            weights[f"{key}.weight"] = torch.randn(shape) * 0.3 + (len(shape) == 1)
            weights[f"{key}.bias"] = torch.randn(shape[0]) * 0.3
    return weights


def expected_logits(config, weights, images):
    """The original's forward pass in float64."""
    name, epsilon = config["model_type"], config["layer_norm_eps"]
    weights = {key.removeprefix(f"{name}."): tensor.double() for key, tensor in weights.items()}

    def linear(key, cells):
        return functional.linear(cells, weights[f"{key}.weight"], weights[f"{key}.bias"])

    def norm(key, cells, epsilon=1e-5):
        return functional.layer_norm(cells, cells.shape[-1:], weights[f"{key}.weight"], weights[f"{key}.bias"], epsilon)

    def halve(key, cells):
        features = cells.permute(0, 3, 1, 2)
        bias = weights.get(f"{key}.bias")
        return functional.conv2d(features, weights[f"{key}.weight"], bias, stride=2, padding=1).permute(0, 2, 3, 1)

    cells = images.double().permute(0, 2, 3, 1)  # (B, height, width, channels) from here on
    for convolution in range(2):
        cells = halve(f"embeddings.patch_embeddings.projection.{convolution}", cells)
    cells = norm("embeddings.norm", cells)
    for level, depth in enumerate(config["depths"]):
        for layer in range(depth):
            key, heads = f"encoder.levels.{level}.layers.{layer}", config["num_heads"][level]
            dilation = config["dilations"][level][layer] if name == "dinat" else 1
            _, height, width, dim = cells.shape
            normed = norm(f"{key}.layernorm_before", cells, epsilon)
            least = config["kernel_size"] * dilation
            normed = functional.pad(normed, (0, 0, 0, max(least - width, 0), 0, max(least - height, 0)))
            query, key_, value = (
                linear(f"{key}.attention.self.{part}", normed).unflatten(3, (heads, -1)).permute(0, 3, 1, 2, 4)
                for part in ("query", "key", "value")
            )
            scale = (dim // heads) ** -0.5
            scores = scores_of(
                query * scale, key_, weights[f"{key}.attention.self.rpb"], config["kernel_size"], dilation
            )
            attended = mix(scores.softmax(-1), value, config["kernel_size"], dilation)
            attended = attended.permute(0, 2, 3, 1, 4).flatten(3)[:, :height, :width]
            scales = weights.get(f"{key}.layer_scale_parameters", torch.ones(2, 1, dtype=torch.float64))
            cells = cells + scales[0] * linear(f"{key}.attention.output.dense", attended)
            hidden = functional.gelu(
                linear(f"{key}.intermediate.dense", norm(f"{key}.layernorm_after", cells, epsilon))
            )
            cells = cells + scales[1] * linear(f"{key}.output.dense", hidden)
        if level < len(config["depths"]) - 1:
            cells = norm(
                f"encoder.levels.{level}.downsample.norm", halve(f"encoder.levels.{level}.downsample.reduction", cells)
            )
    return linear("classifier", norm("layernorm", cells, epsilon).mean(dim=(1, 2)))


@pytest.mark.parametrize("name", configs)
@pytest.mark.parametrize("size", [(32, 32), (37, 61), (8, 21)])
def test_a_folder_gives_the_logits_of_the_original(name, size, tmp_path):
    torch.manual_seed(0)
    weights, images = published_weights(configs[name], num_classes=11), torch.randn(2, 3, *size)
    save_file(weights, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(configs[name]))
    model = load_pretrained(tmp_path)
    expected = expected_logits(configs[name], weights, images)
    with torch.no_grad():
        logits = model(images)
    assert expected.std() > 0.1
    torch.testing.assert_close(logits.double(), expected, rtol=0, atol=1e-4)


@pytest.fixture
def dinat(monkeypatch):
    """transformers' module of DiNAT, whose compiled operators are the loops above.

    transformers 4 gave the operators maps (B, heads, height, width, head_dim), as they want them; 5 mistakes two axes
    and gives (B, width, height, heads, head_dim), which is undone here.
    """
    module = pytest.importorskip("transformers.models.dinat.modeling_dinat")

    def upright(cells, num_heads):
        return cells if cells.shape[1] == num_heads else cells.transpose(1, 3)

    def scores(query, key, table, kernel_size, dilation):
        return scores_of(upright(query, len(table)), upright(key, len(table)), table, kernel_size, dilation)

    def output(weights, value, kernel_size, dilation):
        return mix(weights, upright(value, weights.shape[1]), kernel_size, dilation)

    monkeypatch.setattr(module, "requires_backends", lambda *_: None)
    monkeypatch.setattr(module, "natten2dqkrpb", scores)
    monkeypatch.setattr(module, "natten2dav", output)
    return module


@pytest.mark.parametrize("size", [(28, 44), (45, 77)])
def test_a_saved_dinat_of_transformers_gives_the_same_logits(dinat, size, tmp_path):
    torch.manual_seed(0)
    config = {key: value for key, value in configs["dinat"].items() if key != "model_type"}
    original = dinat.DinatForImageClassification(transformers.DinatConfig(**config, num_labels=11)).eval()
    for parameter in original.parameters():
        parameter.data.add_(torch.randn_like(parameter) * 0.1)
    assert original.state_dict().keys() == published_weights(configs["dinat"], 11).keys()
    original.save_pretrained(tmp_path)
    images = torch.randn(2, 3, *size)
    with torch.no_grad():
        torch.testing.assert_close(load_pretrained(tmp_path)(images), original(images).logits, rtol=0, atol=1e-4)


@pytest.mark.parametrize(("preset", "depths"), [("dinat_mini", [3, 4, 6, 5]), ("dinat_tiny", [3, 4, 18, 5])])
def test_published_sizes_have_as_many_parameters(dinat, preset, depths):
    steps = ((1, 8), (1, 4), (1, 2), (1, 1))
    dilations = [[pattern[index % 2] for index in range(depth)] for pattern, depth in zip(steps, depths, strict=True)]
    config = transformers.DinatConfig(depths=depths, dilations=dilations, num_labels=1000)
    with torch.device("meta"):
        original = dinat.DinatForImageClassification(config)
        models = [
            ImageClassifier(getattr(backbones, name)(), 1000) for name in (preset, preset.replace("dinat", "nat"))
        ]
    count = sum(parameter.numel() for parameter in original.parameters())
    for model in models:
        assert sum(parameter.numel() for parameter in model.parameters()) == count
    assert round(count / 1e6) == {"dinat_mini": 20, "dinat_tiny": 28}[preset]
    ours = [block.attention.dilation[0] for stage in models[0].backbone.stages for block in stage.blocks]
    assert ours == [layer.attention.self.dilation for level in original.dinat.encoder.levels for layer in level.layers]


def test_a_loaded_model_comes_back_from_our_own_format(tmp_path):
    torch.manual_seed(0)
    save_file(published_weights(configs["dinat"], 11), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(configs["dinat"]))
    model, images = load_pretrained(tmp_path), torch.randn(2, 3, 32, 32)
    save_pretrained(model, tmp_path / "ours")
    with torch.no_grad():
        assert torch.equal(load_pretrained(tmp_path / "ours")(images), model(images))


def test_recorded_weights_speak_of_the_map_and_not_of_its_padding(tmp_path):
    torch.manual_seed(0)
    save_file(published_weights(configs["dinat"], 11), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(configs["dinat"]))
    model, images = load_pretrained(tmp_path), torch.randn(2, 3, 32, 32)
    with torch.no_grad(), record_attention(model, full=True) as maps:
        logits = model(images)
        last = maps["backbone.stages.1.blocks.1.attention"]  # 4x4 cells for neighborhoods that need 6x6
    torch.testing.assert_close(logits, model(images))
    assert last.shape == (2, 4, 16, 16)
    totals = last.sum(dim=-1)
    assert (totals < 1 + 1e-5).all()
    assert (totals < 0.99).any()
    torch.testing.assert_close(maps["backbone.stages.0.blocks.1.attention"].sum(-1), torch.ones(2, 2, 64))


@pytest.mark.parametrize(
    ("change", "problem"), [({"patch_size": 8}, "patches of 8"), ({"hidden_act": "relu"}, "'relu'")]
)
def test_what_was_never_published_is_refused(change, problem, tmp_path):
    save_file(published_weights(configs["nat"], 11), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(configs["nat"] | change))
    with pytest.raises(CheckpointError, match=problem):
        load_pretrained(tmp_path)


def test_a_missing_field_is_named(tmp_path):
    save_file(published_weights(configs["nat"], 11), tmp_path / "model.safetensors")
    config = {key: value for key, value in configs["nat"].items() if key != "depths"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"config\.json doesn't say 'depths'"):
        load_pretrained(tmp_path)
