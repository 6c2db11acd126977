import pytest
import torch

from visattn.attention import LinearAttention, MixedAttention, MultiHeadAttention, NeighborhoodAttention
from visattn.backbones import VisionTransformer
from visattn.interpret import record_attention


def test_heads_of_one_kind_side_by_side_are_one_module_with_all_heads():
    torch.manual_seed(0)
    parts = [MultiHeadAttention(12, heads, head_dim=4) for heads in (1, 2)]
    whole = MultiHeadAttention(12, 3)
    with torch.no_grad():
        split = [part.qkv.weight.view(3, -1, 12) for part in parts]
        whole.qkv.weight.copy_(torch.cat(split, dim=1).flatten(0, 1))
        whole.qkv.bias.copy_(torch.cat([part.qkv.bias.view(3, -1) for part in parts], dim=1).flatten())
        whole.projection.weight.copy_(torch.cat([part.projection.weight for part in parts], dim=1))
        whole.projection.bias.copy_(sum(part.projection.bias for part in parts))
    tokens = torch.randn(2, 35, 12)
    torch.testing.assert_close(MixedAttention(12, parts)(tokens, (5, 7)), whole(tokens))


def test_gates_begin_even_and_can_choose_one_kind_for_each_token():
    torch.manual_seed(0)
    kinds = [NeighborhoodAttention(12, 3, kernel_size=3), LinearAttention(12, 3)]
    module, tokens = MixedAttention(12, kinds, gated=True), torch.randn(2, 35, 12)
    torch.testing.assert_close(module(tokens, (5, 7)), sum(kind(tokens, (5, 7)) for kind in kinds))
    with torch.no_grad():
        module.gate.weight[0, 0], module.gate.weight[1, 0] = 1e4, -1e4  # by the sign of the first channel
    expected = torch.where(tokens[..., :1] > 0, kinds[0](tokens, (5, 7)), kinds[1](tokens, (5, 7)))
    torch.testing.assert_close(module(tokens, (5, 7)), 2 * expected)


def test_a_block_of_several_kinds_is_named_by_them():
    options = {"local+linear": {"gated": True}, "local": {"relative_position_bias": False}}
    model = VisionTransformer(
        32,
        4,
        12,
        2,
        4,
        attention=("local+linear", "global"),
        attention_options=options,
        class_token=False,
        pooling="average",
        kernel_size=3,
    )
    mixed = model.blocks[0].attention
    assert [type(kind).__name__ for kind in mixed.kinds] == ["NeighborhoodAttention", "LinearAttention"]
    assert [kind.num_heads for kind in mixed.kinds] == [2, 2]
    assert [kind.head_dim for kind in mixed.kinds] == [3, 3]
    assert mixed.kinds[0].relative_position_bias is None
    assert mixed.gate is not None
    with record_attention(model) as maps:
        model(torch.randn(1, 3, 32, 32)).pooled.sum().backward()
    assert list(maps) == ["blocks.0.attention.kinds.0", "blocks.0.attention.kinds.1", "blocks.1.attention"]


@pytest.mark.parametrize(
    ("attention", "message"),
    [("local+near", "no pattern"), ("local+global+linear", "4 heads can't be shared evenly by 3 kinds")],
)
def test_unknown_kinds_and_uneven_heads_are_errors(attention, message):
    with pytest.raises(ValueError, match=message):
        VisionTransformer(32, 4, 12, 1, 4, attention=(attention,), class_token=False, pooling="average")
    with pytest.raises(ValueError, match="no kinds"):
        MixedAttention(12, [])
