import pytest
import torch

from visattn.backbones import Hiera, hiera_32, hiera_tiny
from visattn.interpret import record_attention

small = {"dim": 8, "depths": (1, 2, 1), "num_heads": (1, 2, 4), "unit_size": 4}


def random(**options):
    """A small network with weights large enough that its attention differs from place to place."""
    torch.manual_seed(0)
    backbone = Hiera(32, 2, **{"unit_attention": (True, False, False)} | small | options).eval()
    for parameter in backbone.parameters():
        parameter.data.add_(torch.randn_like(parameter) * 0.2)
    return backbone


def test_stages_look_within_units_or_everywhere_and_pooling_blocks_as_the_stage_before():
    with torch.device("meta"):
        backbone = hiera_tiny()
    units = [block.attention.unit_size for block in backbone.blocks]
    strides = [block.attention.query_stride for block in backbone.blocks]
    assert units == [(8, 8), (8, 8), (4, 4), (4, 4), *[None] * 8]
    assert strides == [1, 2, 1, 2, *[1] * 6, 2, 1]


@pytest.mark.parametrize("widening", ["projection", "pooling"])
def test_units_do_not_see_each_other_before_global_attention(widening):
    backbone = random(unit_attention=(True, True, True), widening=widening)
    images = torch.randn(1, 3, 29, 43)  # 15x22 tokens, 4x6 units
    changed = images.clone()
    changed[:, :, 17:] += 1  # the token rows from 8 on, the third row of units
    before, after = backbone(images), backbone(changed)
    for stage, rows in enumerate([8, 4, 2]):
        torch.testing.assert_close(after.maps[stage][:, :, :rows], before.maps[stage][:, :, :rows])
        assert not torch.isclose(after.maps[stage][:, :, rows:], before.maps[stage][:, :, rows:]).all()


@pytest.mark.parametrize("size", [(32, 48), (29, 43), (5, 70)])
def test_recording_changes_nothing_and_padding_is_never_attended(size):
    backbone = random()
    images = torch.randn(2, 3, *size)
    with torch.no_grad():
        expected = backbone(images)
        with record_attention(backbone, full=True) as maps:
            torch.testing.assert_close(backbone(images), expected)
    tokens = [-(-size[0] // stride) * -(-size[1] // stride) for stride in (2, 2, 4, 4)]
    assert [weights.shape[2:] for weights in maps.values()] == [(count, count) for count in tokens]
    for weights in maps.values():
        torch.testing.assert_close(weights.sum(dim=3), torch.ones(weights.shape[:3]))


def test_any_input_equals_a_network_whose_positions_were_made_for_that_size():
    trained = random()
    built = Hiera((52, 76), 2, **small, unit_attention=(True, False, False)).eval()
    with torch.no_grad():
        table = trained.positions((26, 38))
    built.load_state_dict(trained.state_dict() | {"position_embedding": table})
    images = torch.randn(2, 3, 52, 76)
    torch.testing.assert_close(trained(images), built(images))


def test_positions_of_units_are_repeated_and_the_others_stretched():
    backbone = random(position_grid=(2, 3), unit_positions=True)
    assert backbone.position_embedding.shape == (1, 6, 8)
    positions = backbone.positions((7, 9)).unflatten(1, (7, 9))
    backbone.unit_position_embedding.data.zero_()
    stretched = backbone.positions((7, 9)).unflatten(1, (7, 9))
    unit = positions - stretched
    torch.testing.assert_close(unit[:, :3, :4], unit[:, 4:, 4:8])
    assert backbone.positions((2, 3)).equal(backbone.position_embedding)


def test_small_images_keep_a_map_of_useful_size():
    with torch.device("meta"):
        assert hiera_tiny(32).strides == (2, 4, 8, 16)
        assert hiera_tiny(224).strides == (4, 8, 16, 32)
        assert hiera_32().strides == (2, 4, 8)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_heads": (1, 2)}, r"num_heads \(1, 2\) and unit_attention \(True, False, False\) differ in stages"),
        ({"unit_size": 6}, "unit_size 6 can't be halved 2 times"),
        ({"widening": "maximum"}, "choose projection or pooling"),
    ],
)
def test_errors_say_what_disagrees(arguments, message):
    with pytest.raises(ValueError, match=message):
        Hiera(32, 2, **{"unit_attention": (True, False, False)} | small | arguments)
