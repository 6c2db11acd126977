"""Graph attention: a node sees the nodes that edges lead from; and graphs over the places of an image."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional


def graph_attention(value: Tensor, scores: Tensor, edges: Tensor, num_nodes: int, dropout: float = 0.0) -> Tensor:
    """Every node sums the values of its sources, by the softmax of its edges' scores. Cost: edges * head_dim.

    Args:
        value: (nodes, heads, head_dim), of the sources.
        scores: (edges, heads).
        edges: (2, edges), long: source and target of each.
        num_nodes: targets; one that no edge leads to gets zeros.
        dropout: probability that a weight is dropped.

    Returns:
        (num_nodes, heads, head_dim).

    Source: Velickovic et al. 2018, https://arxiv.org/abs/1710.10903, equations 2 and 4.
    """
    source, target = edges
    weights = functional.dropout(edge_softmax(scores, target, num_nodes), dropout)
    output = value.new_zeros(num_nodes, *value.shape[1:])
    return output.index_add(0, target, value[source] * weights.to(value.dtype).unsqueeze(-1))


def edge_softmax(scores: Tensor, target: Tensor, num_nodes: int) -> Tensor:
    """Softmax of scores (edges, heads) among the edges that lead to the same target (edges,)."""
    index = target[:, None].expand_as(scores)
    highest = scores.new_full((num_nodes, scores.shape[1]), float("-inf"))
    highest = highest.scatter_reduce(0, index, scores.detach(), "amax")
    exponentials = (scores - highest[target]).exp()
    total = scores.new_zeros(num_nodes, scores.shape[1]).index_add(0, target, exponentials)
    return exponentials / total[target]


class GraphAttention(nn.Module):
    """GAT: nodes (N, dim) and edges in, nodes (N, heads * head_dim) out.

    The score of an edge from j to i is LeakyReLU(a_source . W h_j + a_target . W h_i).

    Args:
        dim: channels of a node.
        num_heads: attention heads.
        head_dim: channels of a head; None divides dim by num_heads.
        self_loops: every node sees itself too, whatever the edges.
        negative_slope: of LeakyReLU.
        dropout: probability that a weight is dropped in training.
        bias: add one to the output.

    Attributes:
        record: None, or a callable that sees weights (edges, heads) and edges (2, edges) of every forward.

    Raises:
        ValueError: num_heads doesn't divide dim and no head_dim is given.

    Source: Velickovic et al. 2018, https://arxiv.org/abs/1710.10903.
    """

    record: Any = None

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        head_dim: int | None = None,
        self_loops: bool = True,
        negative_slope: float = 0.2,
        dropout: float = 0.0,
        bias: bool = True,
    ) -> None:
        super().__init__()
        if head_dim is None and dim % num_heads:
            raise ValueError(f"{num_heads} heads don't divide {dim} channels; choose a divisor or set head_dim")
        self.num_heads, self.head_dim = num_heads, head_dim or dim // num_heads
        self.self_loops, self.negative_slope, self.dropout = self_loops, negative_slope, dropout
        self.make_layers(dim)
        self.bias = nn.Parameter(torch.zeros(num_heads * self.head_dim)) if bias else None

    def make_layers(self, dim: int) -> None:
        self.value = nn.Linear(dim, self.num_heads * self.head_dim, bias=False)
        self.source_score = nn.Parameter(torch.empty(self.num_heads, self.head_dim))
        self.target_score = nn.Parameter(torch.empty(self.num_heads, self.head_dim))
        for parameter in (self.value.weight, self.source_score, self.target_score):
            nn.init.xavier_uniform_(parameter)

    def values_and_scores(self, nodes: Tensor, edges: Tensor) -> tuple[Tensor, Tensor]:
        """Values (N, heads, head_dim) and the scores (edges, heads)."""
        value = self.value(nodes).unflatten(-1, (self.num_heads, self.head_dim))
        source, target = ((value * vector).sum(dim=-1) for vector in (self.source_score, self.target_score))
        return value, functional.leaky_relu(source[edges[0]] + target[edges[1]], self.negative_slope)

    def forward(self, nodes: Tensor, edges: Tensor) -> Tensor:
        """Nodes (N, dim) and edges (2, edges), long, source and target of each, to (N, heads * head_dim)."""
        if self.self_loops:
            edges = with_self_loops(edges, len(nodes))
        value, scores = self.values_and_scores(nodes, edges)
        if self.record is not None:
            self.record(edge_softmax(scores, edges[1], len(nodes)), edges)
        dropout = self.dropout if self.training else 0.0
        output = graph_attention(value, scores, edges, len(nodes), dropout).flatten(1)
        return output if self.bias is None else output + self.bias


class GraphAttentionV2(GraphAttention):
    """GATv2: as `GraphAttention`, with scores a . LeakyReLU(W_source h_j + W_target h_i), whose order of the sources
    depends on the target.

    Source: Brody et al. 2022, https://arxiv.org/abs/2105.14491, equation 7.
    """

    def make_layers(self, dim: int) -> None:
        width = self.num_heads * self.head_dim
        self.source, self.target = nn.Linear(dim, width), nn.Linear(dim, width)
        self.score = nn.Parameter(torch.empty(self.num_heads, self.head_dim))
        for parameter in (self.source.weight, self.target.weight, self.score):
            nn.init.xavier_uniform_(parameter)
        for layer in (self.source, self.target):
            nn.init.zeros_(layer.bias)

    def values_and_scores(self, nodes: Tensor, edges: Tensor) -> tuple[Tensor, Tensor]:
        heads = (self.num_heads, self.head_dim)
        source, target = self.source(nodes).unflatten(-1, heads), self.target(nodes).unflatten(-1, heads)
        joint = functional.leaky_relu(source[edges[0]] + target[edges[1]], self.negative_slope)
        return source, (joint * self.score).sum(dim=-1)


def with_self_loops(edges: Tensor, num_nodes: int) -> Tensor:
    """Edges (2, n) without those from a node to itself, and then one of these for every node."""
    loops = torch.arange(num_nodes, device=edges.device)
    return torch.cat([edges[:, edges[0] != edges[1]], loops.expand(2, -1)], dim=1)


def grid_edges(height: int, width: int, *, diagonal: bool = True, device: torch.device | None = None) -> Tensor:
    """Edges (2, n) between the neighboring cells of a map, both ways, row by row; with or without the diagonal ones."""
    number = torch.arange(height * width, device=device).view(height, width)
    steps = [(0, 1), (1, 0), *([(1, 1), (1, -1)] if diagonal else [])]
    pairs = []
    for down, right in steps:
        first = number[: height - down, max(-right, 0) : width - max(right, 0)]
        second = number[down:, max(right, 0) : width + min(right, 0)]
        pairs.append(torch.stack([first.flatten(), second.flatten()]))
    oneway = torch.cat(pairs, dim=1)
    return torch.cat([oneway, oneway.flip(0)], dim=1)


def nearest_neighbor_edges(features: Tensor, count: int, dilation: int = 1) -> Tensor:
    """Edges (2, batch * N * count) from the nodes whose features are nearest to each, itself among them.

    Nodes of a batch are numbered image by image. With dilation d, every d-th of the count * d nearest is taken.

    Args:
        features: (batch, N, channels), compared by the distance of their directions.

    Raises:
        ValueError: there are fewer nodes than count * dilation.

    Source: Han et al. 2022 (Vision GNN, https://arxiv.org/abs/2206.00272), section 3.1; dilation: Li et al. 2019
        (DeepGCNs, https://arxiv.org/abs/1904.03751), section 3.3.
    """
    batch, nodes, _ = features.shape
    if count * dilation > nodes:
        raise ValueError(
            f"{count} neighbors with dilation {dilation} of {nodes} nodes; at most {nodes // dilation} fit"
        )
    direction = functional.normalize(features.detach(), dim=-1)
    nearest = (direction @ direction.transpose(1, 2)).topk(count * dilation, dim=-1).indices[..., ::dilation]
    first = (torch.arange(batch, device=features.device) * nodes)[:, None, None]  # of each image
    target = first + torch.arange(nodes, device=features.device)[:, None]
    return torch.stack([(nearest + first).flatten(), target.expand_as(nearest).flatten()])


def box_edges(bounding_boxes: Tensor, distance: float = 0.0) -> Tensor:
    """Edges (2, n), both ways, between boxes (N, 4), xyxy, that overlap or whose borders are at most `distance` apart.

    Args:
        distance: in the unit of the boxes, along each axis.
    """
    left, top, right, bottom = bounding_boxes.unbind(1)
    near = (left[:, None] <= right + distance) & (left <= right[:, None] + distance)
    near &= (top[:, None] <= bottom + distance) & (top <= bottom[:, None] + distance)
    near.fill_diagonal_(False)
    return near.nonzero().T.contiguous()
