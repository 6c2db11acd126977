import json

import numpy as np
import pytest
from PIL import Image

from visattn.data.detection_files import Category, DetectionFileError, read_instances
from visattn.data.images import ImageFileError


def refuse(error):
    raise error


@pytest.fixture
def pictures(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    for name, size in (("a.png", (50, 40)), ("b.png", (31, 67)), ("c.png", (20, 20))):
        Image.new("RGB", size).save(folder / name)
    return folder


def content():
    return {
        "images": [
            {"id": 70, "file_name": "b.png", "height": 67, "width": 31},
            {"id": 3, "file_name": "a.png", "height": 40, "width": 50},
            {"id": 5, "file_name": "c.png", "height": 20, "width": 20},
        ],
        "annotations": [
            {"id": 11, "image_id": 3, "category_id": 44, "bbox": [1, 2, 30, 20], "area": 555.5, "iscrowd": 0},
            {"id": 12, "image_id": 70, "category_id": 7, "bbox": [0, 0, 31, 67], "iscrowd": 1, "area": 9},
            {"id": 15, "image_id": 3, "category_id": 7, "bbox": [0.5, 0.25, 3.5, 4.25]},
        ],
        "categories": [{"id": 44, "name": "cup"}, {"id": 7, "name": "dog"}, {"id": 9, "name": "never seen"}],
    }


def written(path, data):
    path.write_text(json.dumps(data))
    return path


def test_objects_are_ordered_by_image_and_labels_by_category(tmp_path, pictures):
    instances, categories = read_instances(written(tmp_path / "x.json", content()), pictures, refuse)
    assert categories == [Category(7, "dog"), Category(9, "never seen"), Category(44, "cup")]
    assert instances.paths == [pictures / "b.png", pictures / "a.png", pictures / "c.png"]
    assert instances.image_ids.tolist() == [70, 3, 5]
    assert instances.sizes.tolist() == [[67, 31], [40, 50], [20, 20]]
    assert instances.first.tolist() == [0, 1, 3, 3]  # the last one has no objects
    assert instances.ids.tolist() == [12, 11, 15]
    assert instances.labels.tolist() == [0, 2, 0]
    assert instances.boxes.tolist() == [[0, 0, 31, 67], [1, 2, 30, 20], [0.5, 0.25, 3.5, 4.25]]
    assert instances.areas.tolist() == [9, 555.5, 3.5 * 4.25]  # the last one says none
    assert instances.crowd.tolist() == [True, False, False]
    assert instances.masks is None


def test_a_selection_has_its_own_objects(tmp_path, pictures):
    instances, _ = read_instances(written(tmp_path / "x.json", content()), pictures, refuse)
    chosen = instances.select([2, 1])
    assert chosen.image_ids.tolist() == [5, 3]
    assert chosen.first.tolist() == [0, 0, 2]
    assert chosen.ids.tolist() == [11, 15]
    assert chosen.paths == [pictures / "c.png", pictures / "a.png"]
    assert instances.select([]).first.tolist() == [0]


def test_boxes_are_clipped_to_their_image(tmp_path, pictures):
    data = content()
    data["annotations"][0]["bbox"] = [-10, 30, 100, 5.5]
    data["annotations"][2]["bbox"] = [60, 10, 5, 5]
    corners = read_instances(written(tmp_path / "x.json", data), pictures, refuse)[0].corners()
    assert corners.tolist() == [[0, 0, 31, 67], [0, 30, 50, 35.5], [50, 10, 50, 15]]


def test_masks_of_all_kinds_are_read_together(tmp_path, pictures):
    data = content()
    data["annotations"][0]["segmentation"] = [[1, 2, 30, 2, 30, 20]]
    data["annotations"][1]["segmentation"] = {"size": [67, 31], "counts": [100, 50, 67 * 31 - 150]}
    data["annotations"][2]["segmentation"] = {"size": [40, 50], "counts": "PP15h0"}
    problems = []
    instances, _ = read_instances(written(tmp_path / "x.json", data), pictures, problems.append, masks=True)
    assert instances.ids.tolist() == [12, 11]
    assert len(instances.masks) == 2
    assert "annotation 15" in str(problems[0])
    assert "counts" in str(problems[0])


annotation = {"id": 20, "image_id": 3, "category_id": 7, "bbox": [1, 2, 3, 4]}
image = {"id": 1, "file_name": "c.png", "height": 20, "width": 20}
wrong_entries = [
    ("annotations", annotation | {"category_id": 8}, r'annotation 20: "category_id" 8 is not the "id" of one of'),
    ("annotations", annotation | {"category_id": "7"}, r'annotation 20: "category_id" must be a whole number'),
    ("annotations", annotation | {"image_id": 4}, r'annotation 20: "image_id" 4 is not the "id" of one of "images"'),
    ("annotations", annotation | {"id": 11}, r'annotation 11: "id" is that of an annotation before'),
    ("annotations", annotation | {"id": 2**70}, r'"id" must be a whole number, found one of more than 64 bits'),
    ("annotations", annotation | {"id": None}, r'annotation at place 3: "id" must be a whole number, found null'),
    ("annotations", {"image_id": 3}, r'annotation at place 3: "id" is missing'),
    ("annotations", {"id": 20, "image_id": 3, "category_id": 7}, r'annotation 20: "bbox" is missing'),
    ("annotations", annotation | {"bbox": [1, 2, 3]}, r'annotation 20: "bbox" must be 4 numbers, found 3'),
    ("annotations", annotation | {"bbox": "1 2 3 4"}, r'annotation 20: "bbox" must be a list .* found a string'),
    ("annotations", annotation | {"bbox": [1, 2, 3, None]}, r'annotation 20: "bbox" .* found null in it'),
    ("annotations", annotation | {"bbox": [1, 2, 3, True]}, r'annotation 20: "bbox" .* found a truth value in it'),
    ("annotations", annotation | {"bbox": [1, 2, 3, float("nan")]}, r'annotation 20: "bbox" .* cannot be used: nan'),
    ("annotations", annotation | {"bbox": [1, 2, 3, float("inf")]}, r'annotation 20: "bbox" .* cannot be used: inf'),
    ("annotations", annotation | {"bbox": [1, 2, 3, 10**400]}, r'annotation 20: "bbox" .* more than 53 bits'),
    ("annotations", annotation | {"area": "4"}, r'annotation 20: "area" .* found a string in it'),
    ("annotations", annotation | {"iscrowd": 2}, r'annotation 20: "iscrowd" must be 0 or 1'),
    ("annotations", [], r"annotation at place 3: expected an object, found a list"),
    ("images", image | {"id": 3}, r'image 3: "id" is that of an image before'),
    ("images", image | {"id": "x"}, r'image \'x\': "id" must be a whole number, found a string'),
    ("images", image | {"height": 0}, r'image 1: "height" must be a whole number from 1 on, found 0'),
    ("images", {"id": 1, "file_name": "c.png", "height": 5}, r'image 1: "width" is missing'),
    ("images", image | {"file_name": ""}, r'image 1: "file_name" is empty'),
    ("categories", {"id": 7, "name": "cat"}, r'category 7: "id" is that of a category before \(dog\)'),
    ("categories", {"id": 8}, r'category 8: "name" is missing'),
]


@pytest.mark.parametrize(("part", "entry", "message"), wrong_entries)
def test_a_wrong_entry_is_an_error_or_left_out(tmp_path, pictures, part, entry, message):
    file = tmp_path / "x.json"
    before, categories = read_instances(written(file, content()), pictures, refuse)
    data = content()
    data[part].append(entry)
    written(file, data)
    with pytest.raises(DetectionFileError, match=message) as caught:
        read_instances(file, pictures, refuse)
    assert str(file) in str(caught.value)
    problems = []
    after, categories_after = read_instances(file, pictures, problems.append)
    assert len(problems) == 1
    assert categories_after == categories
    assert after.paths == before.paths
    assert np.array_equal(after.ids, before.ids)
    assert np.array_equal(after.boxes, before.boxes)


@pytest.mark.parametrize("name", ["nowhere.png", "../images", "a\0b.png", "x" * 300 + ".png"])
def test_a_picture_that_is_missing_is_an_error_or_left_out_with_its_objects(tmp_path, pictures, name):
    data = content()
    data["images"][1]["file_name"] = name
    file = written(tmp_path / "x.json", data)
    with pytest.raises(ImageFileError, match=r"no such file, yet .*x\.json lists it \(image 3\)"):
        read_instances(file, pictures, refuse)
    problems = []
    instances, _ = read_instances(file, pictures, problems.append)
    assert len(problems) == 1
    assert instances.image_ids.tolist() == [70, 5]
    assert instances.ids.tolist() == [12]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (json.dumps(content())[:-40], r"no JSON, or cut off: .* the file has \d+ characters"),
        ("", "no JSON, or cut off"),
        ("[" * 100_000, "no JSON, or cut off"),
        ("[]", "expected an object, found a list"),
        ('{"images": [], "annotations": []}', '"categories" is missing'),
        ('{"images": [], "annotations": [], "categories": []}', '"categories" declares none'),
        ('{"images": {}, "annotations": [], "categories": [{"id": 1, "name": "a"}]}', '"images" must be a list'),
        ('{"images": [], "categories": [{"id": 1, "name": "a"}]}', '"annotations" is missing'),
        ('{"id": 1' + "0" * 5000 + "}", "no JSON, or cut off"),
    ],
)
@pytest.mark.parametrize("problem", [refuse, lambda error: None])
def test_a_file_of_another_form_is_an_error(tmp_path, pictures, text, message, problem):
    file = tmp_path / "x.json"
    file.write_text(text)
    with pytest.raises(DetectionFileError, match=message) as caught:
        read_instances(file, pictures, problem)
    assert str(caught.value).startswith(str(file))


