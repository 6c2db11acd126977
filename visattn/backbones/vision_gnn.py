"""Vision GNN: the cells of a map are the nodes of a graph, whose edges lead from the cells most like each."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from visattn.attention import MapGraphAttention
from visattn.attention.map_graph import MapGraph, gather_neighbors
from visattn.backbones.conv_norm import ConvNorm
from visattn.backbones.embedding import resample_positions
from visattn.backbones.features import Backbone, Features, as_pair, constructor_arguments
from visattn.backbones.layers import drop_path, drop_path_rates


class VisionGNN(Backbone):
    """Images (B, channels, H, W) to `Features` with one map per stage: a pyramid, or with one stage isotropic.

    3x3 convolutions of stride 2 make the first map, and one of them each further map. Behind the last map, the mean of
    its cells, which nothing normalises, is what `pooled` is made of.

    Args:
        image_size: height and width in pixels, or one number, that the position embedding is made for.
        patch_size: pixels per cell of the first map along one axis, a power of two from 2.
        dims: channels of each stage, multiples of 4.
        depths: blocks of each stage.
        num_heads: attention heads of each stage, of aggregation "attention".
        graph: what a cell sees: "nearest", those most like it; or "grid", itself and the eight around it.
        aggregation: how: "max_relative", the greatest difference to itself in each channel; or "attention", see
            `MapGraphAttention`.
        neighbors: of graph "nearest": how many the first and the last block see; between them the number rises
            linearly.
        max_dilation: of graph "nearest": every how many-th of the nearest is seen at most; it rises by 1 with every
            fourth block.
        reductions: of graph "nearest": side in cells, for each stage, of the squares whose means are seen in place of
            cells.
        closeness: of graph "nearest": whether cells close to each other on the map count as more alike.
        mlp_ratio: hidden channels of a feed-forward block / channels.
        pooled_dim: channels of a layer between the mean and a classifier, as published, whose batch norm can't train on
            a single image; None leaves it out.
        in_channels: of the images.
        dropout: probability that a channel of that layer is dropped, or without it of the mean, in training.
        attention_dropout: probability that an attention weight is dropped in training.
        drop_path: probability that a sample skips a branch of the last block in training; rises linearly from 0.

    Raises:
        ValueError: dims, depths, num_heads and reductions differ in length, dims or patch_size are unfit, graph or
            aggregation is unknown, or weights of "max_relative", of which there are none, should be dropped.

    Source: Han et al. 2022, https://arxiv.org/abs/2206.00272, sections 3.1 to 3.3; details as in the published code
        (https://github.com/huawei-noah/Efficient-AI-Backbones, vig_pytorch).
    """

    position_antialias = True  # of the position embedding on another map

    def __init__(
        self,
        image_size: int | Sequence[int] = 224,
        patch_size: int = 4,
        dims: Sequence[int] = (48, 96, 240, 384),
        depths: Sequence[int] = (2, 2, 6, 2),
        num_heads: Sequence[int] = (1, 2, 5, 8),
        *,
        graph: str = "nearest",
        aggregation: str = "max_relative",
        neighbors: Sequence[int] = (9, 9),
        max_dilation: int = 5,
        reductions: Sequence[int] = (4, 2, 1, 1),
        closeness: bool = True,
        mlp_ratio: float = 4.0,
        pooled_dim: int | None = 1024,
        in_channels: int = 3,
        dropout: float = 0.0,
        attention_dropout: float = 0.0,
        drop_path: float = 0.0,
    ) -> None:
        arguments = constructor_arguments(locals())
        super().__init__()
        self.arguments = arguments
        if not len(dims) == len(depths) == len(num_heads) == len(reductions):
            raise ValueError(f"dims {dims}, depths {depths}, num_heads {num_heads}, reductions {reductions} disagree")
        if any(dim % 4 for dim in dims):
            raise ValueError(f"dims {dims}: choose multiples of 4, for four groups of channels")
        if patch_size < 2 or patch_size & (patch_size - 1):
            raise ValueError(f"patch_size {patch_size} doesn't fit a convolutional stem; choose a power of two from 2")
        if aggregation not in ("max_relative", "attention"):
            raise ValueError(f"aggregation {aggregation!r} is unknown; choose max_relative or attention")
        if aggregation == "max_relative" and attention_dropout:
            raise ValueError(f"max_relative has no weights to drop: set attention_dropout {attention_dropout} to 0")
        self.image_size = as_pair(image_size)
        self.channels = tuple(dims)
        self.strides = tuple(patch_size * 2**stage for stage in range(len(dims)))
        self.depths = tuple(depths)
        self.num_features = pooled_dim or dims[-1]
        self.num_prefix_tokens = 0
        self.num_layers = sum(depths) + 1
        self.dropout = dropout

        self.stem = stem(in_channels, dims[0], patch_size)
        self.grid = (-(-self.image_size[0] // patch_size), -(-self.image_size[1] // patch_size))
        self.position_embedding = nn.Parameter(torch.zeros(1, self.grid[0] * self.grid[1], dims[0]))
        self.downsamples = nn.ModuleList(
            ConvNorm(narrow, wide, 3, stride=2, bias=True) for narrow, wide in itertools.pairwise(dims)
        )
        rates = drop_path_rates(drop_path, sum(depths))
        first, last = neighbors
        counts = [first + (last - first) * index // max(len(rates) - 1, 1) for index in range(len(rates))]
        self.stages = nn.ModuleList()
        for stage, (dim, heads, reduction) in enumerate(zip(dims, num_heads, reductions, strict=True)):
            blocks = nn.ModuleList()
            for index in range(sum(depths[:stage]), sum(depths[: stage + 1])):
                seen = MapGraph(graph, counts[index], min(index // 4 + 1, max_dilation), reduction, closeness)
                block_heads = heads if aggregation == "attention" else None
                blocks.append(GraphBlock(dim, seen, block_heads, mlp_ratio, attention_dropout, rates[index]))
            self.stages.append(blocks)
        self.widen = ConvNorm(dims[-1], pooled_dim, activation="gelu", bias=True) if pooled_dim else None
        self.initialize()

    def initialize(self) -> None:
        """Draws new kernels, normal with deviation 1 / sqrt(fan-in), which norms make up for; their biases are zero."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="linear")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, images: Tensor) -> Features:
        """Images (B, channels, H, W) of any size to `Features`."""
        # Convolutions of 1x1 and the rows that neighbors are gathered from want all channels of a cell together.
        cells = self.stem(images.contiguous(memory_format=torch.channels_last))  # (B, C_0, height, width)
        grid = (cells.shape[2], cells.shape[3])
        positions = resample_positions(self.position_embedding, self.grid, grid, self.position_antialias)
        cells = cells + positions.unflatten(1, grid).permute(0, 3, 1, 2)
        maps = []
        for index, stage in enumerate(self.stages):
            if index:
                cells = self.downsamples[index - 1](cells)  # (B, C_i, height, width)
            for block in stage.children():
                cells = block(cells)
            maps.append(cells)
        tokens = cells.flatten(2).transpose(1, 2)  # (B, height * width, C)
        pooled = tokens.mean(dim=1)
        if self.widen is not None:
            pooled = self.widen(pooled[:, :, None, None]).flatten(1)  # (B, pooled_dim)
        if self.dropout and self.training:
            pooled = functional.dropout(pooled, self.dropout)
        return Features(tuple(maps), tokens, pooled)

    def layer_of(self, parameter_name: str) -> int:
        """0 for stem and positions, i for the i-th block (from 1) of all stages; a downsampling goes with the next."""
        part, *rest = parameter_name.split(".")
        if part == "stages":
            return sum(self.depths[: int(rest[0])]) + int(rest[1]) + 1
        if part == "downsamples":
            return sum(self.depths[: int(rest[0]) + 1]) + 1
        return self.num_layers - 1 if part == "widen" else 0


class GraphBlock(nn.Module):
    """A graph convolution between two linear layers, then a feed-forward block: (B, dim, height, width) in and out.

    Args:
        dim: channels.
        graph: which cells a cell sees.
        num_heads: of attention to them; None takes their greatest difference to the cell instead.
        mlp_ratio: hidden channels of the feed-forward block / dim.
        attention_dropout: probability that an attention weight is dropped in training.
        drop_path: probability that a sample skips a branch in training.
    """

    def __init__(
        self,
        dim: int,
        graph: MapGraph,
        num_heads: int | None,
        mlp_ratio: float,
        attention_dropout: float,
        drop_path: float,
    ) -> None:
        super().__init__()
        graph.check()
        self.graph, self.drop_path = graph, drop_path
        self.before = ConvNorm(dim, dim, bias=True)
        self.attention: MapGraphAttention | None = None
        if num_heads is not None:
            self.attention = MapGraphAttention(
                dim,
                num_heads,
                graph=graph.kind,
                neighbors=graph.neighbors,
                dilation=graph.dilation,
                reduction=graph.reduction,
                closeness=graph.closeness,
                dropout=attention_dropout,
            )
        self.update = ConvNorm(2 * dim, 2 * dim, groups=4, activation="gelu", bias=True)
        self.after = ConvNorm(2 * dim, dim, bias=True)
        hidden_dim = int(dim * mlp_ratio)
        self.mlp = nn.Sequential(
            ConvNorm(dim, hidden_dim, activation="gelu", bias=True), ConvNorm(hidden_dim, dim, bias=True)
        )

    def forward(self, cells: Tensor) -> Tensor:
        cells = cells + self.drop(self.convolve(cells))
        return cells + self.drop(self.mlp(cells))

    def convolve(self, cells: Tensor) -> Tensor:
        """The graph convolution."""
        grid = (cells.shape[2], cells.shape[3])
        tokens = self.before(cells).flatten(2).transpose(1, 2)  # (B, height * width, dim)
        if self.attention is None:
            candidates = self.graph.pool(tokens, grid)
            seen = max_relative(tokens, candidates, self.graph.connect(tokens, candidates, grid))
        else:
            seen = self.attention(tokens, grid)
        joint = torch.stack([tokens, seen], dim=-1).flatten(2)  # (B, height * width, 2 * dim), in turns, as published
        return self.after(self.update(joint.unflatten(1, grid).permute(0, 3, 1, 2)))

    def drop(self, branch: Tensor) -> Tensor:
        return drop_path(branch, self.drop_path) if self.drop_path and self.training else branch


def max_relative(tokens: Tensor, candidates: Tensor, neighbors: Tensor) -> Tensor:
    """The greatest difference of a neighbor to each token in each channel. Cost: tokens * neighbors * channels.

    Args:
        tokens: (B, N, channels).
        candidates: (B, M, channels).
        neighbors: (B, N, n), or (N, n) for all images, long: candidates; -1 for none, where there are fewer.

    Returns:
        (B, N, channels).

    Source: Li et al. 2019 (DeepGCNs, https://arxiv.org/abs/1904.03751), section 3.2.
    """
    neighbors = torch.where(neighbors < 0, neighbors.amax(dim=-1, keepdim=True), neighbors)  # twice the same is no more
    return gather_neighbors(candidates, neighbors).amax(dim=2) - tokens


def stem(in_channels: int, dim: int, patch_size: int) -> nn.Sequential:
    """3x3 convolutions of stride 2, the last of them to `dim` channels, and one of stride 1 that nothing activates."""
    steps = patch_size.bit_length() - 1
    widths = [in_channels, *(max(dim >> (steps - step), 1) for step in range(1, steps)), dim]
    return nn.Sequential(
        *(
            ConvNorm(narrow, wide, 3, stride=2, activation="gelu", bias=True)
            for narrow, wide in itertools.pairwise(widths)
        ),
        ConvNorm(dim, dim, 3, bias=True),
    )


def vig_32(image_size: int | Sequence[int] = 32, patch_size: int | None = None, **overrides: Any) -> VisionGNN:
    """A pyramid of three stages for small images with attention over the graphs, 3.4 M parameters.

    Patches have 2 pixels; from 64 pixels on 4, and then cells of the first two stages see the means of squares.
    """
    large = min(as_pair(image_size)) >= 64
    arguments: dict[str, Any] = {
        "dims": (64, 128, 256),
        "depths": (1, 3, 2),
        "num_heads": (2, 4, 8),
        "aggregation": "attention",
        "max_dilation": 1,
        "reductions": (4, 2, 1) if large else (1, 1, 1),
        "pooled_dim": None,
    } | overrides
    return VisionGNN(image_size, patch_size or (4 if large else 2), **arguments)


def vig_tiny(image_size: int | Sequence[int] = 224, patch_size: int | None = None, **overrides: Any) -> VisionGNN:
    """ViG-Ti, isotropic, 6.2 M parameters, 7.2 M with the classifier of ImageNet; below 64 pixels patches of 4.

    Source: Han et al. 2022, https://arxiv.org/abs/2206.00272, table 1.
    """
    arguments: dict[str, Any] = {
        "dims": (192,),
        "depths": (12,),
        "num_heads": (4,),
        "neighbors": (9, 18),
        "max_dilation": 10,
        "reductions": (1,),
        "closeness": False,
    } | overrides
    return VisionGNN(image_size, patch_size or (4 if min(as_pair(image_size)) < 64 else 16), **arguments)


def pyramid_vig_tiny(
    image_size: int | Sequence[int] = 224, patch_size: int | None = None, **overrides: Any
) -> VisionGNN:
    """Pyramid ViG-Ti, 9.7 M parameters, 10.7 M with the classifier of ImageNet; below 64 pixels patches of 2.

    Source: Han et al. 2022, https://arxiv.org/abs/2206.00272, table 2.
    """
    return VisionGNN(image_size, patch_size or (2 if min(as_pair(image_size)) < 64 else 4), **overrides)
