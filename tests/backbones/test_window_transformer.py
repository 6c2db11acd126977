import pytest
import torch

from visattn.backbones.window_transformer import join_cells, plan_stages


def test_windows_are_no_larger_than_the_map_of_their_stage():
    stages = plan_stages((56, 88), 4, 12, (1, 1, 1), (1, 2, 3), (5, (3, 7), 9))
    assert [stage.window_size for stage in stages] == [(5, 5), (3, 7), (4, 6)]
    assert [(stage.channels, stage.num_heads) for stage in stages] == [(12, 1), (24, 2), (48, 3)]


@pytest.mark.parametrize(("heads", "windows"), [((1, 2, 3), 7), ((1, 2), (7, 7, 7))])
def test_stages_that_disagree_are_an_error(heads, windows):
    with pytest.raises(ValueError, match="differ in stages"):
        plan_stages(32, 4, 12, (2, 2), heads, windows)


def test_cells_are_joined_down_the_columns_first_and_odd_sides_are_padded():
    tokens = torch.arange(1.0, 16.0).view(1, 15, 1)  # 3 rows of 5
    joined, grid = join_cells(tokens, (3, 5))
    assert grid == (2, 3)
    assert joined[0].tolist() == [
        [1, 6, 2, 7],
        [3, 8, 4, 9],
        [5, 10, 0, 0],
        [11, 0, 12, 0],
        [13, 0, 14, 0],
        [15, 0, 0, 0],
    ]
