"""Scores are those of pycocotools, whoever counts; what has no meaning is refused by its name."""

import contextlib
import copy
import io
import json

import numpy as np
import pytest
import torch
from pycocotools import mask as run_lengths

from tests.evaluation.detection_sets import category_ids, made_up, official
from visattn.evaluation.detection import (
    coco_results,
    evaluate_detection_files,
    evaluate_detections,
    score_names,
)
from visattn.evaluation.detection_files import DetectionFileError
from visattn.heads import Detections


def crowded(seed):
    """More than 100 detections of one class in an image, and one score for all of them."""
    truth, results = made_up(seed, images=4, most=40, scores=1)
    entry = next(entry for entry in results if entry["category_id"] == category_ids[0])
    return truth, results + [dict(entry, bbox=[float(n), 2.0, 40.0, 30.0]) for n in range(150)]


def only_crowds(seed):
    return made_up(seed, crowds=1.0)


def borders(seed):
    """Areas on the borders between small, medium and large, and boxes of no area."""
    truth, results = made_up(seed, images=6)
    for entry, area in zip(truth["annotations"], (1024, 9216, 0, 1e10, 1e10 + 1), strict=False):
        entry["area"] = area
    for entry, box in zip(results, ([5, 5, 32, 32], [5, 5, 96, 96], [5, 5, 0, 9], [5, 5, 0, 0]), strict=False):
        entry["bbox"] = list(map(float, box))
    return truth, results


def perfect(seed):
    truth, _ = made_up(seed, crowds=0)
    keys = ("image_id", "category_id", "bbox")
    boxes = [{key: entry[key] for key in keys} | {"score": 0.5} for entry in truth["annotations"]]
    sizes = {image["id"]: (image["height"], image["width"]) for image in truth["images"]}
    for entry, box in zip(truth["annotations"], boxes, strict=True):
        box["segmentation"] = run_lengths.frPyObjects(entry["segmentation"], *sizes[entry["image_id"]])[0]
    return truth, boxes


nasty = [made_up, crowded, only_crowds, borders, perfect]


@pytest.mark.parametrize("backend", ["pycocotools", "faster"])
@pytest.mark.parametrize("kind", ["bbox", "segm"])
@pytest.mark.parametrize("make", nasty, ids=lambda make: make.__name__)
@pytest.mark.parametrize("seed", [0, 1])
def test_all_numbers_are_those_of_pycocotools(make, seed, kind, backend):
    if backend == "faster":
        pytest.importorskip("hotcoco")
    truth, results = make(seed)
    expected, precision = official(truth, results, kind)
    scores = getattr(evaluate_detections(truth, results, (kind,), backend), kind)
    assert list(scores.numbers) == list(score_names)
    np.testing.assert_allclose(list(scores.numbers.values()), expected, rtol=0, atol=1e-9)
    np.testing.assert_allclose(scores.precision, precision, rtol=0, atol=1e-9)
    assert [one.category_id for one in scores.per_class] == list(category_ids)
    for place, one in enumerate(scores.per_class):
        curves = precision[:, :, place]
        assert pytest.approx(curves[curves > -1].mean() if (curves > -1).any() else -1, abs=1e-9) == one.AP
        assert pytest.approx(curves[0].mean(), abs=1e-9) == one.AP50
    assert scores.per_class[-1][2:] == (0, -1, -1)  # the class that never occurs


def test_the_made_up_sets_tell_scores_apart():
    truth, results = made_up(0)
    numbers = evaluate_detections(truth, results).bbox.numbers
    assert len({round(number, 6) for number in numbers.values()}) >= 10
    assert all(0 < number < 1 for number in numbers.values())


@pytest.mark.parametrize("backend", ["pycocotools", "faster"])
def test_no_results_find_nothing(backend):
    if backend == "faster":
        pytest.importorskip("hotcoco")
    truth, results = made_up(3)
    for scores in evaluate_detections(truth, [], ("bbox", "segm"), backend):
        assert set(scores.numbers.values()) == {0.0}
    empty = truth | {"annotations": []}
    for found in ([], results):
        assert set(evaluate_detections(empty, found, ("bbox",), backend).bbox.numbers.values()) == {-1.0}


@pytest.mark.parametrize("backend", ["pycocotools", "faster"])
def test_an_object_with_the_id_0_counts_like_any_other(backend):
    if backend == "faster":
        pytest.importorskip("hotcoco")
    truth, results = perfect(1)
    expected = evaluate_detections(truth, results, ("bbox",), backend).bbox.numbers
    truth["annotations"][0]["id"] = 0
    assert evaluate_detections(truth, results, ("bbox",), backend).bbox.numbers == expected
    assert expected["AP"] == pytest.approx(1)