def test_a_file_that_is_missing_or_no_text_is_an_error(tmp_path, pictures):
    with pytest.raises(FileNotFoundError, match=r"x\.json: there is no such file of objects"):
        read_instances(tmp_path / "x.json", pictures, refuse)
    (tmp_path / "x.json").write_bytes(b'{"images": "\xff"}')
    with pytest.raises(DetectionFileError, match=r"not UTF-8 \(byte 12\)"):
        read_instances(tmp_path / "x.json", pictures, refuse)


def test_a_file_for_evaluation_must_know_the_categories_of_training_only(tmp_path, pictures):
    trained = [Category(3, "tree"), Category(7, "dog"), Category(9, "cat"), Category(44, "cup")]
    data = content()
    file = written(tmp_path / "x.json", data)
    with pytest.raises(DetectionFileError, match=r"category 9: \"name\" 'never seen' .* it is 'cat' there"):
        read_instances(file, pictures, refuse, categories=trained)
    with pytest.raises(DetectionFileError, match=r"category 44: \"name\" 'cup' .* no such id there"):
        read_instances(file, pictures, refuse, categories=[Category(7, "dog"), Category(9, "never seen")])
    data["categories"].pop()
    instances, categories = read_instances(written(file, data), pictures, refuse, categories=trained)
    assert categories == trained
    assert instances.labels.tolist() == [1, 3, 1]


def test_a_file_without_objects_has_pictures(tmp_path, pictures):
    instances, _ = read_instances(
        written(tmp_path / "x.json", content() | {"annotations": []}), pictures, refuse, masks=True
    )
    assert instances.first.tolist() == [0, 0, 0, 0]
    assert instances.boxes.shape == (0, 4)
    assert instances.corners().shape == (0, 4)
    assert instances.masks == []
