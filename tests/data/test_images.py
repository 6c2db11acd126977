import io
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from visattn.data import ImageFileError, open_image
from visattn.data.images import check_image, to_rgb


@pytest.fixture
def photo():
    """A smooth picture, 40 wide and 30 high, that JPEG hardly changes."""
    rows, columns = np.mgrid[0:30, 0:40]
    return Image.fromarray(np.stack([6 * columns, 8 * rows, 255 - 6 * columns], axis=2).astype(np.uint8))


def pixels(image):
    return np.asarray(image).astype(int)


@pytest.mark.parametrize("suffix", ["png", "bmp", "tiff", "ppm", "webp", "gif", "jpg"])
def test_known_formats_come_in_as_rgb(tmp_path, photo, suffix):
    options = {"webp": {"lossless": True}, "jpg": {"quality": 95, "subsampling": 0}}.get(suffix, {})
    photo.save(tmp_path / f"photo.{suffix}", **options)
    image = open_image(tmp_path / f"photo.{suffix}")
    assert (image.mode, image.size) == ("RGB", (40, 30))
    assert abs(pixels(image) - pixels(photo)).mean() <= {"jpg": 2, "gif": 12}.get(suffix, 0)
    check_image(tmp_path / f"photo.{suffix}")


@pytest.mark.parametrize("mode", ["L", "1", "P", "CMYK", "YCbCr", "HSV", "RGBA", "LA", "RGB"])
def test_every_mode_keeps_its_look(photo, mode):
    expected = pixels(photo.convert("L").convert("RGB") if mode in ("L", "LA") else photo)
    image = to_rgb(photo.convert(mode))
    assert image.mode == "RGB"
    if mode != "1":
        assert abs(pixels(image) - expected).mean() < 25


@pytest.mark.parametrize(("suffix", "dtype"), [("png", np.uint16), ("tiff", np.uint16), ("pgm", np.uint16)])
def test_sixteen_bits_are_scaled_to_eight(tmp_path, suffix, dtype):
    numbers = np.linspace(0, 65535, 30 * 40).astype(dtype).reshape(30, 40)
    Image.fromarray(numbers).save(tmp_path / f"deep.{suffix}")
    image = open_image(tmp_path / f"deep.{suffix}")
    assert image.mode == "RGB"
    np.testing.assert_array_equal(pixels(image)[..., 1], np.round(numbers / 257).astype(int))


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_thirty_two_bits_are_stretched_from_black_to_white(tmp_path, dtype):
    numbers = np.linspace(-1000, 9000, 30 * 40).astype(dtype).reshape(30, 40)
    Image.fromarray(numbers).save(tmp_path / "deep.tiff")
    levels = pixels(open_image(tmp_path / "deep.tiff"))[..., 0]
    np.testing.assert_allclose(levels, np.linspace(0, 255, 30 * 40).reshape(30, 40), atol=0.6)
    assert (pixels(to_rgb(Image.new("F", (3, 3), 7.0))) == 0).all()


def test_transparent_parts_are_white(tmp_path, photo):
    see_through = photo.convert("RGBA")
    see_through.putalpha(Image.fromarray(np.repeat([[0, 255] * 20], 30, axis=0).astype(np.uint8)))
    see_through.save(tmp_path / "image.png")
    image = pixels(open_image(tmp_path / "image.png"))
    assert (image[:, ::2] == 255).all()
    assert (image[:, 1::2] == pixels(photo)[:, 1::2]).all()

    palette = Image.new("P", (4, 4), 1)
    palette.putpalette([10, 20, 30, 200, 100, 50])
    palette.putpixel((0, 0), 0)
    palette.save(tmp_path / "palette.png", transparency=0)
    image = pixels(open_image(tmp_path / "palette.png"))
    assert image[0, 0].tolist() == [255, 255, 255]
    assert image[1, 1].tolist() == [200, 100, 50]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_stand_upright_by_their_exif_orientation(tmp_path, photo, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    photo.save(tmp_path / "turned.png", exif=exif)
    turns = {
        2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_90,
    }  # fmt: skip
    expected = photo.transpose(turns[orientation]) if orientation in turns else photo
    np.testing.assert_array_equal(pixels(open_image(tmp_path / "turned.png")), pixels(expected))


def damaged(photo, kind):
    stream = io.BytesIO()
    if kind == "zero bytes":
        return b""
    if kind == "text":
        return b"no picture at all"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 90, 3), dtype=np.uint8)).save(stream, kind)
    return stream.getvalue()[: len(stream.getvalue()) // 2]


@pytest.mark.parametrize("read", [open_image, check_image])
@pytest.mark.parametrize("kind", ["zero bytes", "text", "JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM"])
def test_what_is_no_whole_picture_is_an_error_with_its_path(tmp_path, photo, kind, read):
    path = tmp_path / "broken.jpg"
    path.write_bytes(damaged(photo, kind))
    with pytest.raises(ImageFileError, match=r"broken\.jpg: (is no picture in a known format|truncated or damaged)"):
        read(path)


@pytest.mark.parametrize("read", [open_image, check_image])
def test_too_many_pixels_are_refused_before_they_are_decoded(tmp_path, read):
    Image.new("1", (2000, 1500)).save(tmp_path / "bomb.png")
    with pytest.raises(ImageFileError, match=r"bomb\.png: 2000x1500 pixels are more than 1,000,000"):
        read(tmp_path / "bomb.png", max_pixels=1_000_000)
    Image.new("1", (20_000, 15_000)).save(tmp_path / "bomb.png")
    with pytest.raises(ImageFileError, match=r"bomb\.png: "):
        read(tmp_path / "bomb.png")


@pytest.mark.parametrize("read", [open_image, check_image])
def test_a_missing_file_is_an_error_with_its_path(tmp_path, read):
    with pytest.raises(FileNotFoundError, match=r"nothing\.png: there is no such file"):
        read(tmp_path / "nothing.png")
    with pytest.raises(FileNotFoundError, match="there is no such file"):
        read(tmp_path)


def test_formats_that_run_other_programs_are_no_pictures(tmp_path):
    (tmp_path / "script.png").write_bytes(
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n"
    )
    with pytest.raises(ImageFileError, match="known format"):
        open_image(tmp_path / "script.png")


def test_reading_in_threads_leaves_the_filters_of_warnings_as_they_were(tmp_path, photo):
    photo.save(tmp_path / "photo.jpg")
    before = list(warnings.filters)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(open_image, [tmp_path / "photo.jpg"] * 200))
    assert warnings.filters == before
