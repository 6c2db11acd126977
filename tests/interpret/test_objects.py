"""Where a detector looked for each object that it found."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional

from tests.interpret.small_detectors import classes, detector_of, set_kinds
from visattn.interpret import object_attention, object_figure, record_attention


def picture(height=45, width=61, seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (height // 3, width // 3, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((width, height))


@pytest.fixture(scope="module", params=set_kinds)
def model(request):
    return detector_of(request.param)


def test_the_objects_are_those_that_are_detected(model):
    (found,) = model.detect(picture(), threshold=0.0)
    threshold = float(found.scores[3:5].mean())
    objects = object_attention(model, picture(), threshold)
    assert len(objects) == 4
    kept = found.above(threshold)
    assert [thing.label for thing in objects] == kept.labels.tolist()
    np.testing.assert_allclose([thing.score for thing in objects], kept.scores, rtol=0, atol=1e-5)
    torch.testing.assert_close(torch.stack([thing.box for thing in objects]), kept.boxes, rtol=0, atol=1e-3)
    assert len(object_attention(model, picture(), 0.0, max_objects=3)) == 3
    assert object_attention(model, picture(), 1.0) == []


def test_maps_cover_the_image_without_its_padding(model):
    for size in ((45, 61), (80, 33)):
        height, width = model.preprocess.resized(*size)
        for thing in object_attention(model, picture(*size), 0.0, max_objects=2):
            assert thing.attention.shape == (height, width)
            assert 0 <= thing.attention.min() < 0.5 < thing.attention.max() <= 1


def test_nothing_of_the_model_changes(model):
    before = {name: value.clone() for name, value in model.state_dict().items()}
    first = object_attention(model.train(), picture(), 0.0, max_objects=1)
    assert model.training
    second = object_attention(model.eval(), picture(), 0.0, max_objects=1)
    torch.testing.assert_close(first[0].attention, second[0].attention)
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)
    assert not any("record" in vars(module) for module in model.modules())


def test_detr_s_map_is_the_mean_of_the_heads_of_the_last_layer():
    model = detector_of("detr")
    images = torch.randn(1, 3, 64, 96)
    objects = object_attention(model, images, 0.0)
    with torch.inference_mode(), record_attention(model) as maps:
        output = model(images)
    share = maps["head.decoder.1.cross_attention"][0].mean(0)  # (queries, cells)
    np.testing.assert_allclose(share.sum(1), 1, atol=1e-5)
    scores, labels = output.logits[0].softmax(1)[:, :-1].max(1)
    for thing, query in zip(objects, scores.argsort(descending=True).tolist(), strict=True):
        assert thing.label == labels[query]
        expected = functional.interpolate(share[query].view(1, 1, 8, 12), (64, 96), mode="bilinear")[0, 0]
        expected = (expected - expected.min()) / (expected.max() - expected.min())
        torch.testing.assert_close(thing.attention, expected, rtol=0, atol=1e-4)


def test_recorded_weights_give_what_the_fused_model_gives(model):
    images = torch.randn(1, 3, 64, 96)
    with torch.inference_mode():
        expected = model(images)
        with record_attention(model.head) as maps:
            output = model(images)
    torch.testing.assert_close(output.logits, expected.logits, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(output.boxes, expected.boxes, rtol=1e-4, atol=1e-4)
    for name, weights in maps.items():
        assert weights.min() >= 0, name
        assert weights.sum(dim=3).max() <= 1 + 1e-5, name


def test_the_figure_has_a_panel_for_each_object(model):
    objects = object_attention(model, picture(), 0.0, max_objects=4)
    figures = [object_figure(picture(), objects[:number], classes, "$title_1") for number in (0, 1, 4)]
    assert figures[0].width < figures[1].width < figures[2].width
    plain = np.asarray(object_figure(picture(), objects[:1], classes, ""), dtype=float)
    assert plain.std() > 20


def test_dense_heads_have_nothing_to_explain():
    with pytest.raises(ValueError, match="FcosHead has no decoder that looks for objects"):
        object_attention(detector_of("dense"), picture())


def test_one_image_is_explained_at_a_time(model):
    with pytest.raises(ValueError, match="one image is explained at a time, not 2"):
        object_attention(model, torch.randn(2, 3, 64, 64))
