"""What the data modules of visual question answering share, and that of the embedded scenes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from visattn.data.augmentation import Augmentation
from visattn.data.draws import uniform_draws
from visattn.data.loader import ResumableData, ResumableLoader
from visattn.data.preprocess import Preprocess
from visattn.data.scenes import draw_scenes, tell_scenes
from visattn.data.stored_images import StoredImages
from visattn.text import CaptionTokenizer
from visattn.text.answers import normalize_answer

people = 10  # who answer each question


class Question(NamedTuple):
    """A question about an image, and what people answered.

    Attributes:
        question_id: its number in the data set.
        image: index of its image in the split.
        text: as a person asked it.
        answers: as ten people gave them, one each; none where they are not published.
        question_type: how it begins, such as "what color is the", or what it is about.
        answer_type: "yes/no", "number" or "other".
    """

    question_id: int
    image: int
    text: str
    answers: tuple[str, ...]
    question_type: str
    answer_type: str


class QuestionSplit(NamedTuple):
    """Images, (N, 3, H, W) uint8 in memory or N paths, and the questions about them, at least one about each."""

    images: Tensor | Sequence[Path]
    questions: Sequence[Question]


class QuestionBatch(NamedTuple):
    """B images with up to Q questions about each.

    Attributes:
        images: (B, 3, H, W), float and normalised.
        token_ids: (B, Q, T), long, each question with start and end, then padding.
        counts: (B, Q, answers), uint8: how many people gave each answer of the vocabulary.
        places: (B, Q), long: which question of the split each is; -1 where an image has fewer than Q.
    """

    images: Tensor
    token_ids: Tensor
    counts: Tensor
    places: Tensor


class QuestionBatches(Dataset):
    """Batches of images with their questions; an image is looked at once for all of them.

    Args:
        split: images and questions.
        preprocess: as for `StoredImages`.
        tokenizer: of the questions.
        answers: the vocabulary, in the form of `normalize_answer`.
        augmentation: None for evaluation.
        questions_per_image: at most so many in a batch; those of an image that has more take turns from epoch to
            epoch. None is all.
        seed: of the order of these turns.
    """

    def __init__(
        self,
        split: QuestionSplit,
        preprocess: Preprocess,
        tokenizer: CaptionTokenizer,
        answers: Sequence[str],
        augmentation: Augmentation | None = None,
        questions_per_image: int | None = None,
        seed: int = 0,
    ) -> None:
        self.images, self.questions = StoredImages(split.images, preprocess), split.questions
        self.tokenizer, self.augmentation = tokenizer, augmentation
        self.questions_per_image, self.seed = questions_per_image, seed
        self.numbers = {answer: number for number, answer in enumerate(answers)}
        self.encoded = tokenizer.encode_all([question.text for question in split.questions])
        self.asked: list[list[int]] = [[] for _ in range(len(self.images))]  # places of the questions of each image
        for place, question in enumerate(split.questions):
            self.asked[question.image].append(place)

    def __len__(self) -> int:
        return len(self.images)

    def __getitems__(self, pairs: Sequence[tuple[int, int]]) -> QuestionBatch:
        """A batch; about the image of index -1 there is no question."""
        epoch, indices = pairs[0][0], [max(index, 0) for _, index in pairs]
        asked = [self.turn(index, epoch) if index >= 0 else [] for _, index in pairs]
        return self.batch(indices, asked, epoch)

    def batch(self, indices: Sequence[int], asked: Sequence[Sequence[int]], epoch: int = 0) -> QuestionBatch:
        """Images by their index, each with the questions at these places."""
        pixels = self.images.pixels(indices)
        if self.augmentation is not None:
            pixels = self.augmentation.pixels(pixels, epoch, indices)
        most = max(1, *map(len, asked))
        rows = [[*places, *[-1] * (most - len(places))] for places in asked]
        encoded = [self.encoded[place] if place >= 0 else [] for row in rows for place in row]
        counts = np.zeros((len(rows), most, len(self.numbers)), dtype=np.uint8)
        for row, places in enumerate(asked):
            for column, place in enumerate(places):
                for answer, people in Counter(self.questions[place].answers).items():
                    number = self.numbers.get(normalize_answer(answer))
                    if number is not None:
                        counts[row, column, number] += people
        token_ids = self.tokenizer.pad(encoded).unflatten(0, (-1, most))  # (B, Q, T)
        return QuestionBatch(self.images.normalize(pixels), token_ids, torch.from_numpy(counts), torch.tensor(rows))

    def turn(self, index: int, epoch: int) -> list[int]:
        """The places of the questions about an image whose turn it is."""
        places, most = self.asked[index], self.questions_per_image
        if most is None or len(places) <= most:
            return places
        order = uniform_draws((self.seed,), [index], len(places))[0].argsort()
        return [places[order[number % len(places)]] for number in range(epoch * most, (epoch + 1) * most)]


class QuestionData(ResumableData):
    """Loaders over images and questions in three splits, which `setup` of each data set fills.

    Attributes:
        task: "question_answering".
        image_size: side in pixels.
        preprocess: what the model must do to a picture before it sees it; may be replaced before the loaders are asked
            for, as may be the next two, for a model that has its own.
        tokenizer: of the questions; its words are those of the training questions.
        answers: the vocabulary: the most frequent answers to the training questions, most frequent first.
        splits: name to images and questions, the names being train, validation and test.
    """

    task = "question_answering"
    preprocess: Preprocess
    tokenizer: CaptionTokenizer
    answers: tuple[str, ...]

    def __init__(
        self,
        image_size: int,
        *,
        batch_size: int,
        num_workers: int,
        seed: int,
        num_answers: int | None,
        questions_per_image: int | None,
        min_count: int,
        max_length: int,
        augmentation: dict | None,
    ) -> None:
        """Args: num_answers: size of the vocabulary, None takes all; min_count, max_length: of words and in words, see
        `CaptionTokenizer.train_words`; augmentation: keywords of `Augmentation`, for pixels only. The rest as in
        `QuestionBatches` and `ResumableData`.

        Raises:
            ValueError: a number is below 1, or the augmentation mixes images, about which no question can be asked.
        """
        super().__init__(batch_size, num_workers, seed)
        for name, number in (("num_answers", num_answers), ("questions_per_image", questions_per_image)):
            if number is not None and number < 1:
                raise ValueError(f"{name} {number} must be at least 1, or null for all")
        self.image_size, self.num_answers, self.questions_per_image = image_size, num_answers, questions_per_image
        self.min_count, self.max_length = min_count, max_length
        self.augmentation = Augmentation(1, seed, **(augmentation or {}))
        if self.augmentation.mixers:
            raise ValueError("mixup and cutmix leave no image to ask about; set both to 0")
        self.splits: dict[str, QuestionSplit] = {}

    def learn_words(self) -> None:
        """Makes the vocabularies of questions and answers out of the training split; `setup` ends with this."""
        asked = self.splits["train"].questions
        self.tokenizer = CaptionTokenizer.train_words(
            (question.text for question in asked), self.min_count, self.max_length
        )
        self.answers = frequent_answers((question.answers for question in asked), self.num_answers)

    def train_dataloader(self) -> ResumableLoader:
        turns = {"questions_per_image": self.questions_per_image, "seed": self.seed}
        return self.shuffled(self.batches("train", augmentation=self.augmentation, **turns))

    def val_dataloader(self) -> DataLoader:
        return self.in_order(self.batches("validation"))

    def test_dataloader(self) -> DataLoader:
        return self.in_order(self.batches("test"))

    def batches(self, split: str, **options) -> QuestionBatches:
        return QuestionBatches(self.splits[split], self.preprocess, self.tokenizer, self.answers, **options)

    def examples(self, count: int, split: str = "test") -> QuestionBatch:
        """Images spread evenly over a split, each with one question (Q = 1) and those of another kind in turn."""
        batches = self.batches(split)
        indices = torch.linspace(0, len(batches) - 1, min(count, len(batches))).long().tolist()
        asked = [batches.asked[index] for index in indices]
        return batches.batch(indices, [[places[turn % len(places)]] for turn, places in enumerate(asked)])


class ShapesQuestionsDataModule(QuestionData):
    """Nine questions about each scene of coloured shapes: what, where, how large, how many; no download.

    All ten people give the one true answer.

    Args:
        image_size: side in pixels.
        batch_size: images per process and step, each with its questions.
        num_workers: processes that make batches; 0 makes them in the training process.
        seed: of the scenes and their order.
        train_scenes, validation_scenes, test_scenes: how many, no scene in two of them.
        questions_per_image: see `QuestionBatches`.
        mean, std: of the colours, for the model.
        augmentation: keywords of `visattn.data.Augmentation`; no flips, which would make answers wrong.
    """

    question_types = (
        "shape",
        "shape",
        "relation",
        "relation, yes or no",
        "size",
        "texture",
        "number of all",
        "presence",
        "number of a kind",
    )

    def __init__(
        self,
        image_size: int = 32,
        *,
        batch_size: int = 64,
        num_workers: int = 0,
        seed: int = 0,
        train_scenes: int = 8192,
        validation_scenes: int = 1024,
        test_scenes: int = 2048,
        questions_per_image: int | None = None,
        mean: Sequence[float] = (0.5, 0.5, 0.5),
        std: Sequence[float] = (0.25, 0.25, 0.25),
        augmentation: dict | None = None,
    ) -> None:
        super().__init__(
            image_size,
            batch_size=batch_size,
            num_workers=num_workers,
            seed=seed,
            num_answers=None,
            questions_per_image=questions_per_image,
            min_count=1,
            max_length=20,
            augmentation=augmentation,
        )
        self.scenes = {"test": test_scenes, "validation": validation_scenes, "train": train_scenes}
        self.preprocess = Preprocess(image_size, mean=mean, std=std)

    def setup(self, stage: str | None = None) -> None:
        if self.splits:
            return
        first = 0
        for split, number in self.scenes.items():
            scenes = range(first, first + number)
            images, _ = draw_scenes(self.seed, scenes, self.image_size)
            questions = [
                Question(9 * scenes[image] + turn, image, text, (answer,) * people, kind, answer_type(answer))
                for image, (_, asked) in enumerate(tell_scenes(self.seed, scenes))
                for turn, ((text, answer), kind) in enumerate(zip(asked, self.question_types, strict=True))
            ]
            self.splits[split] = QuestionSplit(torch.from_numpy(images), questions)
            first += number
        self.learn_words()


def answer_type(answer: str) -> str:
    """As the annotations of VQA call it."""
    return "yes/no" if answer in ("yes", "no") else "number" if answer.isdecimal() else "other"


def frequent_answers(given: Iterable[Sequence[str]], count: int | None) -> tuple[str, ...]:
    """The most frequent answers in their normal form, all people's counted; equally frequent ones by the alphabet.

    Raises:
        ValueError: there are none.
    """
    counts = Counter(normalize_answer(answer) for answers in given for answer in answers)
    del counts[""]  # an article alone, for example
    if not counts:
        raise ValueError("the training questions have no answers to learn")
    return tuple(sorted(counts, key=lambda answer: (-counts[answer], answer))[:count])


def hold_out_images(split: QuestionSplit, fraction: float, seed: int) -> tuple[QuestionSplit, QuestionSplit]:
    """Splits by images, so that no image is in both: what is kept, and what is held out.

    Raises:
        ValueError: the fraction is not between 0 and 1, or there are fewer than two images.
    """
    if not 0 < fraction < 1:
        raise ValueError(f"fraction {fraction} of images to hold out must lie between 0 and 1")
    number = len(split.images)
    if number < 2:
        raise ValueError(f"nothing can be held out of {number} image; name a split for validation")
    order = np.random.Generator(np.random.Philox(key=seed)).permutation(number)
    held = min(max(round(fraction * number), 1), number - 1)
    return select_images(split, sorted(order[held:].tolist())), select_images(split, sorted(order[:held].tolist()))


def select_images(split: QuestionSplit, indices: Sequence[int]) -> QuestionSplit:
    """The images of these indices, and the questions about them, in the order of the split."""
    images = split.images
    chosen = images[torch.tensor(indices)] if isinstance(images, Tensor) else [images[index] for index in indices]
    places = {index: place for place, index in enumerate(indices)}
    kept = [question._replace(image=places[question.image]) for question in split.questions if question.image in places]
    return QuestionSplit(chosen, kept)
