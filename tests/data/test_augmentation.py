import numpy as np
import pytest
import torch

from visattn.data import Augmentation

options = {
    "crop": {"crop_padding": 3},
    "flip": {"flip": 0.5},
    "erasing": {"erasing": 0.6},
    "randaugment": {"randaugment": 2, "magnitude": 12},
    "all": {"crop_padding": 4, "flip": 0.5, "erasing": 0.3, "randaugment": 1},
}


def pictures(number=60, height=17, width=23):
    return torch.randint(0, 256, (number, 3, height, width), dtype=torch.uint8, generator=torch.manual_seed(0))


@pytest.fixture(params=options)
def augmentation(request):
    return Augmentation(10, seed=4, **options[request.param])


def test_an_image_is_augmented_the_same_in_any_company(augmentation):
    images = pictures()
    together = augmentation.pixels(images, 2, range(100, 160))
    order = torch.randperm(60)
    assert torch.equal(augmentation.pixels(images[order], 2, (order + 100).tolist()), together[order])
    assert torch.equal(augmentation.pixels(images[7:8], 2, [107]), together[7:8])


def test_epochs_seeds_and_images_differ(augmentation):
    images = pictures(1).expand(60, -1, -1, -1)
    first = augmentation.pixels(images, 2, range(60))
    assert not torch.equal(first, augmentation.pixels(images, 3, range(60)))
    assert len({image.numpy().tobytes() for image in first}) > 1
    augmentation.seed = 5
    assert not torch.equal(first, augmentation.pixels(images, 2, range(60)))


def test_given_images_stay_as_they_are(augmentation):
    images = pictures()
    before = images.clone()
    output = augmentation.pixels(images, 0, range(60))
    assert torch.equal(images, before)
    output.zero_()
    assert torch.equal(images, before)
    assert output.dtype == torch.uint8
    assert output.shape == images.shape


def test_global_random_numbers_are_neither_used_nor_moved(augmentation):
    augmentation = Augmentation(10, mixup=1.0, **options["all"])
    images = pictures()
    state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    first = augmentation.pixels(images, 0, range(60))
    mixed = augmentation.mix(first.float(), torch.arange(60) % 10, 0, 5)[0]
    assert torch.equal(torch.get_rng_state(), state)
    assert (np.random.get_state()[1] == numpy_state).all()  # noqa: NPY002
    torch.manual_seed(99)
    assert torch.equal(augmentation.pixels(images, 0, range(60)), first)
    assert torch.equal(augmentation.mix(first.float(), torch.arange(60) % 10, 0, 5)[0], mixed)


def test_nothing_asked_is_nothing_done():
    images, labels = pictures(), torch.arange(60) % 10
    augmentation = Augmentation(10)
    assert torch.equal(augmentation.pixels(images, 0, range(60)), images)
    assert augmentation.mix(images, labels, 0, 0) == (images, labels)


def test_every_crop_is_a_window_of_the_reflected_image_and_all_of_them_occur():
    images = pictures(1).expand(600, -1, -1, -1)
    cropped = Augmentation(10, crop_padding=2).pixels(images, 0, range(600)).numpy()
    padded = np.pad(images[0].numpy(), ((0, 0), (2, 2), (2, 2)), mode="reflect")
    windows = {padded[:, y : y + 17, x : x + 23].tobytes(): 0 for y in range(5) for x in range(5)}
    for image in cropped:
        windows[image.tobytes()] += 1  # a KeyError if it is none
    assert len(windows) == 25
    assert min(windows.values()) > 8  # 24 expected
    assert max(windows.values()) < 48


def test_half_of_the_images_are_mirrored():
    images = pictures(1).expand(600, -1, -1, -1)
    flipped = Augmentation(10, flip=0.5).pixels(images, 0, range(600))
    mirrored = (flipped == images.flip(3)).flatten(1).all(1)
    assert ((flipped == images).flatten(1).all(1) ^ mirrored).all()
    assert 250 < mirrored.sum() < 350
    assert torch.equal(Augmentation(10, flip=1.0).pixels(images, 0, range(600)), images.flip(3))


