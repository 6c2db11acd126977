import lightning
import numpy as np
import pytest
import torch

from visattn.data import loader as loader_module
from visattn.data import sampler as sampler_module
from visattn.data.captions import CaptionData, CaptionSplit, EncodedCaptions
from visattn.data.preprocess import Preprocess
from visattn.text import CaptionTokenizer

number = 23
counts = [1 + index % 3 for index in range(number)]  # captions of each image
everything = {"crop_padding": 2, "flip": 0.5, "erasing": 0.3, "randaugment": 1}


def name(index):
    return "".join(chr(ord("a") + int(digit)) for digit in str(index))


class Numbered(CaptionData):
    """Images whose first pixel is their index, with captions that say so: "image NAME caption NAME"."""

    def __init__(self, **options):
        super().__init__(8, **{"batch_size": 4, "min_count": 1} | options)
        self.preprocess = Preprocess(8, mean=(0, 0, 0), std=(1 / 255,) * 3)
        self.setup()

    def read_splits(self):
        images = torch.randint(0, 256, (number, 3, 8, 8), dtype=torch.uint8, generator=torch.manual_seed(0))
        images[:, 0, 0, 0] = torch.arange(number)
        captions = [
            [f"Image {name(index)}, caption {name(k)}!" for k in range(count)] for index, count in enumerate(counts)
        ]
        ids = [f"id{index}" for index in range(number)]
        validation = CaptionSplit(images[:5], ids[:5], [["a validated zebra"]] * 5)
        return {"train": CaptionSplit(images, ids, captions), "validation": validation, "test": validation}


def read(batches, data):
    """(image by its pixel, image by its caption, number of the caption, image index) of each item of some batches."""
    items = []
    for images, token_ids, index in batches:
        for image, row, place in zip(images, token_ids, index, strict=True):
            assert row[0] == data.tokenizer.start_id
            first, image_name, second, caption_name = data.tokenizer.decode(row).split()
            assert (first, second) == ("image", "caption")
            names = [name(i) for i in range(number)]
            said, which = names.index(image_name), names.index(caption_name)
            items.append((round(image[0, 0, 0].item()), said, which, int(place)))
    return items


def epoch_of(data, epoch=0):
    loader = data.train_dataloader()
    loader.sampler.set_epoch(epoch)
    return list(loader)


def test_an_epoch_shows_every_caption_once_with_its_image():
    data = Numbered(batch_size=1)
    items = read(epoch_of(data), data)
    assert all(pixel == said == index for pixel, said, _, index in items)
    assert sorted((said, which) for _, said, which, _ in items) == [
        (image, which) for image in range(number) for which in range(counts[image])
    ]
    assert [item[:2] for item in items] != sorted(item[:2] for item in items)


def test_an_epoch_may_show_every_image_once_with_a_caption_drawn_anew():
    data = Numbered(batch_size=1, pairs="images")
    drawn = []
    for epoch in range(40):
        items = read(epoch_of(data, epoch), data)
        assert all(pixel == said == index for pixel, said, _, index in items)
        assert sorted(said for _, said, _, _ in items) == list(range(number))
        drawn.append({said: which for _, said, which, _ in items})
    for image, count in enumerate(counts):
        often = np.bincount([choice[image] for choice in drawn], minlength=count)
        assert len(often) == count
        assert often.min() >= 40 / count / 3
    in_batches = read(epoch_of(Numbered(batch_size=4, pairs="images"), 7), data)
    assert {(said, which) for _, said, which, _ in in_batches} <= drawn[7].items()


def test_pairs_may_be_chosen_after_construction_and_an_unknown_choice_is_an_error():
    data = Numbered()
    data.pairs = "images"
    assert len(data.train_dataloader()) == number // 4
    data.pairs = "sentences"
    with pytest.raises(ValueError, match="pairs 'sentences' is unknown; choose captions or images"):
        data.train_dataloader()


