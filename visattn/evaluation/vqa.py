"""The official accuracy of answers to questions about images, where ten people answered each question."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from visattn.text.answers import normalize_answer, plain_answer

_enough = 3  # people that must have given an answer for it to be right


class AnsweredQuestion(Protocol):
    """What a score needs to know of a question."""

    @property
    def answers(self) -> Sequence[str]: ...

    @property
    def question_type(self) -> str: ...

    @property
    def answer_type(self) -> str: ...


class AnswerScores(NamedTuple):
    """Accuracies in [0, 1]; the official program shows them in percent, rounded to two places."""

    accuracy: float
    """The mean over all questions."""
    per_question_type: dict[str, float]
    """Type, such as "what color is the" -> the mean over its questions."""
    per_answer_type: dict[str, float]
    """Type, such as "yes/no", "number" or "other" -> the mean over its questions."""
    per_question: dict[Hashable, float]
    """Question id -> the accuracy of its answer."""


def score_answers(answers: Mapping[Any, str], questions: Mapping[Any, AnsweredQuestion]) -> AnswerScores:
    """Scores answers as the official evaluation of VQA v2 does.

    Args:
        answers: question id -> the answer to judge.
        questions: question id -> what people answered, and the question's types; the same ids.

    Raises:
        ValueError: the ids differ, there are none, or nobody answered a question.
    """
    if not questions:
        raise ValueError("there are no questions to evaluate")
    if missing := [name for name in questions if name not in answers]:
        raise ValueError(f"{len(missing)} questions have no answer to judge, the first is {missing[0]!r}")
    if unknown := [name for name in answers if name not in questions]:
        raise ValueError(f"{len(unknown)} answers are to questions that are not there, the first is {unknown[0]!r}")
    per_question = {}
    question_types, answer_types = defaultdict(list), defaultdict(list)
    for name, question in questions.items():
        try:
            accuracy = answer_accuracy(answers[name], question.answers)
        except ValueError as error:
            raise ValueError(f"question {name!r}: {error}") from error
        per_question[name] = accuracy
        question_types[question.question_type].append(accuracy)
        answer_types[question.answer_type].append(accuracy)
    return AnswerScores(mean(list(per_question.values())), means(question_types), means(answer_types), per_question)


def answer_accuracy(answer: str, given: Sequence[str]) -> float:
    """How right an answer is by what people answered: 1 if at least three of nine gave it, on average over the nines.

    Both sides are compared as `normalize_answer` writes them; where all people said the same, both are compared as they
    are, which is how the official program does it.

    Args:
        answer: to judge.
        given: what each person answered; ten in VQA v2.

    Raises:
        ValueError: nobody answered.

    Source: Antol et al. 2015 (https://arxiv.org/abs/1505.00468), section 3, and https://visualqa.org/evaluation.html.
    """
    if not given:
        raise ValueError("nobody answered it, so that no answer can be judged")
    answer, given = plain_answer(answer), [plain_answer(other) for other in given]
    if len(set(given)) > 1:
        answer, given = normalize_answer(answer), [normalize_answer(other) for other in given]
    return leave_one_out_accuracies(len(given))[given.count(answer)]


def leave_one_out_accuracies(people: int) -> list[float]:
    """The accuracy of an answer that m of these people gave, for m from 0 to all of them.

    Each person in turn is left out, and the answer is worth min(m / 3, 1) by the m that are left and gave it; the mean
    of that. Of ten people: 0, 0.3, 0.6, 0.9, then 1. These are good targets to train towards, too (Teney et al. 2017,
    https://arxiv.org/abs/1708.02711).
    """
    return [
        (matches * min(max(matches - 1, 0) / _enough, 1) + (people - matches) * min(matches / _enough, 1)) / people
        for matches in range(people + 1)
    ]


def means(groups: Mapping[str, Sequence[float]]) -> dict[str, float]:
    return {name: mean(values) for name, values in sorted(groups.items())}


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
