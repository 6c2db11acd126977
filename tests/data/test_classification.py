import lightning
import numpy as np
import pytest
import torch
from PIL import Image

from visattn.data.classification import ImageBatches, ImageClassificationData, hold_out
from visattn.data.preprocess import Preprocess

everything = {"crop_padding": 2, "flip": 0.5, "erasing": 0.3, "randaugment": 1, "mixup": 1.0, "mix_probability": 0.5}


class Numbered(ImageClassificationData):
    """Images whose first pixel is their index."""

    classes = ("even", "odd")

    def __init__(self, number=43, batch_size=8, num_workers=0, augmentation=None, seed=0):
        super().__init__(8, batch_size, num_workers, seed, augmentation)
        self.preprocess = Preprocess(8, mean=(0, 0, 0), std=(1 / 255,) * 3)
        images = torch.randint(0, 256, (number, 3, 8, 8), dtype=torch.uint8, generator=torch.manual_seed(0))
        images[:, 0, 0, 0] = torch.arange(number)
        labels = torch.arange(number) % 2
        self.splits = dict.fromkeys(("train", "validation", "test"), (images, labels))


def numbers(batches):
    return [images[:, 0, 0, 0].round().long().tolist() for images, _ in batches]


def test_evaluation_shows_every_image_once_in_order_and_unchanged():
    data = Numbered(augmentation=everything)
    for loader in (data.val_dataloader(), data.test_dataloader()):
        assert [number for batch in numbers(loader) for number in batch] == list(range(43))
    images, labels = next(iter(data.test_dataloader()))
    torch.testing.assert_close(images, data.splits["test"][0][:8].float())
    assert labels.tolist() == [0, 1] * 4


def test_training_leaves_out_a_last_batch_that_is_not_full():
    loader = Numbered().train_dataloader()
    assert len(loader) == 5
    assert [len(batch) for batch in numbers(loader)] == [8] * 5
    assert [len(batch) for batch in numbers(Numbered(5).train_dataloader())] == [5]


def test_an_epoch_repeats_itself_and_another_differs():
    loader, again = Numbered(augmentation=everything).train_dataloader(), Numbered(augmentation=everything)
    first = list(loader)
    for (images, labels), (others, other_labels) in zip(first, again.train_dataloader(), strict=True):
        assert torch.equal(images, others)
        assert torch.equal(labels, other_labels)
    loader.sampler.set_epoch(1)
    assert not torch.equal(next(iter(loader))[0], first[0][0])


def test_worker_processes_make_the_same_batches():
    alone = list(Numbered(augmentation=everything).train_dataloader())
    for (images, labels), (others, other_labels) in zip(
        alone, Numbered(augmentation=everything, num_workers=2).train_dataloader(), strict=True
    ):
        assert torch.equal(images, others)
        assert torch.equal(labels, other_labels)


def test_batches_never_touch_the_images_in_memory():
    data = Numbered(augmentation=everything)
    before = data.splits["train"][0].clone()
    for images, _ in data.train_dataloader():
        images.zero_()
    for images, _ in data.test_dataloader():
        images.zero_()
    assert torch.equal(data.splits["train"][0], before)


def test_index_minus_one_fills_up_and_is_labelled_to_be_ignored():
    data = Numbered()
    _, labels = ImageBatches(*data.splits["test"], data.preprocess).__getitems__([(0, 3), (0, -1)])
    assert labels.tolist() == [1, -1]


def test_files_and_images_in_memory_give_the_same_batches(tmp_path):
    images = torch.randint(0, 256, (6, 3, 8, 8), dtype=torch.uint8)
    paths = []
    for number, image in enumerate(images):
        paths.append(tmp_path / f"{number}.png")
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(paths[-1])
    labels, preprocess = torch.arange(6), Preprocess(8)
    pairs = [(0, 4), (0, 1)]
    in_memory = ImageBatches(images, labels, preprocess).__getitems__(pairs)
    from_files = ImageBatches(paths, labels, preprocess).__getitems__(pairs)
    assert torch.equal(in_memory[0], from_files[0])
    assert torch.equal(in_memory[1], from_files[1])


def test_images_of_another_size_are_resized_in_the_batch():
    rows, columns = np.mgrid[0:16, 0:16]
    picture = np.stack([rows * 8, columns * 8, rows + columns], axis=2).astype(np.uint8)
    images = torch.from_numpy(picture).permute(2, 0, 1)[None]
    batch, _ = ImageBatches(images, torch.zeros(1).long(), Preprocess(40)).__getitems__([(0, 0)])
    expected = Preprocess(40)(Image.fromarray(picture))
    torch.testing.assert_close(batch[0], expected, rtol=0, atol=0.02)


def test_the_position_within_an_epoch_is_kept_and_taken_up_twice():
    whole = numbers(Numbered(augmentation=None).train_dataloader())
    state, seen = None, []
    for stop in (2, 1, 2):  # killed after two batches, then after one more, then to the end
        loader = Numbered().train_dataloader()
        if state is not None:
            loader.load_state_dict(state)
        iterator = iter(loader)
        for _ in range(stop):
            seen += numbers([next(iterator)])
        state = loader.state_dict()
    assert seen == whole
    assert state == {"epoch": 0, "batches_done": 5}


