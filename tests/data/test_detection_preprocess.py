import numpy as np
import pytest
import torch
from PIL import Image
from transformers import DetrImageProcessor, RTDetrImageProcessor
from transformers.models.detr.image_processing_pil_detr import DetrImageProcessorPil

from visattn.data.detection_preprocess import DetectionPreprocess
from visattn.data.preprocess import Preprocess

sizes = [(61, 89), (89, 61), (40, 131), (131, 40), (53, 53), (64, 64), (17, 401), (30, 31), (96, 128)]


def picture(height, width):
    colors = np.random.default_rng(height * 1000 + width).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(colors)


@pytest.mark.parametrize("size", sizes)
@pytest.mark.parametrize(("processor", "resampler"), [(DetrImageProcessor, "torch"), (DetrImageProcessorPil, "pillow")])
def test_pictures_are_prepared_as_for_detr(size, processor, resampler):
    theirs = processor(size={"shortest_edge": 64, "longest_edge": 107}, do_pad=False)
    expected = theirs(picture(*size), return_tensors="pt")["pixel_values"][0]
    ours = DetectionPreprocess(64, 107, resampler=resampler)(picture(*size))
    assert ours.shape == expected.shape
    assert (ours - expected).abs().max() < 1e-4


@pytest.mark.parametrize("size", sizes)
def test_pictures_are_prepared_as_for_rt_detr(size):
    theirs = RTDetrImageProcessor(size={"height": 64, "width": 96})
    expected = theirs(picture(*size), return_tensors="pt")["pixel_values"][0]
    ours = DetectionPreprocess(64, 96, fit="stretch", mean=(0, 0, 0), std=(1, 1, 1))(picture(*size))
    assert ours.shape == expected.shape == (3, 64, 96)
    assert (ours - expected).abs().max() < 1e-4


@pytest.mark.parametrize("size", sizes)
def test_the_two_resamplers_differ_by_a_shade_at_most(size):
    torchs, pillows = (
        DetectionPreprocess(64, 107, resampler=resampler).pixels(picture(*size)) for resampler in ("torch", "pillow")
    )
    assert (torchs.int() - pillows.int()).abs().max() <= 1


@pytest.mark.parametrize(("height", "width"), [(1, 5000), (5000, 1), (1, 1), (3, 641), (4000, 3000), (479, 481)])
def test_the_longest_side_has_its_limit_and_no_side_vanishes(height, width):
    sides = DetectionPreprocess(480, 640).resized(height, width)
    assert min(sides) >= 1
    assert max(sides) <= 641  # what is a pixel too long for being rounded stays as it is, as in transformers


def test_the_aspect_ratio_is_kept():
    assert DetectionPreprocess(480, 640).resized(960, 1280) == (480, 640)
    assert DetectionPreprocess(480, 640).resized(100, 400) == (160, 640)
    assert DetectionPreprocess(480, 1333).resized(1000, 500) == (960, 480)


def test_pictures_of_every_mode_are_read():
    for mode in ("L", "P", "RGBA", "1", "CMYK"):
        assert DetectionPreprocess(32, 48)(picture(40, 50).convert(mode)).shape == (3, 32, 40)


def test_invert_gives_the_colours_back():
    preprocess = DetectionPreprocess(61, 89)
    pixels = preprocess.pixels(picture(61, 89))
    assert torch.allclose(preprocess.invert(preprocess.normalize(pixels)), pixels / 255, atol=1e-6)


def test_arguments_make_the_same_preprocess_and_the_colours_may_be_anothers():
    preprocess = DetectionPreprocess(64, 96, fit="stretch", mean=(0, 0, 0), std=(1, 1, 1), interpolation="bicubic")
    assert DetectionPreprocess(**preprocess.arguments).arguments == preprocess.arguments
    other = Preprocess(32, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))
    changed = preprocess.with_colors_of(other)
    assert (changed.mean, changed.std, changed.shortest, changed.fit) == (other.mean, other.std, 64, "stretch")
    assert preprocess.with_colors_of(None) is preprocess


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"fit": "cover"}, "fit 'cover' is unknown"),
        ({"shortest": 0}, "at least 1 pixel"),
        ({"shortest": 100, "longest": 90}, "longest 90 must not be below shortest 100"),
        ({"interpolation": "lanczos"}, "interpolation 'lanczos' is unknown"),
        ({"resampler": "opencv"}, "resampler 'opencv' is unknown"),
        ({"std": (1, 0, 1)}, "above 0"),
    ],
)
def test_wrong_arguments_are_errors(arguments, message):
    with pytest.raises(ValueError, match=message):
        DetectionPreprocess(**arguments)
