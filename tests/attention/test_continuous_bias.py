import math

import torch

from visattn.attention import WindowAttention, window_attention
from visattn.attention.continuous_bias import ContinuousPositionBias


def test_each_entry_is_what_the_mlp_says_of_its_distance():
    torch.manual_seed(0)
    module = ContinuousPositionBias(3, 7).double()
    table = module((2, 4))
    assert table.shape == (3, 3, 7)
    for down in range(-1, 2):
        for right in range(-3, 4):
            distance = [math.copysign(math.log(1 + abs(step)), step) for step in (down, right)]
            hidden = module.fc1(torch.tensor(distance, dtype=torch.float64)).relu()
            torch.testing.assert_close(table[:, down + 1, right + 3], module.fc2(hidden))


def test_a_distance_has_the_same_bias_in_windows_of_any_size():
    module = ContinuousPositionBias(2, 5)
    torch.testing.assert_close(module((5, 4))[:, 2:-2, 1:-1], module((3, 3)))


def test_windows_add_it_to_their_scores_and_it_learns():
    torch.manual_seed(0)
    module = WindowAttention(12, 3, window_size=(2, 4), bias_hidden_dim=7)
    tokens = torch.randn(2, 4 * 8, 12)
    output = module(tokens, (4, 8))
    query, key, value = module.qkv(tokens).view(2, 4, 8, 3, 3, 4).unbind(3)
    expected = window_attention(query, key, value, (2, 4), bias=module.continuous_bias((2, 4)))
    torch.testing.assert_close(output, module.projection(expected.reshape(2, 32, 12)))
    output.square().sum().backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in module.continuous_bias.parameters())
