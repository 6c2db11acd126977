"""VQA v2 in its official layout, made small."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from visattn.data.images import ImageFileError
from visattn.data.vqa_v2 import QuestionFileError, VQAv2DataModule, read_annotations, read_split

image_ids = (9, 42, 581929, 3)


def entries(split, image_ids):
    """Two questions about each image, numbered as officially: the image's id times 1000, and a turn."""
    questions, annotations = [], []
    for place, image in enumerate(image_ids):
        for turn, text in enumerate(("What color is the café's door?", "Is there a dog?")):
            number = image * 1000 + turn
            given = ["red"] * 6 + ["dark red"] * (place + 1) + ["Blue!"] * (3 - place) if turn == 0 else ["yes"] * 10
            questions.append({"image_id": image, "question": text, "question_id": number})
            annotations.append(
                {
                    "question_type": "what color is the" if turn == 0 else "is there a",
                    "multiple_choice_answer": given[0],
                    "answers": [
                        {"answer": answer, "answer_confidence": "yes", "answer_id": person}
                        for person, answer in enumerate(given, start=1)
                    ],
                    "image_id": image,
                    "answer_type": "other" if turn == 0 else "yes/no",
                    "question_id": number,
                }
            )
    return (
        {"info": {}, "task_type": "Open-Ended", "data_type": "mscoco", "data_subtype": split, "questions": questions},
        {"info": {}, "data_type": "mscoco", "data_subtype": split, "annotations": annotations},
    )


def write(root, split, image_ids=image_ids, with_annotations=True):
    questions, annotations = entries(split, image_ids)
    (root / f"v2_OpenEnded_mscoco_{split}_questions.json").write_text(json.dumps(questions))
    if with_annotations:
        (root / f"v2_mscoco_{split}_annotations.json").write_text(json.dumps(annotations))
    folder = root / split.replace("test-dev", "test")
    folder.mkdir(exist_ok=True)
    for number, image in enumerate(image_ids):
        pixels = np.full((30 + number, 40, 3), 20 * number, dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"COCO_{folder.name}_{image:012d}.jpg")


@pytest.fixture
def root(tmp_path):
    write(tmp_path, "train2014")
    write(tmp_path, "val2014", (7, 8))
    return tmp_path


def change(path, name, place, **fields):
    """Overwrites fields of an entry of an official file; None removes one."""
    content = json.loads(path.read_text())
    for field, value in fields.items():
        if value is None:
            del content[name][place][field]
        else:
            content[name][place][field] = value
    path.write_text(json.dumps(content))


def data(root, **options):
    module = VQAv2DataModule(root, 16, batch_size=2, min_count=1, validation_fraction=0.25, **options)
    module.setup()
    return module


def test_official_files_become_questions_with_ten_answers(root):
    module = data(root)
    assert {name: len(split.images) for name, split in module.splits.items()} == {
        "train": 3,
        "validation": 1,
        "test": 2,
    }
    question = module.splits["test"].questions[0]
    assert question.question_id == 7000
    assert question.text == "What color is the café's door?"
    assert question.answers == ("red",) * 6 + ("dark red",) + ("Blue!",) * 3
    assert (question.question_type, question.answer_type) == ("what color is the", "other")
    assert module.splits["test"].questions[3] == (8001, 1, "Is there a dog?", ("yes",) * 10, "is there a", "yes/no")
    assert set(module.answers) == {"yes", "red", "dark red", "blue"}
    assert module.answers[:2] == ("yes", "red")
    batch = next(iter(module.test_dataloader()))
    assert batch.images.shape == (2, 3, 16, 16)
    assert batch.counts[0, 0, module.answers.index("blue")] == 3
    assert batch.counts.sum() == 40


def test_images_are_stretched_so_that_nothing_is_cut_off(root):
    pixels = np.zeros((32, 64, 3), dtype=np.uint8)
    pixels[:, :4] = 255  # would be cut off
    Image.fromarray(pixels).save(root / "val2014" / "COCO_val2014_000000000007.jpg", quality=100)
    images = data(root).splits["test"].images
    assert isinstance(images, torch.Tensor)
    assert images[0, :, :, 0].float().mean() > 120


