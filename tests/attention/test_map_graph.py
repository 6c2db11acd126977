import pytest
import torch
from torch.nn import functional

from visattn.attention import GraphAttentionV2, MapGraphAttention, grid_edges, map_graph_attention
from visattn.attention import nearest_neighbor_edges as nearest_edges
from visattn.attention.map_graph import adjacent_cells, grid_closeness, nearest_cells


def leaves(queries=7, keys=11, neighbors=3):
    torch.manual_seed(0)
    shapes = [(2, queries, 3, 5), (2, keys, 3, 5), (2, keys, 3, 5), (3, 5)]
    tensors = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]
    return tensors, torch.rand(2, queries, keys).topk(neighbors).indices


def test_attention_equals_its_definition_node_by_node():
    (query, key, value, score), neighbors = leaves()
    neighbors[1, 2, 1:] = -1
    output = map_graph_attention(query, key, value, score, neighbors, negative_slope=0.3)
    for image, node in torch.cartesian_prod(torch.arange(2), torch.arange(7)).tolist():
        seen = [index for index in neighbors[image, node].tolist() if index >= 0]
        joint = functional.leaky_relu(query[image, node] + key[image, seen], 0.3)  # (n, heads, head_dim)
        weights = (joint * score).sum(-1).softmax(dim=0)
        torch.testing.assert_close(output[image, node], (weights[..., None] * value[image, seen]).sum(dim=0))


def test_gradients_pass_gradcheck():
    tensors, neighbors = leaves(queries=3, keys=5)
    neighbors[0, 1, 2] = -1
    run = lambda *tensors: map_graph_attention(*tensors, neighbors)  # noqa: E731
    assert torch.autograd.gradcheck(run, tensors, fast_mode=True)


@pytest.mark.parametrize("graph", ["nearest", "grid"])
def test_with_values_made_as_keys_the_module_is_gatv2_over_the_edges(graph):
    torch.manual_seed(0)
    module = MapGraphAttention(12, 3, graph=graph, neighbors=4, dilation=2).double()
    other = GraphAttentionV2(12, 3, self_loops=graph == "grid", bias=False).double()
    tokens = torch.randn(2, 35, 12, dtype=torch.float64)
    with torch.no_grad():
        module.projection.weight.copy_(torch.eye(12))
        module.projection.bias.zero_()
        module.qkv.weight[24:] = module.qkv.weight[12:24]
        module.qkv.bias[24:] = module.qkv.bias[12:24]
        for layer, first in ((other.target, 0), (other.source, 12)):
            layer.weight.copy_(module.qkv.weight[first : first + 12])
            layer.bias.copy_(module.qkv.bias[first : first + 12])
        other.score.copy_(module.score)
    edges = nearest_edges(tokens, 4, dilation=2)
    if graph == "grid":
        edges = torch.cat([grid_edges(5, 7), grid_edges(5, 7) + 35], dim=1)
    torch.testing.assert_close(module(tokens, (5, 7)).flatten(0, 1), other(tokens.flatten(0, 1), edges))


@pytest.mark.parametrize(
    "options", [{}, {"graph": "grid"}, {"reduction": 2, "closeness": True}, {"neighbors": 5, "dilation": 3}]
)
@pytest.mark.parametrize("grid", [(4, 6), (5, 7)])
def test_recorded_weights_give_the_same_output(options, grid):
    torch.manual_seed(0)
    module = MapGraphAttention(12, 3, qk_norm=True, **options).double()
    tokens, seen = torch.randn(2, grid[0] * grid[1], 12, dtype=torch.float64), []
    expected = module(tokens, grid)
    module.record = lambda weights, keys: seen.append((weights, keys))
    torch.testing.assert_close(module(tokens, grid), expected)
    (weights, keys), *_ = seen
    torch.testing.assert_close(weights.sum(-1), torch.ones(weights.shape[:3], dtype=torch.float64))
    value = module.qkv(tokens).unflatten(2, (3, 3, 4))[:, :, 2]  # (batch, N, heads, head_dim)
    if keys is None:
        attended = torch.einsum("bhqk,bkhd->bqhd", weights, value)
    else:
        assert (weights[:, :, keys < 0] == 0).all()
        attended = torch.einsum("bhqn,bqnhd->bqhd", weights, value[:, keys.clamp(min=0)])
    torch.testing.assert_close(module.project(attended.flatten(2)), expected)


