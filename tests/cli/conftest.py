"""Small models in folders, real pictures, and a way to run the command on them."""

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from visattn.backbones import SwinTransformer, VisionTransformer
from visattn.checkpoints import save_pretrained
from visattn.cli import app
from visattn.data import Preprocess
from visattn.heads import ImageClassifier

backbones = {
    "local": lambda: VisionTransformer(
        32, 4, 24, 2, 2, attention=("local", "global"), kernel_size=3, class_token=False, pooling="average"
    ),
    "vit": lambda: VisionTransformer(32, 8, 24, 2, 2),
    "swin": lambda: SwinTransformer(32, 2, 12, (1, 1), (2, 4), window_size=4),
}


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory):
    """Name of a kind to a model folder."""
    root = tmp_path_factory.mktemp("checkpoints")
    for kind, backbone in backbones.items():
        torch.manual_seed(0)
        model = ImageClassifier(backbone(), 6)
        for parameter in model.parameters():
            parameter.data.add_(torch.randn_like(parameter) * 0.1)
        model.classes = ("ant", "bee", "cat", "dog", "eel", "fox")
        model.preprocess = Preprocess(32, resize=36)
        save_pretrained(model, root / kind)
    return {kind: str(root / kind) for kind in backbones}


def drawn(height=40, width=50):
    """A picture whose upper left is red and whose lower right is blue, so that turning it is seen."""
    rows, columns = np.mgrid[0:height, 0:width]
    pixels = np.stack([255 - 4 * rows, 60 + 3 * columns, 3 * (rows + columns)], axis=2).clip(0, 255)
    return Image.fromarray(pixels.astype(np.uint8))


@pytest.fixture
def pictures(tmp_path):
    """Readable pictures: grey, CMYK, palette, transparent, of 16 bits, turned by EXIF, and plain ones."""
    folder = tmp_path / "pictures"
    (folder / "below").mkdir(parents=True)
    picture = drawn()
    picture.save(folder / "plain.png")
    picture.convert("L").save(folder / "grey.png")
    picture.convert("CMYK").save(folder / "cmyk.jpg")
    picture.convert("P").save(folder / "palette.gif")
    picture.convert("RGBA").save(folder / "transparent.webp")
    Image.fromarray(np.asarray(picture.convert("L")).astype(np.uint16) * 257).save(folder / "deep.png")
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    picture.transpose(Image.Transpose.ROTATE_90).save(folder / "below" / "turned.png", exif=exif)
    picture.save(folder / "below" / "UPPER.BMP")
    (folder / "notes.txt").write_text("no picture")
    return folder


@pytest.fixture
def run():
    """Runs `visattn` with these arguments: (exit code, stdout, stderr)."""

    def invoke(*arguments):
        result = CliRunner().invoke(app, [str(argument) for argument in arguments])
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result.exit_code, result.stdout, " ".join(result.stderr.split())

    return invoke