def test_a_position_in_another_epoch_is_not_taken_up():
    loader = Numbered().train_dataloader()
    loader.load_state_dict({"epoch": 0, "batches_done": 5})
    loader.sampler.set_epoch(1)
    assert len(numbers(loader)) == 5
    assert len(numbers(loader)) == 5


@pytest.mark.parametrize("num_workers", [0, 2])
def test_the_position_counts_batches_handed_out_not_batches_made(num_workers):
    loader = Numbered(num_workers=num_workers).train_dataloader()
    iterator = iter(loader)
    next(iterator), next(iterator)
    assert loader.state_dict()["batches_done"] == 2


class Collector(lightning.LightningModule):
    """Notes what it is trained on; dies at a given step."""

    def __init__(self, dies_at=None):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.dies_at, self.seen = dies_at, []

    def training_step(self, batch, batch_idx):
        if self.global_step == self.dies_at:
            raise KeyboardInterrupt
        self.seen.append((self.current_epoch, batch[0].clone()))
        return self.weight * batch[0].mean()

    def validation_step(self, batch, batch_idx):
        pass

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(module, folder, checkpoint=None):
    saver = lightning.pytorch.callbacks.ModelCheckpoint(
        folder, "last", every_n_train_steps=1, enable_version_counter=False
    )
    trainer = lightning.Trainer(
        max_epochs=3, accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
        callbacks=[saver], use_distributed_sampler=False, default_root_dir=folder, num_sanity_val_steps=0,
    )  # fmt: skip
    try:
        trainer.fit(module, datamodule=Numbered(augmentation=everything), ckpt_path=checkpoint, weights_only=True)
    except (KeyboardInterrupt, SystemExit):
        return module
    return module


@pytest.mark.filterwarnings("ignore")  # Lightning's advice and its use of what torch gives up
def test_a_run_killed_twice_within_an_epoch_sees_the_batches_of_one_that_ran_through(tmp_path):
    whole = fit(Collector(), tmp_path / "whole")
    assert len(whole.seen) == 15
    seen = fit(Collector(dies_at=7), tmp_path / "killed").seen
    seen += fit(Collector(dies_at=9), tmp_path / "killed", tmp_path / "killed" / "last.ckpt").seen
    last = fit(Collector(), tmp_path / "killed", tmp_path / "killed" / "last.ckpt")
    seen += last.seen
    assert [epoch for epoch, _ in seen] == [epoch for epoch, _ in whole.seen]
    assert all(torch.equal(ours, theirs) for (_, ours), (_, theirs) in zip(seen, whole.seen, strict=True))
    assert torch.equal(last.weight, whole.weight)


def collect_in_process(rank, folder):
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    data = Numbered(batch_size=4, augmentation={"crop_padding": 2, "flip": 0.5, "randaugment": 1})
    loader = data.train_dataloader()
    loader.load_state_dict({"epoch": 0, "batches_done": 2})
    torch.save({"train": list(loader), "test": list(data.test_dataloader())}, f"{folder}/{rank}.pt")
    torch.distributed.barrier()  # who leaves at once cuts off the other one, which may still be connecting
    torch.distributed.destroy_process_group()


def test_two_processes_see_the_global_batches_of_one(tmp_path):
    torch.multiprocessing.start_processes(collect_in_process, (str(tmp_path),), nprocs=2, start_method="spawn")
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    data = Numbered(batch_size=8, augmentation={"crop_padding": 2, "flip": 0.5, "randaugment": 1})
    loader = data.train_dataloader()
    loader.load_state_dict({"epoch": 0, "batches_done": 2})
    alone = list(loader)
    assert len(alone) == len(first["train"]) == len(second["train"]) == 3
    for whole, *parts in zip(alone, first["train"], second["train"], strict=True):
        for ours, left, right in zip(whole, *parts, strict=True):
            assert torch.equal(torch.stack([left, right], dim=1).flatten(0, 1), ours)
    labels = [torch.cat([labels for _, labels in part["test"]]) for part in (first, second)]
    assert torch.stack(labels, dim=1).flatten().tolist() == [index % 2 for index in range(43)] + [-1]


def test_the_same_fraction_of_every_class_is_held_out():
    labels = torch.tensor([0] * 50 + [1] * 20 + [2] * 3 + [3])
    kept, held = hold_out(labels, 0.2, seed=0)
    assert sorted(kept.tolist() + held.tolist()) == list(range(74))
    assert torch.bincount(labels[held]).tolist() == [10, 4, 1]
    assert not torch.equal(held, hold_out(labels, 0.2, seed=1)[1])


def test_the_last_image_of_a_class_is_not_held_out():
    kept, _ = hold_out(torch.tensor([0, 1, 1]), 0.9, seed=0)
    assert len(kept) == 2
    with pytest.raises(ValueError, match="holds out nothing"):
        hold_out(torch.tensor([0, 1, 2]), 0.5, seed=0)


@pytest.mark.parametrize("fraction", [0, 1, -0.5, 2])
def test_an_impossible_fraction_is_an_error(fraction):
    with pytest.raises(ValueError, match="between 0 and 1"):
        hold_out(torch.arange(9) % 3, fraction, seed=0)