def test_cells_see_the_most_alike_cells_of_their_own_image():
    torch.manual_seed(0)
    tokens = torch.randn(2, 7, 5)
    cells = nearest_cells(tokens, tokens, 2, dilation=3)
    assert cells.shape == (2, 7, 2)
    order = functional.cosine_similarity(tokens[1, 3], tokens[1], dim=-1).argsort(descending=True)
    assert cells[1, 3].tolist() == [3, order[3].item()] == [order[0].item(), order[3].item()]
    assert nearest_cells(tokens, tokens, 9, dilation=3).shape == (2, 7, 7)  # all there are
    assert nearest_cells(tokens, tokens, 4, dilation=3).shape == (2, 7, 4)


def test_closeness_makes_near_cells_neighbors():
    alike = torch.ones(1, 35, 8)
    cells = nearest_cells(alike, alike, 5, closeness=grid_closeness((5, 7), 8))
    assert sorted(cells[0, 16].tolist()) == [9, 15, 16, 17, 23]


def test_closeness_is_the_published_table():
    """Sinusoids of rows and columns, their products, and that table shrunk along its columns by torch."""
    for side, dim, reduction in ((12, 48, 4), (8, 20, 2), (7, 12, 1)):
        rows, columns = torch.arange(side * side) // side, torch.arange(side * side) % side
        frequencies = 10_000.0 ** -(torch.arange(dim // 4, dtype=torch.float64) / (dim / 4))
        angles = [place[:, None] * frequencies for place in (columns, rows)]
        embedding = torch.cat([wave for angle in angles for wave in (angle.sin(), angle.cos())], dim=1)
        table = (2 * embedding @ embedding.T / dim)[None, None]
        shrunk = functional.interpolate(table, (side**2, side**2 // reduction**2), mode="bicubic", align_corners=False)
        torch.testing.assert_close(
            grid_closeness((side, side), dim, reduction).double(), shrunk[0, 0], rtol=0, atol=1e-6
        )


def test_adjacent_cells_are_the_eight_around_and_the_cell_itself():
    assert adjacent_cells((3, 5))[7].tolist() == [1, 2, 3, 6, 7, 8, 11, 12, 13]
    assert adjacent_cells((3, 5))[4].tolist() == [-1, -1, -1, 3, 4, -1, 8, 9, -1]
    edges = {(source, target) for target, row in enumerate(adjacent_cells((3, 5)).tolist()) for source in row}
    expected = {tuple(edge) for edge in grid_edges(3, 5).T.tolist()}
    assert {edge for edge in edges if edge[0] >= 0 and edge[0] != edge[1]} == expected


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("graph", ["nearest", "grid"])
def test_half_precision_is_near(dtype, graph):
    torch.manual_seed(0)
    module, tokens = MapGraphAttention(12, 3, graph=graph), torch.randn(2, 35, 12).to(dtype)
    expected = module(tokens.float(), (5, 7))
    output = module.to(dtype)(tokens, (5, 7))
    assert output.dtype == dtype
    assert (output.float() - expected).norm() < 0.02 * expected.norm()


def test_every_parameter_learns_and_dropout_belongs_to_training():
    torch.manual_seed(0)
    module, tokens = MapGraphAttention(12, 3, dropout=0.5), torch.randn(2, 35, 12)
    assert not torch.equal(module(tokens, (5, 7)), module(tokens, (5, 7)))
    module(tokens, (5, 7)).square().sum().backward()
    assert all(parameter.grad.any() for parameter in module.parameters())
    module.eval()
    assert torch.equal(module(tokens, (5, 7)), module(tokens, (5, 7)))


def test_what_is_made_within_inference_mode_serves_a_later_training():
    module, tokens = MapGraphAttention(12, 3, closeness=True), torch.randn(2, 33, 12)
    with torch.inference_mode():
        module(tokens, (3, 11))
    module(tokens, (3, 11)).sum().backward()
    assert module.score.grad is not None


def test_wrong_options_are_named():
    with pytest.raises(ValueError, match="choose nearest or grid"):
        MapGraphAttention(12, 3, graph="complete")
    with pytest.raises(ValueError, match="dilation 0"):
        MapGraphAttention(12, 3, dilation=0)
    with pytest.raises(ValueError, match="prefix tokens"):
        MapGraphAttention(12, 3)(torch.randn(2, 36, 12), (5, 7))
