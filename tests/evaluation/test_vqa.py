"""Expected accuracies are what the official evaluation code of VQA v2 gives."""

from typing import NamedTuple

import pytest

from visattn.evaluation.vqa import answer_accuracy, leave_one_out_accuracies, score_answers


class Asked(NamedTuple):
    answers: tuple[str, ...]
    question_type: str = "is the"
    answer_type: str = "yes/no"


@pytest.mark.parametrize(("count", "expected"), list(enumerate([0, 0.3, 0.6, 0.9, 1, 1, 1, 1, 1, 1, 1])))
def test_accuracy_rises_with_the_people_who_gave_the_answer(count, expected):
    given = ["red"] * count + ["blue", "green", "grey", "pink", "teal", "gold", "tan", "plum", "jade", "rose"][count:]
    assert answer_accuracy("red", given) == pytest.approx(expected)
    assert leave_one_out_accuracies(10)[count] == pytest.approx(expected)


@pytest.mark.parametrize("people", [1, 2, 3, 4, 7, 10])
def test_the_table_is_the_mean_over_all_ways_to_leave_one_out(people):
    for matches in range(people + 1):
        given = ["red"] * matches + ["blue"] * (people - matches)
        subsets = [given[:left_out] + given[left_out + 1 :] for left_out in range(people)]
        mean = sum(min(subset.count("red") / 3, 1) for subset in subsets) / people
        assert leave_one_out_accuracies(people)[matches] == pytest.approx(mean)


@pytest.mark.parametrize(
    ("answer", "given", "expected"),
    [
        ("2", ["two"] * 5 + ["2"] * 4 + ["three"], 1),
        ("Two!", ["two"] + ["a 2."] + ["three"] * 8, 0.6),
        ("dog", ["a dog"] * 2 + ["the dog"] + ["cat"] * 7, 0.9),
        ("dog", ["a dog"] * 10, 0),  # all agree, so nothing is normalised
        ("a dog", ["a dog", " a dog\n"] * 5, 1),
        ("", ["the"] + ["red"] * 9, 0.3),
        ("dont", ["don't"] * 2 + ["no"] * 8, 0.6),
    ],
)
def test_answers_are_compared_as_officially(answer, given, expected):
    assert answer_accuracy(answer, given) == pytest.approx(expected)


def test_scores_are_means_over_all_and_over_each_type():
    questions = {
        7: Asked(("yes",) * 10),
        8: Asked(("yes",) * 8 + ("no",) * 2),
        "nine": Asked(("3",) * 3 + ("4",) * 7, "how many", "number"),
    }
    scores = score_answers({8: "no", 7: "yes", "nine": "three"}, questions)
    assert scores.per_question == pytest.approx({7: 1, 8: 0.6, "nine": 0.9})
    assert scores.accuracy == pytest.approx(2.5 / 3)
    assert scores.per_question_type == pytest.approx({"is the": 0.8, "how many": 0.9})
    assert scores.per_answer_type == pytest.approx({"yes/no": 0.8, "number": 0.9})


@pytest.mark.parametrize(
    ("answers", "questions", "message"),
    [
        ({}, {}, "there are no questions"),
        ({}, {3: Asked(("yes",))}, "1 questions have no answer to judge, the first is 3"),
        ({3: "yes", 4: "no"}, {3: Asked(("yes",))}, "1 answers are to questions that are not there, the first is 4"),
        ({3: "yes"}, {3: Asked(())}, "question 3: nobody answered it"),
    ],
)
def test_what_cannot_be_scored_is_an_error(answers, questions, message):
    with pytest.raises(ValueError, match=message):
        score_answers(answers, questions)
