import pytest
import torch

from visattn.attention.map_graph import nearest_cells
from visattn.backbones import VisionGNN, pyramid_vig_tiny, vig_32, vig_tiny
from visattn.backbones.vision_gnn import max_relative
from visattn.interpret import record_attention


def small(**options):
    sizes = {"dims": (16, 24), "depths": (1, 2), "num_heads": (2, 3), "reductions": (2, 1), "pooled_dim": None}
    return VisionGNN(32, 2, **sizes | options)


def test_the_greatest_difference_to_each_neighbor_is_taken_channel_by_channel():
    torch.manual_seed(0)
    tokens, candidates = torch.randn(2, 7, 5, dtype=torch.float64), torch.randn(2, 11, 5, dtype=torch.float64)
    neighbors = torch.rand(2, 7, 11).topk(4).indices
    neighbors[1, 2, 1:] = -1
    output = max_relative(tokens, candidates, neighbors)
    for image, node in torch.cartesian_prod(torch.arange(2), torch.arange(7)).tolist():
        seen = [index for index in neighbors[image, node].tolist() if index >= 0]
        expected = (candidates[image, seen] - tokens[image, node]).max(dim=0).values
        torch.testing.assert_close(output[image, node], expected)


def test_neighbors_and_dilation_rise_with_depth_as_published():
    with torch.device("meta"):
        isotropic, pyramid = vig_tiny(), pyramid_vig_tiny()
    graphs = [block.graph for block in isotropic.stages[0]]
    assert [graph.neighbors for graph in graphs] == [9, 9, 10, 11, 12, 13, 13, 14, 15, 16, 17, 18]
    assert [graph.dilation for graph in graphs] == [1] * 4 + [2] * 4 + [3] * 4
    graphs = [block.graph for stage in pyramid.stages for block in stage]
    assert {graph.neighbors for graph in graphs} == {9}
    assert [graph.dilation for graph in graphs] == [1] * 4 + [2] * 4 + [3] * 4
    assert [graph.reduction for graph in graphs] == [4, 4, 2, 2] + [1] * 8


@pytest.mark.parametrize("graph", ["nearest", "grid"])
@pytest.mark.parametrize("aggregation", ["max_relative", "attention"])
def test_every_graph_goes_with_every_aggregation(graph, aggregation):
    torch.manual_seed(0)
    backbone = small(graph=graph, aggregation=aggregation).train()
    features = backbone(torch.randn(2, 3, 36, 44))
    assert features.maps[0].shape == (2, 16, 18, 22)
    features.pooled.square().sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in backbone.parameters())


def test_cells_far_apart_see_each_other_if_they_are_alike():
    """A change at one corner reaches the opposite one by the graph, and by the grid only as far as its blocks go."""
    torch.manual_seed(0)
    images = torch.zeros(1, 3, 64, 64)
    images[:, :, :16, :16] = images[:, :, -16:, -16:] = 1.0
    changed = images.clone()
    changed[:, :, :4, :4] += 0.5
    reached = {}
    for graph in ("nearest", "grid"):
        backbone = VisionGNN(64, 4, (16,), (1,), (1,), graph=graph, reductions=(1,), closeness=False, pooled_dim=None)
        with torch.no_grad():
            difference = (backbone.eval()(changed).maps[0] - backbone(images).maps[0]).abs().amax(dim=1)[0]
        reached[graph] = bool((difference[8:, 8:] > 0).any())
    assert reached == {"nearest": True, "grid": False}


@pytest.mark.parametrize(("graph", "keys"), [("nearest", 256), ("grid", 9)])
def test_attention_over_the_graph_is_recorded(graph, keys):
    torch.manual_seed(0)
    backbone = small(graph=graph, aggregation="attention").eval()
    images = torch.randn(2, 3, 32, 32)
    with record_attention(backbone) as maps, torch.no_grad():
        recorded = backbone(images).pooled
    with torch.no_grad():
        torch.testing.assert_close(recorded, backbone(images).pooled, rtol=1e-4, atol=1e-5)
    assert list(maps) == [f"stages.{name}.attention" for name in ("0.0", "1.0", "1.1")]
    weights = maps["stages.0.0.attention"]
    assert weights.shape == (2, 2, 256, keys)
    torch.testing.assert_close(weights.sum(dim=-1), torch.ones(2, 2, 256))


def test_a_block_joins_each_cell_with_what_it_sees_in_turns():
    """So that a group of channels of the next layer holds both, as published."""
    torch.manual_seed(0)
    block = small(pooled_dim=8, reductions=(1, 1), closeness=False).eval().stages[0][0]
    cells, joint = torch.randn(1, 16, 5, 7), []
    block.update.register_forward_pre_hook(lambda module, inputs: joint.append(inputs[0]))
    block(cells)
    tokens = block.before(cells).flatten(2).transpose(1, 2)
    seen = max_relative(tokens, tokens, nearest_cells(tokens, tokens, 9))
    torch.testing.assert_close(joint[0][:, 0::2].flatten(2).transpose(1, 2), tokens)
    torch.testing.assert_close(joint[0][:, 1::2].flatten(2).transpose(1, 2), seen)


def test_large_images_of_the_small_preset_have_larger_patches():
    with torch.device("meta"):
        assert vig_32().strides == (2, 4, 8)
        assert vig_32(224).strides == (4, 8, 16)


def test_wrong_options_are_named():
    for options, message in (
        ({"depths": (1,)}, "disagree"),
        ({"dims": (16, 26)}, "multiples of 4"),
        ({"patch_size": 3}, "power of two"),
        ({"aggregation": "sum"}, "choose max_relative or attention"),
        ({"graph": "full"}, "choose nearest or grid"),
        ({"attention_dropout": 0.1}, "no weights to drop"),
    ):
        sizes = {"patch_size": 2, "dims": (16, 24), "depths": (1, 2), "num_heads": (2, 3), "reductions": (2, 1)}
        with pytest.raises(ValueError, match=message):
            VisionGNN(32, **sizes | options)
