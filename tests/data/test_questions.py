import pytest
import torch

from visattn.data.augmentation import Augmentation
from visattn.data.preprocess import Preprocess
from visattn.data.questions import (
    Question,
    QuestionBatches,
    QuestionData,
    QuestionSplit,
    ShapesQuestionsDataModule,
    frequent_answers,
    hold_out_images,
    select_images,
)
from visattn.data.scenes import draw_scene
from visattn.text import CaptionTokenizer

words = ("what", "is", "this", "that", "number")
asked_about = (1, 3, 2, 7, 1, 4, 2)  # how many questions there are about each image


def numbered():
    """Images whose first pixel is their index, with different numbers of questions, in no order."""
    images = torch.randint(0, 256, (len(asked_about), 3, 8, 8), dtype=torch.uint8, generator=torch.manual_seed(0))
    images[:, 0, 0, 0] = torch.arange(len(asked_about))
    pairs = [(image, turn) for turn in range(max(asked_about)) for image, most in enumerate(asked_about) if turn < most]
    questions = [
        Question(
            100 + place, image, f"What number is {words[turn % 5]}?", ("A dog",) * turn + ("2",) * (10 - turn), "", ""
        )
        for place, (image, turn) in enumerate(pairs)
    ]
    return QuestionSplit(images, questions)


class NumberedData(QuestionData):
    def __init__(self, **options):
        keywords = {
            "batch_size": 3,
            "num_workers": 0,
            "seed": 0,
            "num_answers": None,
            "questions_per_image": 2,
            "min_count": 1,
            "max_length": 20,
            "augmentation": {"crop_padding": 2, "erasing": 0.5},
        }
        super().__init__(8, **keywords | options)
        self.preprocess = Preprocess(8, mean=(0, 0, 0), std=(1 / 255,) * 3)
        self.splits = dict.fromkeys(("train", "validation", "test"), numbered())
        self.learn_words()


def batches(**options):
    data = NumberedData()
    return QuestionBatches(numbered(), data.preprocess, data.tokenizer, data.answers, **options)


def same(first, second):
    return all(torch.equal(one, other) for one, other in zip(first, second, strict=True))


def test_a_batch_holds_each_image_once_with_all_its_questions():
    data = NumberedData()
    batch = batches().__getitems__([(0, 3), (0, 0), (0, 2)])
    assert batch.images[:, 0, 0, 0].round().tolist() == [3, 0, 2]
    assert batch.places.shape == (3, 7)
    assert (batch.places >= 0).sum(1).tolist() == [7, 1, 2]
    questions = data.splits["train"].questions
    for row, image in enumerate((3, 0, 2)):
        for column, place in enumerate(batch.places[row].tolist()):
            if place < 0:
                assert batch.counts[row, column].sum() == 0
                continue
            assert questions[place].image == image
            assert data.tokenizer.decode(batch.token_ids[row, column]) == questions[place].text.lower().rstrip("?")
            people = dict(zip(data.answers, batch.counts[row, column].tolist(), strict=True))
            assert people == {"dog": questions[place].answers.count("A dog"), "2": questions[place].answers.count("2")}
    assert batch.counts.dtype == torch.uint8


def test_evaluation_asks_every_question_once_and_shows_images_unchanged():
    data = NumberedData()
    for loader in (data.val_dataloader(), data.test_dataloader()):
        found = list(loader)
        places = torch.cat([batch.places.flatten() for batch in found])
        assert sorted(places[places >= 0].tolist()) == list(range(sum(asked_about)))
        torch.testing.assert_close(torch.cat([batch.images for batch in found]), data.splits["test"].images.float())


def test_about_what_fills_up_nothing_is_asked():
    batch = batches().__getitems__([(0, 1), (0, -1)])
    assert (batch.places[1] == -1).all()
    assert (batch.places[0] >= 0).all()


def test_questions_about_one_image_take_turns_until_all_have_been_asked():
    turns = batches(questions_per_image=2)
    assert [len(turns.turn(image, 0)) for image in range(7)] == [1, 2, 2, 2, 1, 2, 2]
    asked = [turns.turn(3, epoch) for epoch in range(7)]
    assert all(len(set(places)) == 2 for places in asked)
    assert [sum(place in places for places in asked) for place in turns.asked[3]] == [2] * 7
    assert asked != [batches(questions_per_image=2, seed=1).turn(3, epoch) for epoch in range(7)]


def test_an_epoch_repeats_itself_and_another_differs():
    first = list(NumberedData().train_dataloader())
    assert len(first) == 2  # seven images in threes, the rest left out
    assert all(same(one, other) for one, other in zip(first, NumberedData().train_dataloader(), strict=True))
    loader = NumberedData().train_dataloader()
    loader.sampler.set_epoch(1)
    assert not same(next(iter(loader)), first[0])


def test_a_worker_process_makes_the_same_batches():
    alone, workers = (list(NumberedData(num_workers=number).train_dataloader()) for number in (0, 1))
    assert all(same(one, other) for one, other in zip(alone, workers, strict=True))