def test_chosen_images_are_judged_alone():
    truth, results = made_up(4)
    chosen = [image["id"] for image in truth["images"]][3:11]
    part = {
        "images": [image for image in truth["images"] if image["id"] in chosen],
        "annotations": [entry for entry in truth["annotations"] if entry["image_id"] in chosen],
        "categories": truth["categories"],
    }
    expected, _ = official(part, [entry for entry in results if entry["image_id"] in chosen], "bbox")
    scores = evaluate_detections(truth, results, image_ids=chosen)
    np.testing.assert_allclose(list(scores.bbox.numbers.values()), expected, rtol=0, atol=1e-12)
    assert scores.segm is None
    with pytest.raises(ValueError, match="image_ids: 4711 is the id of no image"):
        evaluate_detections(truth, results, image_ids=[4711])


def test_what_is_missing_in_annotations_follows_from_the_rest():
    truth, results = made_up(5, crowds=0)
    for entry in truth["annotations"]:
        entry["area"] = entry["bbox"][2] * entry["bbox"][3]
    bare = copy.deepcopy(truth)
    for entry in bare["annotations"]:
        del entry["area"], entry["iscrowd"], entry["segmentation"]
    assert evaluate_detections(bare, results).bbox.numbers == evaluate_detections(truth, results).bbox.numbers
    for entry in bare["annotations"]:
        entry["segmentation"] = [[1, 1, 1, 31, 31, 31, 31, 1]]
    small = evaluate_detections(bare, results).bbox.numbers
    assert small["AP_medium"] == small["AP_large"] == -1


def test_masks_give_the_boxes_that_results_lack():
    truth, results = perfect(6)
    without = [{key: value for key, value in entry.items() if key != "bbox"} for entry in results]
    expected, _ = official(truth, without, "bbox")
    scores = evaluate_detections(truth, without)
    np.testing.assert_allclose(list(scores.bbox.numbers.values()), expected, rtol=0, atol=1e-12)
    assert pytest.approx(1, abs=0.01) == scores.bbox.AP50


def test_nothing_is_printed_and_nothing_that_is_given_changes():
    truth, results = made_up(7)
    before = copy.deepcopy((truth, results))
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        evaluate_detections(truth, results, ("bbox", "segm"))
    assert printed.getvalue() == ""
    assert (truth, results) == before


def test_detections_become_results_and_come_back():
    generator = torch.Generator().manual_seed(0)
    corners = torch.rand(5, 4, generator=generator) * 40
    boxes = torch.cat([corners[:, :2], corners[:, :2] + corners[:, 2:]], 1)
    masks = torch.rand(5, 17, 23, generator=generator) > 0.6
    found = Detections(boxes, torch.tensor([0.9, 0.8, 0.8, 0.3, 0.0]), torch.tensor([2, 0, 1, 2, 0]), masks)
    entries = json.loads(json.dumps(coco_results(found, 12, (3, 7, 90))))
    assert [entry["category_id"] for entry in entries] == [90, 3, 7, 90, 3]
    assert {entry["image_id"] for entry in entries} == {12}
    for entry, box, score, mask in zip(entries, boxes, found.scores, masks, strict=True):
        left, top, width, height = entry["bbox"]
        torch.testing.assert_close(torch.tensor([left, top, left + width, top + height]), box)
        assert entry["score"] == pytest.approx(float(score))
        np.testing.assert_array_equal(run_lengths.decode(entry["segmentation"]), mask.numpy())
    nothing = Detections(boxes[:0], found.scores[:0], found.labels[:0], masks[:0])
    assert coco_results(nothing, 12, (3, 7, 90)) == []
    assert "segmentation" not in coco_results(found._replace(masks=None), 12, (3, 7, 90))[0]


def change(part, **fields):
    """Ground truth and results in which one entry has these fields; a field is left out if it is None."""
    truth, results = made_up(8)
    entries = results if part == "results" else truth[part]
    entries[1] = {key: value for key, value in (entries[1] | fields).items() if value is not None}
    return truth, results


