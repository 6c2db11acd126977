import pytest
import torch

from visattn.data.image_batch import pad_images


def test_images_lie_in_the_upper_left_corner_and_the_rest_is_padding():
    images = [torch.full((3, 5, 7), 2.0), torch.full((3, 11, 2), -3.0)]
    batch = pad_images(images, divisor=4)
    assert batch.images.shape == (2, 3, 12, 8)
    assert batch.padding.shape == (2, 12, 8)
    assert batch.padding.dtype == torch.bool
    assert batch.sizes.tolist() == [[5, 7], [11, 2]]
    assert batch.sizes.dtype == torch.long
    for place, image in enumerate(images):
        height, width = image.shape[1:]
        assert torch.equal(batch.images[place, :, :height, :width], image)
        assert not batch.padding[place, :height, :width].any()
        assert batch.padding[place].sum() == 12 * 8 - height * width
        assert (batch.images[place, :, batch.padding[place]] == 0).all()


def test_images_that_fit_have_no_padding():
    batch = pad_images([torch.rand(3, 6, 9), torch.rand(3, 6, 9)], divisor=3)
    assert batch.images.shape == (2, 3, 6, 9)
    assert not batch.padding.any()


def test_a_full_size_is_the_least_size():
    assert pad_images([torch.rand(3, 5, 7)], divisor=2, full=(10, 6)).images.shape == (1, 3, 10, 8)


def test_no_images_and_no_divisor_are_errors():
    with pytest.raises(ValueError, match="no images"):
        pad_images([])
    with pytest.raises(ValueError, match="divisor 0"):
        pad_images([torch.rand(3, 5, 7)], divisor=0)
