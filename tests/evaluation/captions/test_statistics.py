import pytest

from visattn.evaluation.captions import bootstrap_interval, diversity, paired_test


def test_the_interval_holds_the_mean_and_narrows_with_more_images():
    few, many = [0.0, 1.0] * 11, [0.0, 1.0] * 1100
    wide, narrow = bootstrap_interval(few), bootstrap_interval(many)
    assert wide.low < 0.5 < wide.high
    assert narrow.high - narrow.low < (wide.high - wide.low) / 5


def test_equal_systems_do_not_differ_and_a_constant_gain_does():
    values = [i / 31 for i in range(31)]
    assert paired_test(values, values).p_value == 1
    better = paired_test([value + 0.1 for value in values], values)
    assert better.mean == pytest.approx(0.1)
    assert better.p_value < 0.001


def test_scores_of_different_numbers_of_images_are_refused():
    with pytest.raises(ValueError, match="2 and 3 images"):
        paired_test([1, 2], [1, 2, 3])


def test_diversity_counts_words_and_distinct_ngrams():
    found = diversity({1: ["a dog runs", "a dog runs"], 2: ["two cats sleep well", "one red ball"]})
    assert found.vocabulary == 10
    assert found.distinct == pytest.approx(((3 / 6 + 1) / 2, (2 / 4 + 1) / 2))
    assert (found.lengths.mean, found.lengths.shortest, found.lengths.longest) == (13 / 4, 3, 4)


def test_self_cider_is_0_for_equal_captions_and_1_for_unrelated_ones():
    assert diversity({1: ["a dog runs"] * 3, 2: ["two cats sleep"] * 3}).self_cider == pytest.approx(0, abs=1e-6)
    assert diversity({1: ["a b c d", "e f g h"], 2: ["i j k l", "m n o p"]}).self_cider == pytest.approx(1)
    assert diversity({1: ["a dog"]}).self_cider is None
