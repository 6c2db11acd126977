import numpy as np
import pytest

from visattn.data.draws import uniform_draws


def test_draws_of_an_index_do_not_depend_on_its_company():
    many = uniform_draws((3, 1), range(50), 7)
    assert many.shape == (50, 7)
    np.testing.assert_array_equal(uniform_draws((3, 1), [41, 7], 7), many[[41, 7]])
    np.testing.assert_array_equal(uniform_draws((3, 1), [41], 2), many[41:42, :2])


@pytest.mark.parametrize("keys", [(0, 0), (7, 3), (-1, 2), (2**70, 1)])
def test_draws_are_uniform_and_independent(keys):
    draws = uniform_draws(keys, range(40_000), 5)
    assert draws.min() >= 0
    assert draws.max() < 1
    for column in draws.T:
        counts, _ = np.histogram(column, bins=20, range=(0, 1))
        assert ((counts - 2000) ** 2 / 2000).sum() < 50  # chi-squared of 19 degrees: 1 in 7,000
    with_next = np.concatenate([draws[:-1], draws[1:]], axis=1)
    correlations = np.corrcoef(with_next.T) - np.eye(10)
    assert abs(correlations).max() < 0.025


def test_other_keys_give_other_draws():
    drawn = [uniform_draws(keys, [5], 1)[0, 0] for keys in [(0, 1), (1, 0), (1, 1), (0, 1, 0), (-1, 0), (0,)]]
    assert len(set(drawn)) == len(drawn)
