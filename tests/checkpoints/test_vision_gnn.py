"""The published layout of Vision GNN: a small network written from the paper and the names of its weights."""

import itertools

import pytest
import torch
from torch import nn
from torch.nn import functional

import visattn
from visattn import backbones
from visattn.backbones.embedding import resample_positions
from visattn.checkpoints import CheckpointError, load_pretrained
from visattn.heads import ImageClassifier


def pair(narrow, wide, kernel_size=1, stride=1, groups=1):
    convolution = nn.Conv2d(narrow, wide, kernel_size, stride, kernel_size // 2, groups=groups)
    return [convolution, nn.BatchNorm2d(wide)]


class GraphConvolution(nn.Module):
    """Weights by the published names; neighbors by a full sort of squared distances."""

    def __init__(self, dim, side, neighbors, dilation, reduction, positions):
        super().__init__()
        self.fc1 = nn.Sequential(*pair(dim, dim))
        self.graph_conv = nn.ModuleDict(
            {"gconv": nn.ModuleDict({"nn": nn.Sequential(*pair(2 * dim, 2 * dim, groups=4))})}
        )
        self.fc2 = nn.Sequential(*pair(2 * dim, dim))
        self.neighbors, self.dilation, self.reduction = neighbors, dilation, reduction
        self.relative_pos = nn.Parameter(distances(side, dim, reduction), requires_grad=False) if positions else None

    def forward(self, cells):
        inner = self.fc1(cells)
        nodes, others = inner.flatten(2), functional.avg_pool2d(inner, self.reduction).flatten(2)  # (B, dim, N or M)
        unit, other_unit = functional.normalize(nodes, dim=1), functional.normalize(others, dim=1)
        distance = torch.cdist(unit.transpose(1, 2).double(), other_unit.transpose(1, 2).double()).square()
        if self.relative_pos is not None:
            distance = distance + self.relative_pos
        seen = distance.argsort(dim=-1)[..., : self.neighbors * self.dilation : self.dilation]  # (B, N, neighbors)
        images = []
        for image, chosen in zip(others, seen, strict=True):
            images.append(image[:, chosen].max(dim=-1).values)  # (dim, N)
        relative = torch.stack(images) - nodes
        joint = torch.stack([nodes, relative], dim=2).flatten(1, 2).unflatten(2, cells.shape[2:])
        return cells + self.fc2(functional.gelu(self.graph_conv["gconv"]["nn"](joint)))


class FeedForward(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.fc1, self.fc2 = nn.Sequential(*pair(dim, 4 * dim)), nn.Sequential(*pair(4 * dim, dim))

    def forward(self, cells):
        return cells + self.fc2(functional.gelu(self.fc1(cells)))


class Downsampling(nn.Module):
    def __init__(self, narrow, wide):
        super().__init__()
        self.conv = nn.Sequential(*pair(narrow, wide, 3, 2))

    def forward(self, cells):
        return self.conv(cells)


class Published(nn.Module):
    def __init__(self, dims, depths, side, neighbors, dilations, reductions, positions, classes=7):
        super().__init__()
        steps = 4 if len(dims) == 1 else 2
        widths = [3, *(dims[0] >> (steps - step) for step in range(1, steps + 1))]
        layers = []
        for narrow, wide in itertools.pairwise(widths):
            layers += [*pair(narrow, wide, 3, 2), nn.GELU()]
        self.stem = nn.Module()
        self.stem.convs = nn.Sequential(*layers, *pair(dims[0], dims[0], 3))
        self.pos_embed = nn.Parameter(torch.randn(1, dims[0], side, side))
        counts, steps = iter(neighbors), iter(dilations)
        parts = []
        for stage, (dim, depth, reduction) in enumerate(zip(dims, depths, reductions, strict=True)):
            if stage:
                parts.append(Downsampling(dims[stage - 1], dim))
            size = side // 2**stage
            for _ in range(depth):
                graph = GraphConvolution(dim, size, next(counts), next(steps), reduction, positions)
                parts.append(nn.Sequential(graph, FeedForward(dim)))
        self.backbone = nn.Sequential(*parts)
        last = nn.Conv2d(1024, classes, 1)
        self.prediction = nn.Sequential(*pair(dims[-1], 1024), nn.GELU(), nn.Dropout(0.0), last)

    def forward(self, images):
        cells = self.backbone(self.stem.convs(images) + self.pos_embed)
        return self.prediction(cells.mean(dim=(2, 3), keepdim=True)).flatten(1)


def distances(side, dim, reduction):
    """Minus twice the mean product of sinusoids of rows and columns, shrunk along the columns."""
    rows, columns = torch.arange(side * side) // side, torch.arange(side * side) % side
    frequencies = 10_000.0 ** -(torch.arange(dim // 4, dtype=torch.float64) / (dim / 4))
    angles = [place[:, None] * frequencies for place in (columns, rows)]
    embedding = torch.cat([wave for angle in angles for wave in (angle.sin(), angle.cos())], dim=1)
    table = (2 * embedding @ embedding.T / dim).float()[None, None]
    size = (side * side, side * side // reduction**2)
    return -functional.interpolate(table, size, mode="bicubic", align_corners=False)[0]


# Five blocks see 9 to 18 others, rising evenly; every fourth block takes one more step between them.
originals = {
    "vig_ti_224_gelu": ((16,), (5,), 7, (9, 11, 13, 15, 18), (1, 1, 1, 1, 2), (1,), False),
    "pvig_ti_224_gelu": ((8, 16, 20, 24), (1, 1, 3, 1), 40, (9,) * 6, (1, 1, 1, 1, 2, 2), (4, 2, 1, 1), True),
}


@pytest.fixture(params=originals)
def original(request):
    torch.manual_seed(0)
    network = Published(*originals[request.param])
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.uniform_(0.5, 1.5)
                module.bias.normal_(std=0.3)
                module.running_mean.normal_(std=0.3)
                module.running_var.uniform_(0.5, 1.5)
    return request.param, network.eval()


def test_logits_are_those_of_the_published_network(original, tmp_path):
    name, network = original
    torch.save(network.state_dict(), tmp_path / "weights.pth.tar")
    model = load_pretrained(tmp_path / "weights.pth.tar", architecture=name)
    assert isinstance(model, ImageClassifier)
    images = torch.randn(2, 3, *model.backbone.image_size)
    with torch.no_grad():
        expected = network(images)
        torch.testing.assert_close(model(images), expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(model(images), expected, rtol=1e-4, atol=1e-4)  # not folded
    assert model.preprocess.mean == (0.5, 0.5, 0.5)
    assert model.preprocess.image_size == model.backbone.image_size
    larger = load_pretrained(tmp_path / "weights.pth.tar", architecture=name, image_size=192, num_classes=3)
    assert larger(torch.randn(1, 3, 192, 192)).shape == (1, 3)
    table, grids = model.backbone.position_embedding, (model.backbone.grid, larger.backbone.grid)
    torch.testing.assert_close(larger.backbone.position_embedding, resample_positions(table, *grids))


@pytest.mark.parametrize(("preset", "published"), [("vig_tiny", 7_184_744), ("pyramid_vig_tiny", 10_714_376)])
def test_presets_have_as_many_parameters_as_the_published_networks(preset, published):
    """7.1 M and 10.7 M in tables 1 and 2: counted by the parts that the published code builds."""
    with torch.device("meta"):
        model = visattn.create_model(preset)
        network = Published(
            *{
                "vig_tiny": ((192,), (12,), 14, (9,) * 12, (1,) * 12, (1,), False, 1000),
                "pyramid_vig_tiny": (
                    (48, 96, 240, 384), (2, 2, 6, 2), 56, (9,) * 12, (1,) * 12, (1, 1, 1, 1), False, 1000
                ),
            }[preset]
        )  # fmt: skip
    ours, theirs = (sum(parameter.numel() for parameter in module.parameters()) for module in (model, network))
    assert ours == theirs == published


def test_what_is_another_network_is_refused(original, tmp_path):
    name, network = original
    weights = network.state_dict()

    def load(changed, architecture=name):
        torch.save(changed, tmp_path / "weights.pth")
        return load_pretrained(tmp_path / "weights.pth", architecture=architecture)

    with pytest.raises(CheckpointError, match=r"pos_embed or prediction\.4\.weight is missing"):
        load({key: tensor for key, tensor in weights.items() if key != "pos_embed"})
    other = next(key for key in originals if key != name)
    with pytest.raises(CheckpointError, match=f"it is no {other}"):
        load(weights, other)
    with pytest.raises(CheckpointError, match=r"unexpected: extra\.weight"):
        load(weights | {"extra.weight": torch.zeros(1)})
    with pytest.raises(CheckpointError, match=r"missing: backbone\.stages\.0\.0\.after\.convolution\.weight"):
        load({key: tensor for key, tensor in weights.items() if key != "backbone.0.0.fc2.0.weight"})
    if name.startswith("p"):
        with pytest.raises(CheckpointError, match="isn't the published table of distances for a 40x40 map"):
            load(weights | {"backbone.0.0.relative_pos": torch.zeros(1, 1600, 100)})


def test_the_backbone_is_one_of_ours(original, tmp_path):
    name, network = original
    torch.save({"model": network.state_dict()}, tmp_path / "weights.pth")
    backbone = load_pretrained(tmp_path / "weights.pth", architecture=name).backbone
    assert isinstance(backbone, backbones.VisionGNN)
    dims, depths, *_ = originals[name]
    assert (backbone.channels, backbone.depths) == (dims, depths)
