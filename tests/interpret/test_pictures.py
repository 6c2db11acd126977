import numpy as np
import pytest
import torch
from PIL import Image

from visattn.data import Preprocess
from visattn.interpret import attention_figure, draw_attention, prediction_grid, view_of, word_figure
from visattn.interpret.pictures import printable


def saturation(picture):
    pixels = np.asarray(picture, dtype=float)
    return pixels.max(axis=2) - pixels.min(axis=2)


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "CMYK", "RGBA"])
def test_the_overlay_is_bright_where_the_map_is_and_has_the_size_of_the_picture(mode):
    picture = Image.new("RGB", (61, 43), (90, 90, 90)).convert(mode)
    attention = torch.zeros(4, 6)
    attention[1, 4] = 1
    overlay = draw_attention(picture, attention)
    assert overlay.size == (61, 43)
    grey = np.asarray(overlay.convert("L"), dtype=float)
    row, column = divmod(int(grey.argmax()), 61)
    assert abs(row - 1.5 * 43 / 4) <= 6
    assert abs(column - 4.5 * 61 / 6) <= 6
    assert grey[40, 5] < 90  # dimmed elsewhere


def test_colours_of_the_picture_are_not_taken_for_those_of_the_map():
    red = Image.new("RGB", (20, 20), (255, 0, 0))
    assert saturation(draw_attention(red, torch.zeros(2, 2))).mean() < 0.4 * saturation(red).mean()


@pytest.mark.parametrize("size", [(32, 32), (640, 360), (90, 400)])
def test_a_figure_shows_the_picture_beside_the_overlay(size):
    picture = Image.new("RGB", size, (20, 160, 60))
    figure = attention_figure(picture, torch.rand(7, 7), "A title", "a caption", mark=(0.2, 0.2, 0.4, 0.4))
    assert figure.mode == "RGB"
    assert figure.width > figure.height * 0.5
    pixels = np.asarray(figure).reshape(-1, 3)
    original = (np.abs(pixels - np.array([20, 160, 60])).max(axis=1) < 3).mean()
    assert 0.15 < original < 0.5  # the picture itself, unchanged, is about the left half


def test_a_grid_shows_every_prediction(tmp_path):
    images, attention = torch.rand(7, 3, 16, 16), torch.rand(7, 16, 16)
    probabilities = torch.rand(7, 4).softmax(dim=1)
    grid = prediction_grid(images, attention, probabilities, [0] * 7, ["ant", "bee", "cat", "dog"], columns=3)
    assert grid.width > grid.height
    nameless = prediction_grid(images[:2], attention[:2], probabilities[:2], [0, 1])
    assert nameless.height < grid.height


@pytest.mark.parametrize("size", [(300, 500), (500, 300), (20, 30)])
@pytest.mark.parametrize(
    "preprocess", [Preprocess(32, resize=36), Preprocess(32, fit="stretch")], ids=["cover", "stretch"]
)
def test_the_view_is_what_the_network_sees_in_more_detail(size, preprocess):
    generator = np.random.default_rng(0)
    picture = Image.fromarray(generator.integers(0, 255, (6, 9, 3), dtype=np.uint8)).resize(size, Image.Resampling.BOX)
    view = view_of(preprocess, picture)
    assert max(view.size) <= 480
    assert (view.width > 32) == (min(size) > 36)
    reduced = torch.tensor(np.asarray(view.resize((32, 32), Image.Resampling.BICUBIC)), dtype=torch.float)
    seen = preprocess.pixels(picture).permute(1, 2, 0).float()
    assert (reduced - seen).abs().mean() < 8


def test_each_word_has_its_own_map_below_it():
    picture = Image.new("RGB", (48, 48), (90, 90, 90))
    places = [(0, 0), (0, 3), (3, 3), (3, 0)]
    attention = torch.zeros(4, 4, 4)
    for values, place in zip(attention, places, strict=True):
        values[place] = 1
    figure = word_figure(picture, ["a", "dog", "costs", "$5$"], attention, "a dog costs $5$", columns=5)
    panels = np.array_split(np.asarray(figure.convert("HSV"), dtype=float)[..., 1], 5, axis=1)  # saturation
    assert panels[0].max() < 30  # the picture itself, grey as it is
    for panel, (row, column) in zip(panels[1:], places, strict=True):
        rows, columns = np.nonzero(panel > 0.9 * panel.max())
        height = panel.shape[0] - 60  # of picture, about
        assert (rows.mean() - 60 > height / 2) == (row == 3)
        assert (columns.mean() > panel.shape[1] / 2) == (column == 3)


def test_a_long_caption_has_several_rows_and_a_long_word_fits():
    picture, words = Image.new("RGB", (90, 30), (20, 160, 60)), ["counterrevolutionaries"] * 13
    figure = word_figure(picture, words, torch.rand(13, 5, 5), " ".join(words))
    assert 1.2 < figure.width / figure.height < 4
    pixels = np.asarray(figure)
    assert (pixels[:, :20] == 255).all()  # nothing is cut off at the sides
    assert (pixels[:, -20:] == 255).all()


def test_words_of_any_script_are_drawn_without_a_warning():
    words = ["caf\u00e9", "\u72ac", "\x0e", "\U0001f436"]  # of which the font has the first
    figure = word_figure(Image.new("RGB", (30, 30)), words, torch.rand(4, 5, 5), " ".join(words))
    assert figure.width > 500
    assert [printable(word) for word in words] == ["caf\u00e9", "\ufffd", "\ufffd", "\ufffd"]


def test_words_without_their_maps_are_refused():
    with pytest.raises(ValueError, match="2 words with 1 maps"):
        word_figure(Image.new("RGB", (9, 9)), ["a", "dog"], torch.rand(1, 3, 3), "a dog")