def test_images_that_dont_fit_into_memory_stay_in_their_files(root):
    in_memory, in_files = data(root), data(root, memory=0)
    assert in_files.splits["test"].images == [root / "val2014" / f"COCO_val2014_{image:012d}.jpg" for image in (7, 8)]
    for one, other in zip(in_memory.test_dataloader(), in_files.test_dataloader(), strict=True):
        assert all(torch.equal(*pair) for pair in zip(one, other, strict=True))


def test_validation_may_be_a_split_of_its_own(root):
    module = data(root, validation="val2014")
    assert len(module.splits["train"].images) == 4
    assert module.splits["validation"].questions == module.splits["test"].questions


def test_the_number_of_answers_is_cut_to_the_most_frequent(root):
    assert data(root, num_answers=2).answers == ("yes", "red")


@pytest.mark.parametrize("split", ["test2015", "test-dev2015"])
def test_a_test_without_annotations_has_questions_without_answers(root, split):
    write(root, split, (1, 2), with_annotations=False)
    module = data(root, test=split)
    assert [path.parent.name for path in data(root, test=split, memory=0).splits["test"].images] == ["test2015"] * 2
    assert all(question.answers == () for question in module.splits["test"].questions)
    batch = next(iter(module.test_dataloader()))
    assert batch.counts.sum() == 0
    assert (batch.places >= 0).all()


def test_a_question_of_a_test_may_lack_its_annotation(root):
    write(root, "test2015", (1, 2))
    path = root / "v2_mscoco_test2015_annotations.json"
    content = json.loads(path.read_text())
    del content["annotations"][1]
    path.write_text(json.dumps(content))
    assert [len(question.answers) for question in data(root, test="test2015").splits["test"].questions] == [
        10,
        0,
        10,
        10,
    ]


def test_what_is_needed_must_be_there(root):
    (root / "v2_mscoco_val2014_annotations.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"v2_mscoco_val2014_annotations\.json: there is no such file"):
        data(root)
    with pytest.raises(FileNotFoundError, match=r"v2_OpenEnded_mscoco_nowhere_questions\.json"):
        read_split(root, "nowhere", needs_answers=False)


@pytest.mark.parametrize(
    ("place", "fields", "message"),
    [
        (1, {"question_id": None}, 'entry 1: "question_id" is missing'),
        (1, {"question_id": "nine"}, 'question nine: "question_id" must be a whole number from 0 on, found a string'),
        (1, {"question_id": 9000}, 'question 9000: "question_id" 9000 is that of a question before'),
        (1, {"question_id": 5}, r"question 5: has no annotation in v2_mscoco_train2014_annotations\.json"),
        (1, {"image_id": None}, 'question 9001: "image_id" is missing'),
        (1, {"image_id": True}, 'question 9001: "image_id" must be a whole number from 0 on, found a truth value'),
        (1, {"image_id": 42}, 'question 9001: "image_id" 42 is 9 in .* do the two files belong together'),
        (1, {"question": None}, 'question 9001: "question" is missing'),
        (1, {"question": ["what"]}, 'question 9001: "question" must be a string, found a list'),
        (1, {"question": " \n"}, 'question 9001: "question" is empty'),
        (
            1,
            {"question": "what is \ud83d?"},
            r'question 9001: "question" is no valid Unicode \(a lone surrogate at 8\)',
        ),
    ],
)
def test_errors_of_questions_name_file_question_and_field(root, place, fields, message):
    change(root / "v2_OpenEnded_mscoco_train2014_questions.json", "questions", place, **fields)
    with pytest.raises(QuestionFileError, match=rf"v2_OpenEnded_mscoco_train2014_questions\.json: {message}"):
        data(root)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"question_id": None}, 'entry 2: "question_id" is missing'),
        ({"question_id": 9001}, 'question 9001: "question_id" 9001 has an annotation already'),
        ({"answers": None}, 'question 42000: "answers" is missing'),
        ({"answers": {}}, 'question 42000: "answers" must be a list of 10 people\'s answers, found an object'),
        ({"answers": [{"answer": "red"}] * 9}, "question 42000: .* list of 10 people's answers, found 9 answers"),
        ({"answers": [{"answer": "red"}] * 9 + [{}]}, 'question 42000, answer 9: "answer" is missing'),
        (
            {"answers": [{"answer": "red"}] * 9 + [{"answer": 3}]},
            'question 42000, answer 9: "answer" must be a string, found a number',
        ),
        ({"answers": ["red"] * 10}, "question 42000, answer 0: expected an object, found a string"),
        ({"question_type": None}, 'question 42000: "question_type" is missing'),
        ({"answer_type": 3}, 'question 42000: "answer_type" must be a string, found a number'),
        ({"image_id": -1}, 'question 42000: "image_id" must be a whole number from 0 on, found -1'),
    ],
)
def test_errors_of_annotations_name_file_question_and_field(root, fields, message):
    change(root / "v2_mscoco_train2014_annotations.json", "annotations", 2, **fields)
    with pytest.raises(QuestionFileError, match=rf"v2_mscoco_train2014_annotations\.json: {message}"):
        data(root)