def test_an_epoch_goes_on_where_it_was_left():
    data = NumberedData()
    whole = list(data.train_dataloader())
    part = iter(data.train_dataloader())
    next(part)
    state = data.state_dict()
    resumed = NumberedData()
    resumed.load_state_dict(state)
    rest = list(resumed.train_dataloader())
    assert len(rest) == 1
    assert same(rest[0], whole[1])


def test_examples_ask_one_question_each_spread_over_the_split():
    batch = NumberedData().examples(4)
    assert batch.images[:, 0, 0, 0].round().tolist() == [0, 2, 4, 6]
    assert batch.token_ids.shape[:2] == (4, 1)
    assert (batch.places >= 0).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_answers": 0}, "num_answers 0 must be at least 1, or null for all"),
        ({"questions_per_image": 0}, "questions_per_image 0 must be at least 1"),
        ({"augmentation": {"mixup": 0.2}}, "mixup and cutmix leave no image to ask about"),
        ({"min_count": 1000}, "no word occurs 1000 times"),
    ],
)
def test_options_without_sense_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        NumberedData(**options)


def test_the_vocabulary_holds_the_most_frequent_normal_forms():
    given = [("Two", "2", "a 2!", "the"), ("yes", "Yes", "zebra", "apple")]
    assert frequent_answers(given, None) == ("2", "yes", "apple", "zebra")
    assert frequent_answers(given, 3) == ("2", "yes", "apple")
    with pytest.raises(ValueError, match="no answers to learn"):
        frequent_answers([(), ("the",)], None)


def test_answers_outside_the_vocabulary_are_not_counted():
    split = numbered()
    tokenizer = CaptionTokenizer.train_words(["what number is this"], min_count=1)
    batch = QuestionBatches(split, Preprocess(8), tokenizer, ("dog",)).__getitems__([(0, 3)])
    assert batch.counts.shape == (1, 7, 1)
    assert sorted(batch.counts.flatten().tolist()) == list(range(7))


def test_held_out_images_take_their_questions_with_them():
    split = numbered()
    kept, held = hold_out_images(split, 0.3, seed=0)
    assert (len(kept.images), len(held.images)) == (5, 2)
    numbers = [set(part.images[:, 0, 0, 0].tolist()) for part in (kept, held)]
    assert numbers[0] | numbers[1] == set(range(7))
    for part in (kept, held):
        original = {question.question_id: question for question in split.questions}
        for question in part.questions:
            before = original.pop(question.question_id)
            assert part.images[question.image, 0, 0, 0] == before.image
            assert question._replace(image=0) == before._replace(image=0)
    assert len(kept.questions) + len(held.questions) == len(split.questions)
    others = [set(hold_out_images(split, 0.3, seed)[1].images[:, 0, 0, 0].tolist()) for seed in range(4)]
    assert len(set(map(frozenset, others))) > 1
    with pytest.raises(ValueError, match="between 0 and 1"):
        hold_out_images(split, 1.0, 0)
    with pytest.raises(ValueError, match="nothing can be held out of 1 image"):
        hold_out_images(select_images(split, [0]), 0.5, 0)


def test_scenes_are_asked_what_draw_scene_says():
    data = ShapesQuestionsDataModule(image_size=32, seed=5, train_scenes=20, validation_scenes=4, test_scenes=3)
    data.setup()
    first = 0
    for name, number in (("test", 3), ("validation", 4), ("train", 20)):
        split = data.splits[name]
        assert len(split.images) == number
        assert len(split.questions) == 9 * number
        for index in range(number):
            scene = draw_scene(5, first + index, 32)
            assert torch.equal(split.images[index], torch.from_numpy(scene.image).permute(2, 0, 1))
            asked = [question for question in split.questions if question.image == index]
            assert [(question.text, question.answers) for question in asked] == [
                (text, (answer,) * 10) for text, answer in scene.questions
            ]
            assert [question.question_id for question in asked] == list(
                range(9 * (first + index), 9 * (first + index + 1))
            )
        first += number


def test_kinds_of_questions_are_what_they_are_called():
    data = ShapesQuestionsDataModule(train_scenes=30, validation_scenes=2, test_scenes=2)
    data.setup()
    signs = {
        "shape": "what is",
        "relation": "where is",
        "relation, yes or no": "is the",
        "size": "large or small",
        "texture": "plain, striped or checked",
        "number of all": "how many shapes",
        "presence": "is there a",
        "number of a kind": "how many",
    }
    answers = {"yes/no": {"yes", "no"}, "number": {"0", "1", "2", "3", "4"}}
    for question in data.splits["train"].questions:
        assert signs[question.question_type] in question.text
        assert (question.answers[0] in answers.get(question.answer_type, ())) == (question.answer_type != "other")
    assert "<unk>" not in [data.tokenizer.decode([number]) for number in range(4, data.tokenizer.vocabulary_size)]
    assert {"left of", "right of", "above", "below", "yes", "no", "large", "checked", "cross"} <= set(data.answers)
    assert len(data.answers) <= 20


def test_augmentation_changes_pixels_only():
    plain, augmented = batches(), batches(augmentation=Augmentation(1, crop_padding=2))
    first, second = (part.__getitems__([(0, 1), (0, 5)]) for part in (plain, augmented))
    assert not torch.equal(first.images, second.images)
    assert same(first[1:], second[1:])