@pytest.mark.parametrize(
    ("part", "fields", "message"),
    [
        ("results", {"image_id": 4711}, 'results: entry 1: "image_id" is 4711, the id of none of the 23 images'),
        ("results", {"image_id": [7]}, r'results: entry 1: "image_id" is \[7\], the id of none'),
        ("results", {"image_id": None}, 'results: entry 1: "image_id" is missing'),
        ("results", {"category_id": 4}, 'results: entry 1: "category_id" is 4, the id of none of the 5 categories'),
        ("results", {"score": float("nan")}, 'results: entry 1: "score" is nan, no finite number'),
        ("results", {"score": "0.5"}, "results: entry 1: \"score\" is '0.5', no finite number"),
        ("results", {"score": None}, 'results: entry 1: "score" is missing'),
        ("results", {"bbox": [1, 2, 3]}, r'results: entry 1: "bbox" is \[1, 2, 3\], not four finite numbers'),
        ("results", {"bbox": [1, 2, 3, float("inf")]}, 'results: entry 1: "bbox" is .* not four finite numbers'),
        ("results", {"bbox": [1, 2, -3, 4]}, 'results: entry 1: "bbox" is .* must be 0 or more'),
        ("results", {"bbox": None, "segmentation": None}, 'results: entry 1: "bbox" is missing'),
        ("annotations", {"image_id": 4711}, 'annotations: entry 1: id 103: "image_id" is 4711'),
        ("annotations", {"category_id": 4}, 'annotations: entry 1: id 103: "category_id" is 4'),
        ("annotations", {"bbox": [0, 0, 5]}, 'annotations: entry 1: id 103: "bbox"'),
        ("annotations", {"area": float("nan")}, 'annotations: entry 1: id 103: "area" is nan'),
        ("annotations", {"iscrowd": 2}, 'annotations: entry 1: id 103: "iscrowd" is 2, neither 0 nor 1'),
        ("annotations", {"id": 100}, 'annotations: entry 1: "id" 100 is that of an entry before'),
        ("annotations", {"id": "a"}, "annotations: entry 1: \"id\" is 'a', no whole number"),
        ("images", {"id": 2}, 'images: entry 1: "id" 2 is that of an entry before'),
        ("categories", {"id": None}, 'categories: entry 1: "id" is missing'),
    ],
)
def test_an_entry_without_meaning_is_named(part, fields, message):
    with pytest.raises(DetectionFileError, match=message):
        evaluate_detections(*change(part, **fields))


@pytest.mark.parametrize(
    ("part", "fields", "message"),
    [
        ("results", {"segmentation": None}, 'results: entry 1: "segmentation" is missing'),
        (
            "results",
            {"segmentation": {"size": [3, 4], "counts": "04"}},
            r"has the size \[3, 4\], its image \d+ is \[200, ",
        ),
        ("results", {"segmentation": {"size": [200, 230], "counts": 3}}, "neither polygons nor run lengths"),
        ("results", {"segmentation": []}, "neither polygons nor run lengths"),
        ("annotations", {"segmentation": [["a", "b"]]}, "id 103: .* neither polygons nor run lengths"),
        ("annotations", {"segmentation": None}, 'id 103: "segmentation" is missing'),
    ],
)
def test_a_mask_without_meaning_is_named(part, fields, message):
    with pytest.raises(DetectionFileError, match=message):
        evaluate_detections(*change(part, **fields), ("segm",))


def test_files_are_named_with_their_entries(tmp_path):
    truth, results = made_up(9)
    files = tmp_path / "instances.json", tmp_path / "results.json"
    for file, content in zip(files, (truth, results), strict=True):
        file.write_text(json.dumps(content))
    assert evaluate_detection_files(*files).bbox.numbers == evaluate_detections(truth, results).bbox.numbers
    results[3]["score"] = float("nan")
    files[1].write_text(json.dumps(results))
    with pytest.raises(DetectionFileError, match=r'results\.json: entry 3: "score" is nan'):
        evaluate_detection_files(*files)
    files[1].write_text(json.dumps(results)[:-30])
    with pytest.raises(DetectionFileError, match=r"results\.json: no JSON, or cut off: .* line 1 column"):
        evaluate_detection_files(*files)
    with pytest.raises(FileNotFoundError, match=r"missing\.json: there is no such file"):
        evaluate_detection_files(files[0], tmp_path / "missing.json")
    files[0].write_text("[]")
    files[1].write_text("[]")
    with pytest.raises(DetectionFileError, match=r"instances\.json: expected an object .* found a list"):
        evaluate_detection_files(*files)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kinds": ("keypoints",)}, "kinds .'keypoints',. is not one or both of bbox, segm"),
        ({"kinds": ()}, "kinds .. is not one or both"),
        ({"backend": "fast"}, "backend 'fast' is neither of pycocotools, faster"),
    ],
)
def test_unknown_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        evaluate_detections(*made_up(0), **options)
