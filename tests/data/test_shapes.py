import torch

from visattn.data import ShapesDataModule
from visattn.data.scenes import draw_scenes


def prepared(**options):
    data = ShapesDataModule(
        **{"train_scenes": 80, "validation_scenes": 24, "test_scenes": 40, "batch_size": 16} | options
    )
    data.setup()
    return data


def test_no_scene_lies_in_two_splits():
    data = prepared()
    seen = [image.numpy().tobytes() for images, _ in data.splits.values() for image in images]
    assert len(set(seen)) == len(seen) == 144


def test_the_test_scenes_stay_when_more_are_trained_on():
    small, large = prepared(), prepared(train_scenes=100, validation_scenes=30)
    assert torch.equal(small.splits["test"][0], large.splits["test"][0])


def test_batches_are_ready_for_a_network():
    data = prepared(image_size=40, augmentation={"crop_padding": 2})
    images, labels = next(iter(data.train_dataloader()))
    assert images.shape == (16, 3, 40, 40)
    assert images.dtype == torch.float32
    assert labels.shape == (16,)
    assert data.num_classes == len(data.classes) == 8
    images, labels = next(iter(data.test_dataloader()))
    pixels, expected = draw_scenes(0, range(16), 40)
    torch.testing.assert_close(data.preprocess.invert(images), torch.from_numpy(pixels) / 255, rtol=0, atol=1e-6)
    assert labels.tolist() == expected.tolist()


def test_another_seed_gives_other_scenes():
    assert not torch.equal(prepared().splits["train"][0], prepared(seed=1).splits["train"][0])


def test_examples_are_spread_over_a_split():
    data = prepared()
    images, labels = data.examples(5)
    assert images.shape == (5, 3, 32, 32)
    assert labels.tolist() == data.splits["test"][1][[0, 9, 19, 29, 39]].tolist()
    assert len(data.examples(100)[0]) == 40