@pytest.mark.parametrize("pairs", ["captions", "images"])
def test_an_epoch_repeats_itself_and_another_differs(pairs):
    first, again = (epoch_of(Numbered(augmentation=everything, pairs=pairs)) for _ in range(2))
    for ours, theirs in zip(first, again, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    second = epoch_of(Numbered(augmentation=everything, pairs=pairs), 1)
    assert not torch.equal(second[0][0], first[0][0])
    other = epoch_of(Numbered(augmentation=everything, pairs=pairs, seed=1))
    assert not torch.equal(other[0][0], first[0][0])


def test_captions_of_one_image_see_it_augmented_in_different_ways():
    data = Numbered(batch_size=1, augmentation={"crop_padding": 3})
    seen = [images[0] for images, _, index in epoch_of(data) if index == 2]
    assert len(seen) == 3
    assert not (torch.equal(seen[0], seen[1]) and torch.equal(seen[0], seen[2]))


@pytest.mark.parametrize("with_features", [False, True])
def test_a_worker_process_makes_the_same_batches(with_features):
    batches = []
    for num_workers in (0, 1):
        data = Numbered(augmentation=everything, pairs="images", num_workers=num_workers)
        if with_features:
            data.use_features({"train": torch.randn(2, number, 3, 5, generator=torch.manual_seed(0))})
        batches.append(epoch_of(data))
    for ours, theirs in zip(*batches, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_evaluation_shows_every_image_once_in_order_and_unchanged():
    data = Numbered(augmentation=everything)
    for loader in (data.val_dataloader(), data.test_dataloader()):
        images, index = (torch.cat(parts) for parts in zip(*loader, strict=True))
        torch.testing.assert_close(images, data.splits["test"].images.float())
        assert index.tolist() == list(range(5))


def test_batches_never_touch_what_is_in_memory():
    data = Numbered(augmentation=everything)
    features = torch.randn(1, number, 3, 5)
    images, kept = data.splits["train"].images.clone(), features.clone()
    for loader in (data.train_dataloader(), data.test_dataloader()):
        for batch in loader:
            batch[0].zero_()
    data.use_features({"train": features})
    for batch in data.train_dataloader():
        batch[0].zero_()
    assert torch.equal(data.splits["train"].images, images)
    assert torch.equal(features, kept)


def in_processes(monkeypatch, processes, rank):
    for module in (sampler_module, loader_module):
        monkeypatch.setattr(module, "processes_and_rank", lambda: (processes, rank))


@pytest.mark.parametrize("pairs", ["captions", "images"])
def test_two_processes_see_the_global_batches_of_one(monkeypatch, pairs):
    alone = epoch_of(Numbered(batch_size=4, augmentation=everything, pairs=pairs))
    parts = []
    for rank in (0, 1):
        in_processes(monkeypatch, 2, rank)
        parts.append(epoch_of(Numbered(batch_size=2, augmentation=everything, pairs=pairs)))
    assert len(alone) == len(parts[0]) == len(parts[1])
    for whole, left, right in zip(alone, *parts, strict=True):
        assert torch.equal(torch.stack([left[0], right[0]], 1).flatten(0, 1), whole[0])
        assert torch.stack([left[2], right[2]], 1).flatten().tolist() == whole[2].tolist()


def test_what_fills_up_the_last_batch_of_several_processes_has_index_minus_one(monkeypatch):
    in_processes(monkeypatch, 2, 1)
    data = Numbered()
    assert torch.cat([index for _, index in data.test_dataloader()]).tolist() == [1, 3, -1]
    batches = data.train_dataloader().dataset
    images, token_ids, index = batches.__getitems__([(0, 3), (0, -1)])
    assert index[0] >= 0 > index[1]
    assert len(images) == len(token_ids) == 2


@pytest.mark.parametrize("stored", ["tensor", "array", "file"])
def test_cached_features_stand_in_place_of_images(stored, tmp_path):
    values = torch.randn(3, number, 2, 5, generator=torch.manual_seed(0)).half()
    features = values if stored == "tensor" else values.numpy()
    if stored == "file":
        np.save(tmp_path / "features.npy", values.numpy())
        features = np.load(tmp_path / "features.npy", mmap_mode="r")
    data = Numbered()
    data.use_features({"train": features, "test": features[:, :5]})
    views = []
    for epoch in range(3):
        for seen, _, index in epoch_of(data, epoch):
            assert seen.dtype == torch.float32
            assert seen.shape == (4, 2, 5)
            for row, image in zip(seen, index.tolist(), strict=True):
                views += [view for view in range(3) if torch.equal(row, values[view, image].float())]
    assert len(views) == 3 * (sum(counts) // 4) * 4
    assert min(np.bincount(views, minlength=3)) > 25
    tested = torch.cat([seen for seen, _ in data.test_dataloader()])
    assert torch.equal(tested, values[0, :5].float())
    assert next(iter(data.val_dataloader()))[0].ndim == 4  # of which no features are given
    assert data.examples(2)[0].shape == (2, 3, 8, 8)


def test_the_view_of_an_item_doesnt_depend_on_its_batch():
    chosen = []
    for batch_size in (1, 4):
        data = Numbered(batch_size=batch_size)
        data.use_features({"train": torch.arange(2.0).view(2, 1, 1, 1).expand(2, number, 1, 1)})
        items = [(data.tokenizer.decode(row), float(view)) for seen, rows, _ in epoch_of(data, 3)
                 for row, view in zip(rows, seen, strict=True)]  # fmt: skip
        chosen.append(dict(items))
    assert chosen[1].items() <= chosen[0].items()
    assert set(chosen[0].values()) == {0.0, 1.0}


@pytest.mark.parametrize("shape", [(number, 3, 5), (2, number + 1, 3, 5), (0, number, 3, 5), (number, 2, 3, 5)])
def test_features_of_another_number_of_images_are_an_error(shape):
    with pytest.raises(ValueError, match=rf"features of train .* must be \(views, {number} images, tokens, channels\)"):
        Numbered().use_features({"train": torch.zeros(shape)})


class Collector(lightning.LightningModule):
    """Notes what it is trained on; dies at a given step."""

    def __init__(self, dies_at=None):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.dies_at, self.seen = dies_at, []

    def training_step(self, batch, batch_idx):
        if self.global_step == self.dies_at:
            raise KeyboardInterrupt
        self.seen.append((self.current_epoch, *(part.clone() for part in batch)))
        return self.weight * batch[0].mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(module, folder, data, checkpoint=None):
    saver = lightning.pytorch.callbacks.ModelCheckpoint(
        folder, "last", every_n_train_steps=1, enable_version_counter=False
    )
    trainer = lightning.Trainer(
        max_epochs=3, accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
        callbacks=[saver], use_distributed_sampler=False, default_root_dir=folder, num_sanity_val_steps=0,
    )  # fmt: skip
    try:
        trainer.fit(module, datamodule=data, ckpt_path=checkpoint, weights_only=True)
    except (KeyboardInterrupt, SystemExit):
        return module
    return module


@pytest.mark.filterwarnings("ignore")  # Lightning's advice and its use of what torch gives up
@pytest.mark.parametrize(("pairs", "views"), [("captions", 0), ("images", 0), ("images", 2)])
def test_a_run_killed_twice_within_an_epoch_sees_the_batches_of_one_that_ran_through(tmp_path, pairs, views):
    def data():
        made = Numbered(augmentation=everything, pairs=pairs)
        if views:
            made.use_features({"train": torch.randn(views, number, 3, 5, generator=torch.manual_seed(0))})
        return made

    whole = fit(Collector(), tmp_path / "whole", data())
    steps = 3 * ((sum(counts) if pairs == "captions" else number) // 4)
    assert len(whole.seen) == steps
    last = tmp_path / "killed" / "last.ckpt"
    seen = fit(Collector(dies_at=7), tmp_path / "killed", data()).seen
    seen += fit(Collector(dies_at=13), tmp_path / "killed", data(), last).seen
    seen += fit(Collector(), tmp_path / "killed", data(), last).seen
    assert [item[0] for item in seen] == [item[0] for item in whole.seen]
    for ours, theirs in zip(seen, whole.seen, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(ours[1:], theirs[1:], strict=True))


def test_words_are_those_of_the_training_captions():
    data = Numbered()
    assert data.tokenizer.encode("image a zebra") == [
        *data.tokenizer.encode("image a"),
        data.tokenizer.unknown_id,
    ]
    assert data.tokenizer.arguments == Numbered().tokenizer.arguments


@pytest.mark.parametrize("kind", ["bpe", "saved", "replaced"])
def test_another_tokenizer_can_be_chosen(kind, tmp_path):
    saved = CaptionTokenizer.train_bpe(["image caption"], 260)
    saved.save(tmp_path)
    if kind == "bpe":
        data = Numbered(tokenizer="bpe", vocabulary_size=270)
        assert 259 < data.tokenizer.vocabulary_size <= 270
    elif kind == "saved":
        data = Numbered(tokenizer=str(tmp_path), max_length=40)
        assert data.tokenizer.arguments == saved.arguments
    else:  # as a task does with that of a pretrained model
        data = Numbered()
        data.tokenizer = saved
    for _, token_ids, index in epoch_of(data):
        for row, image in zip(token_ids, index.tolist(), strict=True):
            longest = data.tokenizer.max_length
            texts = [
                data.tokenizer.decode(data.tokenizer.encode(text)) for text in data.splits["train"].captions[image]
            ]
            assert data.tokenizer.decode(row) in texts
            assert longest is None or len(row) <= longest + 2


def test_an_unknown_tokenizer_is_an_error():
    with pytest.raises(FileNotFoundError, match="tokenizer 'word' is neither words nor bpe, nor the folder"):
        Numbered(tokenizer="word")


def test_references_are_the_captions_as_they_are_in_the_order_of_the_images():
    references = Numbered().references("train")
    assert list(references) == [f"id{index}" for index in range(number)]
    assert references["id2"] == ["Image c, caption a!", "Image c, caption b!", "Image c, caption c!"]


def test_training_captions_without_a_known_word_are_left_out_and_counted():
    tokenizer = CaptionTokenizer.train_words(["a dog", "a cat"], min_count=1)
    captions = [["a dog", "!!!"], ["", "zebra"], [], ["cat"]]
    for per_image in (None, 1):
        encoded = EncodedCaptions(captions, tokenizer, 0, per_image)
        assert encoded.left_out == 3
        assert len(encoded) == 2
        images, token_ids = encoded.choose([1, 0], 0)
        assert images == [3, 0]
        assert [tokenizer.decode(ids) for ids in token_ids] == ["cat", "a dog"]
    with pytest.raises(ValueError, match="no training caption holds a word"):
        EncodedCaptions([["zebra"], []], tokenizer, 0, None)
    data = Numbered()
    data.tokenizer = CaptionTokenizer.train_words(["b"], min_count=1)  # "Image b, caption a!" and so on
    with pytest.warns(UserWarning, match="training captions hold no word of the vocabulary and are left out"):
        items = epoch_of(data)
    assert {int(place) for _, _, index in items for place in index} <= {1} | {
        image for image in range(number) if counts[image] > 1
    }


def test_several_captions_of_an_image_stand_behind_each_other():
    tokenizer = CaptionTokenizer.train_words(["a b c d e"], min_count=1)
    encoded = EncodedCaptions([["a", "b", "c"], ["d"], ["e", "a"]], tokenizer, 0, 3)
    assert len(encoded) == 3
    images, token_ids = encoded.choose([2, 0, 1], 0)
    words = [tokenizer.decode(ids) for ids in token_ids]
    assert images == [2, 0, 1]
    assert sorted(words[3:6]) == ["a", "b", "c"]
    assert set(words[:3]) == {"e", "a"}
    assert words[6:] == ["d"] * 3
    starts = {tuple(encoded.choose([0], epoch)[1][0]) for epoch in range(20)}
    assert len(starts) == 3, "each of an image's captions comes first in some epoch"


def test_a_batch_has_the_index_of_the_image_beside_each_of_its_captions():
    data = Numbered(pairs="images", captions_per_image=2)
    for images, token_ids, index in epoch_of(data):
        assert len(token_ids) == len(index) == 2 * len(images)
        assert torch.equal(index[::2], index[1::2])


def test_no_captions_of_an_image_are_an_error():
    with pytest.raises(ValueError, match="captions_per_image 0 must be at least 1"):
        Numbered(captions_per_image=0)


def test_the_smallest_batch_is_kept_when_there_are_few_captions():
    data = Numbered(batch_size=1000)
    ((images, token_ids, index),) = epoch_of(data)
    assert len(images) == len(token_ids) == len(index) == sum(counts)


def test_examples_are_spread_over_the_split():
    images, index = Numbered().examples(3, "train")
    assert index.tolist() == [0, 11, 22]
    assert images[:, 0, 0, 0].round().tolist() == [0, 11, 22]


def test_a_replaced_preprocess_is_used_by_all_loaders():
    data = Numbered()
    data.preprocess = Preprocess(16, mean=(0.5,) * 3, std=(0.5,) * 3)
    for batch in (next(iter(data.train_dataloader())), next(iter(data.test_dataloader())), data.examples(2)):
        assert batch[0].shape[1:] == (3, 16, 16)
        assert -1 <= batch[0].min() < -0.9
    assert len(data.stored_images("train")) == number


@pytest.mark.parametrize("mixer", ["mixup", "cutmix"])
def test_images_with_captions_are_not_mixed(mixer):
    with pytest.raises(ValueError, match="captions cannot be mixed"):
        Numbered(augmentation={mixer: 0.5})
    assert Numbered(augmentation={mixer: 0.0}).augmentation == {mixer: 0.0}
