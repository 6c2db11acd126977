import pytest
import torch
from torch import nn

from visattn.backbones import CompactConvolutionalTransformer, cct_7_3x1_32, cct_14_7x2
from visattn.backbones.embedding import sinusoids

tiny = {"dim": 24, "depth": 2, "num_heads": 2}


def test_the_published_tokenizers():
    with torch.device("meta"):
        small, large = cct_7_3x1_32(), cct_14_7x2()
    layers = [layer for layer in large.tokenizer.layers if isinstance(layer, nn.Conv2d)]
    assert [(layer.out_channels, layer.kernel_size, layer.stride) for layer in layers] == [
        (64, (7, 7), (2, 2)),
        (384, (7, 7), (2, 2)),
    ]
    assert (small.grid, large.grid) == ((16, 16), (14, 14))


def test_larger_patches_of_the_small_network_take_more_convolutions():
    for patch_size, convolutions in ((2, 1), (4, 2), (8, 3)):
        backbone = cct_7_3x1_32(32, patch_size, **tiny)
        assert sum(isinstance(layer, nn.Conv2d) for layer in backbone.tokenizer.layers) == convolutions
        assert backbone(torch.randn(2, 3, 27, 33)).maps[0].shape[2:] == (-(-27 // patch_size), -(-33 // patch_size))


def test_the_first_convolutions_halve_the_map_where_pooling_is_not_enough():
    backbone = CompactConvolutionalTransformer(32, 8, **tiny, convolutions=2)
    strides = [layer.stride[0] for layer in backbone.tokenizer.layers if isinstance(layer, nn.Conv2d)]
    assert strides == [2, 1]


def test_positions_are_learned_or_begin_as_waves_or_are_none():
    waves = CompactConvolutionalTransformer(32, **tiny, position="sinusoidal").position_embedding
    torch.testing.assert_close(waves[0], sinusoids((16, 16), 24))
    assert CompactConvolutionalTransformer(32, **tiny, position="none").position_embedding is None
    assert CompactConvolutionalTransformer(32, **tiny).position_embedding.std().item() == pytest.approx(0.2, abs=0.02)


def test_the_second_branch_begins_at_the_norm():
    block = CompactConvolutionalTransformer(32, **tiny).blocks[0].double()
    tokens = torch.randn(2, 15, 24, dtype=torch.float64)
    for layer in (block.attention.projection, block.mlp.fc2):
        nn.init.zeros_(layer.weight)
    torch.testing.assert_close(block(tokens, (3, 5)), block.norm2(tokens))


def test_arguments_that_do_not_fit_each_other_are_refused():
    with pytest.raises(ValueError, match="position 'rotary' is unknown; choose one of learned, sinusoidal, none"):
        CompactConvolutionalTransformer(32, **tiny, position="rotary")
    with pytest.raises(ValueError, match="patch_size 32 doesn't fit 2 convolutions; choose patch_size of 4, 8, 16"):
        cct_14_7x2(224, 32)
    with pytest.raises(ValueError, match="patch_size 2 doesn't fit 0 convolutions; choose at least 1"):
        CompactConvolutionalTransformer(32, **tiny, convolutions=0)
    with pytest.raises(ValueError, match="kernel_size 4 of the tokenizer must be odd"):
        CompactConvolutionalTransformer(32, **tiny, kernel_size=4)
