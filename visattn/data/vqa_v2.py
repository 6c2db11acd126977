"""VQA v2 in its official files: questions, the answers of ten people to each, and COCO's images."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightning.pytorch.utilities import rank_zero_warn

from visattn.data.image_folder import ImageReader
from visattn.data.images import ImageFileError
from visattn.data.json_fields import JsonFields, kind
from visattn.data.preprocess import Preprocess, imagenet_mean, imagenet_std
from visattn.data.questions import Question, QuestionData, QuestionSplit, hold_out_images, people, select_images


class QuestionFileError(ValueError):
    """A file of questions or annotations cannot be used; the message names the file, the question and the field."""


_fields = JsonFields(QuestionFileError, "questions or answers; dataset.root must be the folder of VQA's files")


class VQAv2DataModule(QuestionData):
    """VQA v2 as https://visualqa.org publishes it, or a person's own questions in its formats.

    For a split such as val2014 there are

        root/v2_OpenEnded_mscoco_val2014_questions.json
        root/v2_mscoco_val2014_annotations.json
        root/val2014/COCO_val2014_000000000042.jpg

    Those of tests (test2015, test-dev2015) come without annotations: they are answered, and nothing is scored.

    Args:
        root: the folder.
        image_size: side in pixels that pictures are resized and cropped to.
        resize: of the shorter side before the crop; None is `image_size`.
        fit: how pictures become squares, see `Preprocess`; "stretch" leaves nothing of them out.
        batch_size: images per process and step, each with its questions.
        num_workers: processes that decode pictures which don't fit into memory.
        seed: of order, augmentation and held-out images.
        train, validation, test: splits by their official names; validation None holds out images of those for training.
        validation_fraction: of the training images, where they are held out.
        num_answers: size of the vocabulary of answers. The 3129 that occurred nine times or more were the usual choice.
        questions_per_image: see `QuestionBatches`.
        min_count, max_length: of words, see `CaptionTokenizer.train_words`.
        memory: gigabytes; decoded pictures are kept while they take no more.
        on_error: "raise" at a picture that is missing or cannot be read, or "skip" it and its questions and report how
            many there were.
        mean, std: of the colours, as the model expects them.
        augmentation: keywords of `visattn.data.Augmentation`; no flips, which make answers about sides wrong.

    Raises:
        FileNotFoundError: a file is missing.
        QuestionFileError: a file is not of its format.
        ImageFileError: a picture is missing or cannot be read; the message has the path.

    Source: Goyal et al. 2017, https://arxiv.org/abs/1612.00837.
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        image_size: int = 224,
        *,
        resize: int | None = None,
        fit: str = "stretch",
        batch_size: int = 64,
        num_workers: int = 0,
        seed: int = 0,
        train: str = "train2014",
        validation: str | None = None,
        test: str = "val2014",
        validation_fraction: float = 0.02,
        num_answers: int | None = 3129,
        questions_per_image: int | None = 8,
        min_count: int = 3,
        max_length: int = 20,
        memory: float = 4.0,
        on_error: str = "raise",
        mean: Sequence[float] = imagenet_mean,
        std: Sequence[float] = imagenet_std,
        augmentation: dict | None = None,
    ) -> None:
        super().__init__(
            image_size,
            batch_size=batch_size,
            num_workers=num_workers,
            seed=seed,
            num_answers=num_answers,
            questions_per_image=questions_per_image,
            min_count=min_count,
            max_length=max_length,
            augmentation=augmentation,
        )
        if on_error not in ("raise", "skip"):
            raise ValueError(f"on_error {on_error!r} is unknown; choose raise or skip")
        self.root, self.on_error, self.memory = Path(root), on_error, memory
        self.names = {"train": train, "validation": validation, "test": test}
        self.validation_fraction = validation_fraction
        self.preprocess = Preprocess(image_size, resize=resize, fit=fit, mean=mean, std=std)

    def setup(self, stage: str | None = None) -> None:
        if self.splits:
            return
        reader = ImageReader(self.preprocess, self.on_error == "skip")
        found = {
            split: read_split(self.root, name, needs_answers=split != "test" or not name.startswith("test"))
            for split, name in self.names.items()
            if name is not None
        }
        if "validation" not in found:
            found["train"], found["validation"] = hold_out_images(found["train"], self.validation_fraction, self.seed)
        count = sum(len(split.images) for split in found.values())
        in_memory = count * 3 * self.image_size**2 <= self.memory * 2**30
        self.splits = {name: with_readable_images(split, reader, in_memory) for name, split in found.items()}
        if reader.problems:
            before, after = (sum(len(split.questions) for split in part.values()) for part in (found, self.splits))
            shown = "; ".join(sorted(reader.problems)[:3])
            rank_zero_warn(
                f"{self.root}: {len(reader.problems)} pictures, and with them {before - after} of {before} questions, "
                f"are left out: {shown}"
            )
        if empty := [name for name, split in self.splits.items() if not split.questions]:
            raise ImageFileError(f"{self.root}: no picture of the {empty[0]} questions can be read")
        self.learn_words()


