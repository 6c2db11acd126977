import warnings

import pytest
import torch

from visattn.attention import (
    GraphAttention,
    GraphAttentionV2,
    box_edges,
    graph_attention,
    grid_edges,
    nearest_neighbor_edges,
)


def graph(nodes=11, edges=37):
    torch.manual_seed(0)
    pairs = torch.randint(nodes, (2, edges))
    return torch.randn(nodes, 6, dtype=torch.float64), pairs.unique(dim=1)


def test_attention_equals_its_definition_node_by_node():
    _, edges = graph()
    value, scores = torch.randn(11, 3, 5, dtype=torch.float64), torch.randn(edges.shape[1], 3, dtype=torch.float64)
    output = graph_attention(value, scores, edges, 13)
    for node in range(13):
        incoming = (edges[1] == node).nonzero().flatten()
        weights = scores[incoming].softmax(dim=0)
        expected = (weights[..., None] * value[edges[0, incoming]]).sum(dim=0)
        torch.testing.assert_close(output[node], expected)
    assert (output[11:] == 0).all()


@pytest.mark.parametrize("self_loops", [False, True])
def test_gat_equals_torch_geometric(self_loops):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from torch_geometric.nn import GATConv
    nodes, edges = graph()
    theirs = GATConv(6, 5, heads=3, add_self_loops=self_loops).double()
    ours = GraphAttention(6, 3, head_dim=5, self_loops=self_loops).double()
    with torch.no_grad():
        theirs.bias.normal_()
        ours.value.weight.copy_(theirs.lin.weight)
        ours.source_score.copy_(theirs.att_src[0])
        ours.target_score.copy_(theirs.att_dst[0])
        ours.bias.copy_(theirs.bias)
    torch.testing.assert_close(ours(nodes, edges), theirs(nodes, edges), rtol=0, atol=1e-10)


@pytest.mark.parametrize("self_loops", [False, True])
def test_gatv2_equals_torch_geometric(self_loops):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from torch_geometric.nn import GATv2Conv
    nodes, edges = graph()
    theirs = GATv2Conv(6, 5, heads=3, add_self_loops=self_loops).double()
    ours = GraphAttentionV2(6, 3, head_dim=5, self_loops=self_loops).double()
    with torch.no_grad():
        theirs.bias.normal_()
        for layer, other in ((ours.source, theirs.lin_l), (ours.target, theirs.lin_r)):
            other.bias.normal_()
            layer.load_state_dict(other.state_dict())
        ours.score.copy_(theirs.att[0])
        ours.bias.copy_(theirs.bias)
    torch.testing.assert_close(ours(nodes, edges), theirs(nodes, edges), rtol=0, atol=1e-10)


@pytest.mark.parametrize("kind", [GraphAttention, GraphAttentionV2])
def test_gradients_pass_gradcheck_and_weights_are_seen(kind):
    nodes, edges = graph(nodes=5, edges=13)
    module, seen = kind(6, 3).double(), []
    assert torch.autograd.gradcheck(lambda nodes: module(nodes, edges), nodes.requires_grad_(), fast_mode=True)
    module.record = lambda weights, edges: seen.append((weights, edges))
    module(nodes, edges)
    weights, shown = seen[0]
    total = torch.zeros(5, 3, dtype=torch.float64).index_add(0, shown[1], weights)
    torch.testing.assert_close(total, torch.ones_like(total))


def test_all_pairs_as_edges_are_attention_among_all():
    torch.manual_seed(0)
    value, query, key = torch.randn(3, 7, 2, 4, dtype=torch.float64)
    source, target = torch.cartesian_prod(torch.arange(7), torch.arange(7)).T
    scores = (query[target] * key[source]).sum(-1)
    expected = torch.einsum("hqk,khd->qhd", torch.einsum("qhd,khd->hqk", query, key).softmax(-1), value)
    torch.testing.assert_close(graph_attention(value, scores, torch.stack([source, target]), 7), expected)


@pytest.mark.parametrize("diagonal", [False, True])
def test_grid_edges_join_all_neighbors_both_ways(diagonal):
    edges = {tuple(edge) for edge in grid_edges(3, 5, diagonal=diagonal).T.tolist()}
    expected = {
        (a, b)
        for a in range(15)
        for b in range(15)
        if a != b
        and max(abs(a // 5 - b // 5), abs(a % 5 - b % 5)) == 1
        and (diagonal or a // 5 == b // 5 or a % 5 == b % 5)
    }
    assert edges == expected


def test_nearest_neighbors_are_those_of_the_same_image_with_the_most_alike_features():
    torch.manual_seed(0)
    features = torch.randn(2, 7, 5)
    edges = nearest_neighbor_edges(features, 2, dilation=2)
    assert edges.shape == (2, 28)
    cosine = torch.nn.functional.cosine_similarity(features[1, 3], features[1], dim=-1)
    order = cosine.argsort(descending=True)
    assert edges[0, edges[1] == 10].tolist() == [7 + order[0].item(), 7 + order[2].item()]
    with pytest.raises(ValueError, match="at most 3 fit"):
        nearest_neighbor_edges(features, 4, dilation=2)


def test_boxes_that_touch_are_joined():
    boxes = torch.tensor([[0.0, 0, 4, 4], [3, 3, 8, 8], [10, 0, 12, 2], [20, 20, 21, 21]])
    assert box_edges(boxes).T.tolist() == [[0, 1], [1, 0]]
    assert [2, 1] in box_edges(boxes, distance=2).T.tolist()


def test_heads_must_divide_the_channels():
    with pytest.raises(ValueError, match="don't divide"):
        GraphAttention(7, 2)
