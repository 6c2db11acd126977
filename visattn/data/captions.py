"""What the data modules of captioning share: batches of images, or of cached features, with captions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from visattn.data.augmentation import Augmentation
from visattn.data.draws import uniform_draws
from visattn.data.loader import ResumableData, ResumableLoader
from visattn.data.preprocess import Preprocess
from visattn.data.stored_images import StoredImages
from visattn.text import CaptionTokenizer

Features = Tensor | np.ndarray  # (views, N, tokens, channels)


class CaptionSplit(NamedTuple):
    """N images and what is said about them.

    Attributes:
        images: (N, 3, H, W) uint8 in memory, or N paths of files.
        image_ids: as in the annotations, all different.
        captions: of each image, as they are in the annotations.
    """

    images: Tensor | Sequence[Path]
    image_ids: Sequence[int | str]
    captions: Sequence[Sequence[str]]


class CaptionData(ResumableData):
    """Loaders over images with captions in three splits, which `read_splits` of each data set gives.

    A training batch is (images (B, 3, H, W), token ids (B * n, T), image index (B * n,)) with n captions of each image,
    one of evaluation (images, image index). The index is a place in `splits[split]`, or -1 for what only fills up a
    batch of several processes. Once `use_features` was called, features (B, tokens, channels) stand in place of the
    images.

    Args:
        image_size: side in pixels.
        batch_size: captions, or images, per process and step.
        num_workers: processes that make batches.
        seed: of order, augmentation and choices.
        augmentation: keywords of `visattn.data.Augmentation`, of which labels have no use: none that mix images.
        tokenizer: "words" or "bpe", trained on the training captions; or the folder of a saved one.
        min_count: how often a word must occur, see `CaptionTokenizer.train_words`.
        vocabulary_size: of byte pairs, see `CaptionTokenizer.train_bpe`.
        max_length: words, or byte pairs, that are kept of a training caption.
        pairs: "captions" runs an epoch over all captions of all images, "images" over all images, with
            `captions_per_image` of each that are drawn anew in each epoch.
        captions_per_image: so many stand behind each other in a batch, whose images are read once for all of them. An
            image of fewer has some of them twice.

    Attributes:
        task: "captioning".
        preprocess: what the model must do to a picture before it sees it; may be replaced before the loaders are asked
            for.
        tokenizer: may be replaced after `setup`, by that of a pretrained model.
        splits: name to images and captions, the names being train, validation and test.
        pairs: may be replaced before the loaders are asked for.
        features: see `use_features`.

    Raises:
        ValueError: the augmentation mixes images, or captions_per_image is below 1.
        FileNotFoundError: in `setup`, the tokenizer is neither of the two nor a folder.
    """

    task = "captioning"
    preprocess: Preprocess
    tokenizer: CaptionTokenizer

    def __init__(
        self,
        image_size: int,
        *,
        batch_size: int = 64,
        num_workers: int = 0,
        seed: int = 0,
        augmentation: dict | None = None,
        tokenizer: str = "words",
        min_count: int = 5,
        vocabulary_size: int = 8000,
        max_length: int = 20,
        pairs: str = "captions",
        captions_per_image: int = 1,
    ) -> None:
        super().__init__(batch_size, num_workers, seed)
        self.image_size, self.pairs, self.captions_per_image = image_size, pairs, captions_per_image
        if captions_per_image < 1:
            raise ValueError(f"captions_per_image {captions_per_image} must be at least 1")
        self.augmentation = dict(augmentation or {})
        self.tokenizer_source, self.min_count = tokenizer, min_count
        self.vocabulary_size, self.max_length = vocabulary_size, max_length
        self.splits: dict[str, CaptionSplit] = {}
        self.features: dict[str, Features] = {}
        if {"mixup", "cutmix"} & {name for name, value in self.augmentation.items() if value}:
            raise ValueError("mixup and cutmix mix labels; captions cannot be mixed, so leave them out of augmentation")

    def read_splits(self) -> dict[str, CaptionSplit]:
        """Images and captions of train, validation and test, which each data set has of its own."""
        raise NotImplementedError

    def setup(self, stage: str | None = None) -> None:
        if not self.splits:
            self.splits = self.read_splits()
            self.tokenizer = self.make_tokenizer()

    def make_tokenizer(self) -> CaptionTokenizer:
        """The tokenizer that is asked for, which learns nothing from validation and test."""
        captions = [caption for captions in self.splits["train"].captions for caption in captions]
        if self.tokenizer_source == "words":
            return CaptionTokenizer.train_words(captions, self.min_count, self.max_length)
        if self.tokenizer_source == "bpe":
            return CaptionTokenizer.train_bpe(captions, self.vocabulary_size, self.max_length)
        if not Path(self.tokenizer_source).is_dir():
            raise FileNotFoundError(
                f"tokenizer {self.tokenizer_source!r} is neither words nor bpe, nor the folder of a saved tokenizer"
            )
        return CaptionTokenizer.load(self.tokenizer_source)

    def references(self, split: str) -> dict[int | str, list[str]]:
        """The captions of each image by its id, in the order of the image index."""
        _, image_ids, captions = self.splits[split]
        return {image: list(sentences) for image, sentences in zip(image_ids, captions, strict=True)}

    def use_features(self, features: Mapping[str, Features]) -> None:
        """Batches of the named splits hold features from now on, float32 (B, tokens, channels).

        In training, each item takes one of the views, drawn from (seed, epoch, index); in evaluation the first.

        Args:
            features: split to (views, N, tokens, channels), for the N images of the split in order. Mapped files are
                read as they are needed.

        Raises:
            ValueError: the shape doesn't fit the split.
        """
        for split, values in features.items():
            images = len(self.splits[split].captions)
            if values.ndim != 4 or values.shape[1] != images or not len(values):
                raise ValueError(
                    f"features of {split} {tuple(values.shape)} must be (views, {images} images, tokens, channels)"
                )
        self.features |= features

    def stored_images(self, split: str) -> StoredImages:
        """The images of a split without augmentation, for looking at them or computing features."""
        return StoredImages(self.splits[split].images, self.preprocess)

    def train_dataloader(self) -> ResumableLoader:
        if self.pairs not in ("captions", "images"):
            raise ValueError(f"pairs {self.pairs!r} is unknown; choose captions or images")
        number = self.captions_per_image if self.pairs == "images" else None
        captions = EncodedCaptions(self.splits["train"].captions, self.tokenizer, self.seed, number)
        if captions.left_out:
            rank_zero_warn(f"{captions.left_out} training captions hold no word of the vocabulary and are left out")
        augmentation = Augmentation(1, self.seed, **self.augmentation)
        return self.shuffled(CaptionBatches(self.inputs("train", augmentation), captions, self.tokenizer))

    def val_dataloader(self) -> DataLoader:
        return self.in_order(ImagesWithIndex(self.inputs("validation")))

    def test_dataloader(self) -> DataLoader:
        return self.in_order(ImagesWithIndex(self.inputs("test")))

    def examples(self, count: int, split: str = "test") -> tuple[Tensor, Tensor]:
        """Images (count, 3, H, W) and their index (count,), spread evenly over a split, to look at."""
        images = self.stored_images(split)
        index = torch.linspace(0, len(images) - 1, min(count, len(images))).long()
        return images.normalize(images.pixels(index.tolist())), index

    def inputs(self, split: str, augmentation: Augmentation | None = None) -> ImageViews | FeatureViews:
        """What the model is shown of a split; with augmentation, what it is shown in training."""
        if split in self.features:
            return FeatureViews(self.features[split], self.seed, draw=augmentation is not None)
        return ImageViews(self.stored_images(split), augmentation)


class ImageViews:
    """Images (B, 3, H, W) float and normalised, augmented in training."""

    def __init__(self, images: StoredImages, augmentation: Augmentation | None) -> None:
        self.images, self.augmentation = images, augmentation

    def __len__(self) -> int:
        return len(self.images)

    def show(self, images: Sequence[int], epoch: int, items: Sequence[int]) -> Tensor:
        """Some images, with what is drawn from (epoch, item) for each."""
        pixels = self.images.pixels(images)
        if self.augmentation is not None:
            pixels = self.augmentation.pixels(pixels, epoch, items)
        return self.images.normalize(pixels)


class FeatureViews:
    """Features (B, tokens, channels) float32 in place of images.

    Args:
        features: (views, N, tokens, channels).
        seed: of the draws.
        draw: takes one of the views, or else the first.
    """

    def __init__(self, features: Features, seed: int, draw: bool) -> None:
        self.features, self.seed, self.draw = features, seed, draw

    def __len__(self) -> int:
        return self.features.shape[1]

    def show(self, images: Sequence[int], epoch: int, items: Sequence[int]) -> Tensor:
        """The features of some images, in the view that is drawn from (epoch, item) for each."""
        views = np.zeros(len(images), dtype=np.int64)
        if self.draw:
            views = (uniform_draws((self.seed, epoch, 2), items, 1)[:, 0] * len(self.features)).astype(np.int64)
        if isinstance(self.features, Tensor):
            return self.features[torch.from_numpy(views), torch.tensor(images)].float()
        return torch.from_numpy(self.features[views, np.asarray(images)].astype(np.float32))


class ImagesWithIndex(Dataset):
    """Batches of evaluation: images or features, and the index (B,) of each, -1 for what only fills up."""

    def __init__(self, inputs: ImageViews | FeatureViews) -> None:
        self.inputs = inputs

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitems__(self, pairs: Sequence[tuple[int, int]]) -> tuple[Tensor, Tensor]:
        epoch, indices = pairs[0][0], [index for _, index in pairs]
        images = [max(index, 0) for index in indices]
        return self.inputs.show(images, epoch, images), torch.tensor(indices)


class CaptionBatches(Dataset):
    """Batches of training: images or features, token ids (B, T), and the index (B,) of each image, -1 to fill up."""

    def __init__(
        self, inputs: ImageViews | FeatureViews, captions: EncodedCaptions, tokenizer: CaptionTokenizer
    ) -> None:
        self.inputs, self.captions, self.tokenizer = inputs, captions, tokenizer

    def __len__(self) -> int:
        return len(self.captions)

    def __getitems__(self, pairs: Sequence[tuple[int, int]]) -> tuple[Tensor, Tensor, Tensor]:
        epoch, indices = pairs[0][0], [index for _, index in pairs]
        items = [max(index, 0) for index in indices]
        images, token_ids = self.captions.choose(items, epoch)
        index = torch.tensor([image if index >= 0 else -1 for image, index in zip(images, indices, strict=True)])
        index = index.repeat_interleave(len(token_ids) // len(images))
        return self.inputs.show(images, epoch, items), self.tokenizer.pad(token_ids), index


class EncodedCaptions:
    """The captions of N images as token ids, an item for each caption or for each image that has one.

    Args:
        captions: of each image.
        tokenizer: of which captions that hold no known word are left out.
        seed: of the captions that are drawn.
        per_image: an item is an image, with so many captions drawn from (seed, epoch, item); None: it is a caption.

    Attributes:
        left_out: how many captions hold no known word.

    Raises:
        ValueError: no caption is left.
    """

    def __init__(
        self, captions: Sequence[Sequence[str]], tokenizer: CaptionTokenizer, seed: int, per_image: int | None
    ) -> None:
        encoded = tokenizer.encode_all([caption for sentences in captions for caption in sentences])
        owners = np.repeat(np.arange(len(captions)), [len(sentences) for sentences in captions])
        kept = np.array([any(number != tokenizer.unknown_id for number in ids) for ids in encoded], dtype=bool)
        if not kept.any():
            raise ValueError("no training caption holds a word of the tokenizer's vocabulary")
        encoded = [ids for ids, good in zip(encoded, kept, strict=True) if good]
        self.left_out = int((~kept).sum())
        self.image_of = owners[kept]  # (captions,) in order of the images
        self.seed, self.per_image = seed, per_image
        # Flat arrays: processes that make batches share them, which lists of lists would be copied for.
        self.token_ids = np.concatenate(encoded).astype(np.int32)
        self.ends = np.cumsum([len(ids) for ids in encoded])
        self.images, self.first, self.number = np.unique(self.image_of, return_index=True, return_counts=True)

    def __len__(self) -> int:
        return len(self.images) if self.per_image else len(self.image_of)

    def choose(self, items: Sequence[int], epoch: int) -> tuple[list[int], list[list[int]]]:
        """The images of some items, and for each the token ids of its captions, without start and end."""
        chosen = np.asarray(items)
        images = self.images[chosen] if self.per_image else self.image_of[chosen]
        if self.per_image:
            number = self.number[chosen, None]  # (items, 1)
            first = (uniform_draws((self.seed, epoch, 3), items, 1) * number).astype(np.int64)
            turn = (first + np.arange(self.per_image)) % number  # (items, per_image)
            chosen = (self.first[chosen, None] + turn).ravel()
        starts = np.where(chosen > 0, self.ends[chosen - 1], 0)
        parts = [self.token_ids[start:end].tolist() for start, end in zip(starts, self.ends[chosen], strict=True)]
        return images.tolist(), parts
