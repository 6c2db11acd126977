import pytest
import torch
from torch.nn import functional

from visattn.attention import PooledAttention
from visattn.backbones import PyramidVisionTransformer, pvt_v2_32, pvt_v2_b0, pvt_v2_b2
from visattn.backbones.pvt_v2 import DepthwiseMlp
from visattn.interpret import record_attention

small = {"dims": (8, 12), "depths": (1, 2), "num_heads": (2, 3), "reductions": (4, 2), "mlp_ratios": (2, 3)}


@pytest.mark.parametrize("rectified", [False, True])
def test_the_mlp_convolves_each_hidden_channel_by_itself(rectified):
    torch.manual_seed(0)
    mlp = DepthwiseMlp(3, 5, rectified=rectified)
    mlp.convolution.bias.data.normal_()
    tokens = torch.randn(2, 7 * 11, 3)
    hidden = mlp.fc1(tokens).unflatten(1, (7, 11))
    padded = functional.pad(hidden.relu() if rectified else hidden, (0, 0, 1, 1, 1, 1))  # (2, 9, 13, 5)
    kernel = mlp.convolution.weight[:, 0]  # (5, 3, 3)
    near = torch.stack([padded[:, y : y + 7, x : x + 11] for y in range(3) for x in range(3)], dim=-1)
    convolved = (near * kernel.flatten(1)).sum(dim=-1) + mlp.convolution.bias
    expected = mlp.fc2(functional.gelu(convolved)).flatten(1, 2)
    torch.testing.assert_close(mlp(tokens, (7, 11)), expected)


def test_keys_are_as_few_in_every_stage_of_the_published_networks():
    with torch.device("meta"):
        backbone, linear = pvt_v2_b0(), pvt_v2_b0(linear=True)
    for network in (backbone, linear):
        modules = [module for module in network.modules() if isinstance(module, PooledAttention)]
        sides = [side for side in (56, 28, 14, 7) for _ in range(2)]
        assert [module.squares_along(side) for module, side in zip(modules, sides, strict=True)] == [7] * 8
    heads = [stage.blocks[0].attention.num_heads for stage in backbone.stages]
    assert heads == [1, 2, 5, 8]


def test_linear_attention_costs_as_much_as_there_are_tokens():
    from torch.utils.flop_counter import FlopCounterMode

    with torch.device("meta"):
        backbone = PyramidVisionTransformer(32, linear=True, **small).eval()
    counts = []
    for side in (56, 112, 224):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            backbone(torch.empty(1, 3, side, side, device="meta"))
        counts.append(counter.get_total_flops())
    fixed = (4 * counts[0] - counts[1]) / 3  # for the 49 keys of each block
    assert counts[2] - fixed == pytest.approx(16 * (counts[0] - fixed), rel=1e-6)


@pytest.mark.parametrize("linear", [False, True])
def test_what_is_recorded_has_a_weight_for_each_cell(linear):
    torch.manual_seed(0)
    backbone = PyramidVisionTransformer(32, 2, linear=linear, **small).eval()
    images = torch.randn(2, 3, 33, 47)
    with torch.no_grad(), record_attention(backbone) as maps:
        backbone(images)
    assert [weights.shape[1:] for weights in maps.values()] == [(2, 408, 408), (3, 108, 108), (3, 108, 108)]
    for weights in maps.values():
        torch.testing.assert_close(weights.sum(dim=3), torch.ones(weights.shape[:3]))


def test_small_images_keep_a_map_of_useful_size():
    with torch.device("meta"):
        assert pvt_v2_b2(32).strides == (2, 4, 8, 16)
        assert pvt_v2_b2(224).strides == (4, 8, 16, 32)
        assert pvt_v2_32().strides == (2, 4, 8)


def test_stages_that_disagree_are_named():
    with pytest.raises(ValueError, match=r"reductions \(4,\) and mlp_ratios \(2, 3\) differ in stages"):
        PyramidVisionTransformer(32, **small | {"reductions": (4,)})