def test_alternating_flips_show_both_sides_in_two_epochs():
    images = pictures(1).expand(600, -1, -1, -1)
    augmentation = Augmentation(10, flip="alternating")
    first, second, third = (augmentation.pixels(images, epoch, range(600)) for epoch in range(3))
    mirrored = (first == images.flip(3)).flatten(1).all(1)
    assert 250 < mirrored.sum() < 350
    assert torch.equal(second, first.flip(3))
    assert torch.equal(third, first)


def test_erasing_greys_one_rectangle_of_the_published_size():
    images = torch.zeros(600, 3, 32, 32, dtype=torch.uint8)
    erased = (Augmentation(10, erasing=0.6).pixels(images, 0, range(600)) == 127).numpy()
    touched = erased.any(axis=(1, 2, 3))
    assert 300 < touched.sum() < 420
    starts = set()
    for mask in erased[touched]:
        assert (mask == mask[0]).all()  # in all colours
        rows, columns = np.flatnonzero(mask[0].any(1)), np.flatnonzero(mask[0].any(0))
        tall, wide = rows[-1] - rows[0] + 1, columns[-1] - columns[0] + 1
        assert mask[0].sum() == tall * wide
        assert 0.01 < tall * wide / 32**2 < 0.36
        assert 1 / 4 < tall / wide < 4
        starts.add((rows[0], columns[0]))
    assert len(starts) > 100


def test_mixup_is_a_mean_of_two_images_and_their_labels():
    images, labels = torch.rand(6, 3, 5, 7), torch.tensor([0, 1, 2, 3, 0, 1])
    mixed, soft = Augmentation(4, mixup=1.0).mix(images, labels, epoch=3, first_index=11)
    share = soft[0, 0].item()
    assert 0 < share < 1
    torch.testing.assert_close(soft, share * one_hot(labels) + (1 - share) * one_hot(labels.roll(1)))
    torch.testing.assert_close(mixed, share * images + (1 - share) * images.roll(1, 0))


def test_cutmix_pastes_a_rectangle_of_another_image_and_labels_by_its_area():
    images, labels = torch.rand(6, 3, 16, 16), torch.tensor([0, 1, 2, 3, 0, 1])
    for first_index in range(20):
        mixed, soft = Augmentation(4, cutmix=1.0).mix(images, labels, epoch=3, first_index=first_index)
        pasted = (mixed == images.roll(1, 0)).all(dim=(0, 1))
        assert ((mixed == images).all(dim=(0, 1)) | pasted).all()
        share = 1 - pasted.float().mean()
        torch.testing.assert_close(soft, share * one_hot(labels) + (1 - share) * one_hot(labels.roll(1)))


def one_hot(labels):
    return torch.nn.functional.one_hot(labels, 4).float()


def test_batches_are_mixed_as_often_as_asked_by_either_way():
    images, labels = torch.rand(4, 3, 16, 16), torch.tensor([0, 1, 2, 3])
    augmentation, mixed = (
        Augmentation(4, mixup=1.0, cutmix=1.0, mix_probability=0.6),
        {"not": 0, "mixup": 0, "cutmix": 0},
    )
    for first_index in range(400):
        output, soft = augmentation.mix(images, labels, 0, first_index)
        pasted = (output == images) | (output == images.roll(1, 0))
        mixed["not" if soft.ndim == 1 else "cutmix" if pasted.all() else "mixup"] += 1
    assert 120 < mixed["not"] < 200
    assert 80 < mixed["mixup"] < 160
    assert 80 < mixed["cutmix"] < 160


def test_a_batch_with_ignored_images_is_not_mixed():
    images, labels = torch.rand(4, 3, 16, 16), torch.tensor([0, 1, 2, -1])
    mixed, kept = Augmentation(4, mixup=1.0).mix(images, labels, 0, 0)
    assert torch.equal(mixed, images)
    assert torch.equal(kept, labels)


@pytest.mark.parametrize(
    "wrong",
    [
        {"flip": 1.5},
        {"flip": "sometimes"},
        {"erasing": -0.1},
        {"mix_probability": 2.0},
        {"magnitude": 31},
        {"mixup": -1.0},
    ],
)
def test_numbers_out_of_range_are_an_error(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Augmentation(10, **wrong)


def test_a_shift_beyond_the_image_is_an_error():
    with pytest.raises(ValueError, match="crop_padding 17 must be below the side of the 17x23 images"):
        Augmentation(10, crop_padding=17).pixels(pictures(), 0, range(60))
