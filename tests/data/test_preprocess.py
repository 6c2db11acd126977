import matplotlib.cbook
import pytest
import torch
from PIL import Image
from timm.data import create_transform
from torchvision import transforms
from torchvision.transforms import InterpolationMode

from visattn.data import Preprocess
from visattn.data.preprocess import imagenet_mean, imagenet_std


@pytest.fixture(params=["portrait", "landscape", "smaller", "odd"])
def photo(request):
    with matplotlib.cbook.get_sample_data("grace_hopper.jpg") as file:
        portrait = Image.open(file).convert("RGB")  # 512 wide, 606 high
    return {
        "portrait": portrait,
        "landscape": portrait.rotate(90, expand=True),
        "smaller": portrait.resize((101, 67)),
        "odd": portrait.crop((0, 0, 331, 257)),
    }[request.param]


@pytest.mark.parametrize(("interpolation", "mode"), [
    ("bilinear", InterpolationMode.BILINEAR),
    ("bicubic", InterpolationMode.BICUBIC),
    ("lanczos", InterpolationMode.LANCZOS),
])  # fmt: skip
@pytest.mark.parametrize(("size", "resize"), [(224, 256), (97, 97), (64, 113)])
def test_output_equals_torchvision(photo, interpolation, mode, size, resize):
    theirs = transforms.Compose([
        transforms.Resize(resize, mode),
        transforms.CenterCrop(size),
        transforms.ToTensor(),
        transforms.Normalize(imagenet_mean, imagenet_std),
    ])  # fmt: skip
    ours = Preprocess(size, resize=resize, interpolation=interpolation)
    torch.testing.assert_close(ours(photo), theirs(photo), rtol=0, atol=1e-6)


@pytest.mark.parametrize(("crop_mode", "fit"), [("center", "cover"), ("squash", "stretch"), ("border", "contain")])
def test_output_equals_timm(photo, crop_mode, fit):
    mean, std = (0.48, 0.46, 0.41), (0.27, 0.26, 0.28)
    theirs = create_transform(
        (3, 224, 224), interpolation="bicubic", crop_pct=0.9, crop_mode=crop_mode, mean=mean, std=std
    )
    ours = Preprocess(224, resize=248, fit=fit, mean=mean, std=std)
    torch.testing.assert_close(ours(photo), theirs(photo), rtol=0, atol=1e-6)


@pytest.mark.parametrize("fit", ["cover", "contain", "stretch", "none"])
@pytest.mark.parametrize("size", [224, (96, 128), (301, 47)])
def test_every_fit_gives_the_size_that_was_asked_for(photo, fit, size):
    expected = (size, size) if isinstance(size, int) else size
    preprocess = Preprocess(size, fit=fit)
    assert preprocess.pixels(photo).shape == (3, *expected)
    assert preprocess.pixels(photo).dtype == torch.uint8
    assert preprocess(photo).dtype == torch.float32


def two_halves(width, height):
    """Red on the left, blue on the right, green in the middle of the longer side."""
    image = Image.new("RGB", (width, height), "red")
    image.paste("blue", (width // 2, 0, width, height))
    return image


def test_cover_cuts_the_longer_side_evenly():
    pixels = Preprocess(20, interpolation="nearest").pixels(two_halves(60, 20))
    assert pixels[:, 0, :10].flatten(1).unique(dim=1).flatten().tolist() == [255, 0, 0]
    assert pixels[:, 0, 10:].flatten(1).unique(dim=1).flatten().tolist() == [0, 0, 255]


def test_contain_shows_everything_on_the_mean_color():
    pixels = Preprocess(20, fit="contain", interpolation="nearest", mean=(0.2, 0.4, 0.6)).pixels(two_halves(40, 20))
    assert pixels[:, 0, 0].tolist() == pixels[:, 19, 19].tolist() == [51, 102, 153]
    assert pixels[:, 10, 0].tolist() == [255, 0, 0]
    assert pixels[:, 10, 19].tolist() == [0, 0, 255]
    assert (pixels != torch.tensor([51, 102, 153])[:, None, None]).any(0).any(1).sum() == 10


def test_stretch_gives_up_the_aspect_ratio():
    pixels = Preprocess(20, fit="stretch", interpolation="nearest").pixels(two_halves(60, 10))
    assert pixels[0, :, :10].unique().tolist() == [255]
    assert pixels[2, :, 10:].unique().tolist() == [255]


def test_none_cuts_or_pads_without_resizing(photo):
    pixels = Preprocess((31, 33), fit="none").pixels(photo)
    top, left = round((photo.height - 31) / 2), round((photo.width - 33) / 2)
    expected = photo.crop((left, top, left + 33, top + 31))
    assert torch.equal(pixels, transforms.functional.pil_to_tensor(expected))


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "1"])
def test_pictures_of_every_mode_are_welcome(photo, mode):
    output = Preprocess(32)(photo.convert(mode))
    assert output.shape == (3, 32, 32)
    assert output.isfinite().all()


def test_invert_gives_the_colors_back(photo):
    preprocess = Preprocess(48, mean=(0.1, 0.5, 0.9), std=(0.2, 0.3, 0.4))
    colors = preprocess.invert(torch.stack([preprocess(photo)] * 2))
    torch.testing.assert_close(colors[1], preprocess.pixels(photo) / 255)


def test_another_size_keeps_the_proportion_of_the_crop():
    preprocess = Preprocess(224, resize=256, interpolation="bilinear", mean=(0, 0, 0))
    larger = preprocess.at((448, 224))
    assert (larger.image_size, larger.resize) == ((448, 224), (512, 256))
    assert (larger.interpolation, larger.mean) == ("bilinear", (0, 0, 0))
    assert preprocess.image_size == (224, 224)


def test_arguments_rebuild_it_and_are_plain_data(photo):
    preprocess = Preprocess([50, 60], resize=70, fit="stretch", interpolation="box", mean=[0, 0.5, 1], std=[1, 2, 3])
    again = Preprocess(**preprocess.arguments)
    assert again.arguments == preprocess.arguments
    assert torch.equal(again(photo), preprocess(photo))
    assert eval(repr(preprocess)).arguments == preprocess.arguments


@pytest.mark.parametrize(("wrong", "message"), [
    ({"fit": "crop"}, "choose cover, contain, stretch or none"),
    ({"interpolation": "cubic"}, "choose one of nearest"),
    ({"image_size": 0}, "at least 1 pixel"),
    ({"resize": -3}, "at least 1 pixel"),
    ({"mean": (0.5, 0.5)}, "three numbers each"),
    ({"std": (1, 0, 1)}, "those of std above 0"),
])  # fmt: skip
def test_errors_say_what_is_allowed(wrong, message):
    with pytest.raises(ValueError, match=message):
        Preprocess(**{"image_size": 32} | wrong)