def read_split(root: Path, name: str, needs_answers: bool) -> QuestionSplit:
    """The questions of a split with what people answered, and the paths of the images; both are checked here, once.

    Args:
        needs_answers: a missing file of annotations, or a question without one, is an error.
    """
    question_file = root / f"v2_OpenEnded_mscoco_{name}_questions.json"
    annotation_file = root / f"v2_mscoco_{name}_annotations.json"
    annotations: dict[int, Annotation] = {}
    if needs_answers or annotation_file.exists():
        annotations = read_annotations(annotation_file)
    images: dict[int, int] = {}  # id -> index
    questions: dict[int, Question] = {}
    for where, entry in entries(question_file, "questions"):
        number, image, text = number_of(where, entry), whole(where, entry, "image_id"), string(where, entry, "question")
        if number in questions:
            raise QuestionFileError(f'{where}: "question_id" {number} is that of a question before')
        if not text.strip():
            raise QuestionFileError(f'{where}: "question" is empty')
        answered = annotations.get(number)
        if answered is None and needs_answers:
            raise QuestionFileError(f"{where}: has no annotation in {annotation_file.name}")
        if answered is not None and answered.image != image:
            raise QuestionFileError(
                f'{where}: "image_id" {image} is {answered.image} in {annotation_file.name}; '
                "do the two files belong together?"
            )
        known = answered or Annotation(image, (), "", "")
        questions[number] = Question(
            number, images.setdefault(image, len(images)), text, known.answers, known.question_type, known.answer_type
        )
    if not questions:
        raise QuestionFileError(f'{question_file}: "questions" is empty')
    if unasked := [number for number in annotations if number not in questions]:
        raise QuestionFileError(
            f"{annotation_file}: {len(unasked)} annotations are of no question in {question_file.name}, the first of "
            f"question {unasked[0]}"
        )
    folder = name.replace("test-dev", "test")
    paths = [root / folder / f"COCO_{folder}_{image:012d}.jpg" for image in images]
    return QuestionSplit(paths, list(questions.values()))


class Annotation(NamedTuple):
    """What people said to a question; the fields are those of `Question`, but the image has its official number."""

    image: int
    answers: tuple[str, ...]
    question_type: str
    answer_type: str


def read_annotations(path: Path) -> dict[int, Annotation]:
    """Question id -> what people answered.

    Raises:
        FileNotFoundError: there is no such file.
        QuestionFileError: the file is not of its format, or a question has not ten answers, or two annotations.
    """
    annotations: dict[int, Annotation] = {}
    for where, entry in entries(path, "annotations"):
        number = number_of(where, entry)
        if number in annotations:
            raise QuestionFileError(f'{where}: "question_id" {number} has an annotation already')
        given = _fields.field(where, entry, "answers")
        if not isinstance(given, list) or len(given) != people:
            size = f"{len(given)} answers" if isinstance(given, list) else kind(given)
            raise QuestionFileError(f'{where}: "answers" must be a list of {people} people\'s answers, found {size}')
        answers = [string(f"{where}, answer {place}", answer, "answer") for place, answer in enumerate(given)]
        annotations[number] = Annotation(
            whole(where, entry, "image_id"),
            tuple(map(sys.intern, answers)),  # few different ones, in millions
            sys.intern(string(where, entry, "question_type")),
            sys.intern(string(where, entry, "answer_type")),
        )
    return annotations


def with_readable_images(split: QuestionSplit, reader: ImageReader, in_memory: bool) -> QuestionSplit:
    """The split with pictures decoded or checked, without those that the reader leaves out and questions about them."""
    assert not isinstance(split.images, torch.Tensor)
    present = []
    for index, path in enumerate(split.images):
        if path.is_file():
            present.append(index)
        else:
            reader.problem(ImageFileError(f"{path}: there is no such file, and there are questions about it"))
    paths = [split.images[index] for index in present]
    images, kept = (reader.load if in_memory else reader.check)(paths, torch.tensor(present, dtype=torch.long))
    return QuestionSplit(images, select_images(split, kept.tolist()).questions)


def entries(path: Path, name: str) -> Iterator[tuple[str, Any]]:
    """The entries of the list that a file has under a name, each with what to call it in errors."""
    for index, entry in enumerate(_fields.list_of(path, _fields.read_json(path), name)):
        where = f"{path}: entry {index}"
        if isinstance(entry, dict) and "question_id" in entry:
            where = f"{path}: question {entry['question_id']}"
        yield where, entry


def number_of(where: str, entry: Any) -> int:
    return whole(where, entry, "question_id")


def whole(where: str, entry: Any, name: str) -> int:
    return _fields.whole(where, entry, name, 0)


def string(where: str, entry: Any, name: str) -> str:
    return _fields.unicode(where, name, _fields.string(where, entry, name))