def test_an_annotation_of_no_question_is_an_error(root):
    path = root / "v2_OpenEnded_mscoco_train2014_questions.json"
    content = json.loads(path.read_text())
    del content["questions"][0]
    path.write_text(json.dumps(content))
    with pytest.raises(QuestionFileError, match=r"1 annotations are of no question in .* the first of question 9000"):
        data(root)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"annotations": [{"question_id": 1, "answ', "no JSON, or cut off"),
        ("", "no JSON, or cut off"),
        ("[" * 100_000, "no JSON, or cut off"),
        ("[1, 2]", "expected an object, found a list"),
        ('{"annotations": {}}', '"annotations" must be a list, found an object'),
        ('{"questions": []}', '"annotations" is missing'),
    ],
)
def test_files_of_another_form_are_errors(tmp_path, text, message):
    path = tmp_path / "annotations.json"
    path.write_text(text)
    with pytest.raises(QuestionFileError, match=rf"annotations\.json: {message}"):
        read_annotations(path)
    path.write_bytes('{"annotations": ["é"]}'.encode("latin-1"))
    with pytest.raises(QuestionFileError, match=r"not UTF-8 \(byte 18\)"):
        read_annotations(path)


def test_no_question_at_all_is_an_error(root):
    (root / "v2_OpenEnded_mscoco_val2014_questions.json").write_text('{"questions": []}')
    with pytest.raises(QuestionFileError, match='"questions" is empty'):
        read_split(root, "val2014", needs_answers=False)


def test_missing_and_damaged_images_are_errors_or_counted(root):
    (root / "train2014" / "COCO_train2014_000000000042.jpg").unlink()
    with pytest.raises(ImageFileError, match=r"COCO_train2014_000000000042\.jpg: there is no such file"):
        data(root)
    (root / "val2014" / "COCO_val2014_000000000008.jpg").write_bytes(b"")
    with pytest.warns(UserWarning, match="2 pictures, and with them 4 of 12 questions, are left out: .*000042"):
        module = data(root, on_error="skip", seed=2)
    assert [question.question_id for question in module.splits["test"].questions] == [7000, 7001]
    others = [module.splits[name] for name in ("train", "validation")]
    asked = [{question.question_id // 1000 for question in split.questions} for split in others]
    assert asked[0] | asked[1] == {9, 581929, 3}
    assert [{question.image for question in split.questions} for split in others] == [{0, 1}, {0}]
    for image in (7, 8):
        (root / "val2014" / f"COCO_val2014_{image:012d}.jpg").unlink(missing_ok=True)
    with (
        pytest.warns(UserWarning, match="3 pictures"),
        pytest.raises(ImageFileError, match="no picture of the test questions can be read"),
    ):
        data(root, on_error="skip", seed=2)


def test_unknown_reactions_to_errors_are_refused(root):
    with pytest.raises(ValueError, match="on_error 'ignore' is unknown; choose raise or skip"):
        VQAv2DataModule(root, on_error="ignore")
