import json

import pytest

from visattn.data.caption_files import CaptionFileError, read_coco, read_flickr8k_text, read_karpathy
from visattn.data.images import ImageFileError


def refuse(error):
    raise error


@pytest.fixture
def pictures(tmp_path):
    """Files that exist, which is all that is asked of them here."""
    for name in ("a.jpg", "b.jpg", "c.jpg", "more/d.jpg"):
        path = tmp_path / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return tmp_path / "images"


def coco(path, images=None, annotations=None, **changes):
    content = {
        "images": images or [{"id": 7, "file_name": "b.jpg"}, {"id": 3, "file_name": "a.jpg"}],
        "annotations": annotations
        or [
            {"id": 1, "image_id": 3, "caption": "an a"},
            {"id": 2, "image_id": 7, "caption": "a b "},
            {"id": 3, "image_id": 3, "caption": "A."},
        ],
    }
    path.write_text(json.dumps(content | changes))
    return path


def test_images_keep_their_order_and_captions_theirs(tmp_path, pictures):
    found = read_coco(coco(tmp_path / "captions.json"), pictures, refuse)
    assert found == [(pictures / "b.jpg", 7, ["a b "]), (pictures / "a.jpg", 3, ["an a", "A."])]


def test_ids_may_be_strings_and_files_may_lie_deeper(tmp_path, pictures):
    file = coco(
        tmp_path / "captions.json",
        [{"id": "x", "file_name": "more/d.jpg"}],
        [{"image_id": "x", "caption": "d"}],
    )
    assert read_coco(file, pictures, refuse) == [(pictures / "more" / "d.jpg", "x", ["d"])]


@pytest.mark.parametrize(
    "caption", ["naïve café 🐶", "狗在跑", "a\u0000b", "\u202eabc\u200b", "a\nb\n", "cafe\u0301", "<end>", "  a  "]
)
def test_odd_captions_are_kept_as_they_are(tmp_path, pictures, caption):
    images, annotations = [{"id": 1, "file_name": "a.jpg"}], [{"image_id": 1, "caption": caption}]
    assert read_coco(coco(tmp_path / "c.json", images, annotations), pictures, refuse)[0].captions == [caption]


@pytest.mark.parametrize("separator", "\r\x0b\x0c\u2028\u2029")
def test_separators_of_lines_that_the_evaluation_refuses_become_spaces(tmp_path, pictures, separator):
    images, annotations = [{"id": 1, "file_name": "a.jpg"}], [{"image_id": 1, "caption": f"a{separator}b"}]
    assert read_coco(coco(tmp_path / "c.json", images, annotations), pictures, refuse)[0].captions == ["a b"]


image, sentence = {"id": 1, "file_name": "c.jpg"}, {"image_id": 7, "caption": "more"}
wrong_entries = [
    ("images", {"file_name": "c.jpg"}, r'image 2: "id" is missing'),
    ("images", {"id": 1}, r'image 2: "file_name" is missing'),
    ("images", image | {"id": 1.5}, r'image 2: "id" must be a whole number or a string, found a number'),
    ("images", image | {"id": True}, r'image 2: "id" must be .* found a truth value'),
    ("images", image | {"id": 7}, r'image 2: "id" 7 is that of an image before'),
    ("images", image | {"file_name": ""}, r'image 2: "file_name" is empty'),
    ("images", image | {"file_name": ["c.jpg"]}, r'image 2: "file_name" must be a string, found a list'),
    ("images", image, r"captions\.json: image 1 \(c\.jpg\) has no caption; on_error=skip"),
    ("images", "c.jpg", r"image 2: expected an object, found a string"),
    ("annotations", {"caption": "more"}, r'annotation 3: "image_id" is missing'),
    ("annotations", {"image_id": 7}, r'annotation 3: "caption" is missing'),
    ("annotations", sentence | {"image_id": "7"}, r'annotation 3: "image_id" \'7\' is not the "id" of one of "images"'),
    ("annotations", sentence | {"caption": None}, r'annotation 3: "caption" must be a string, found null'),
    ("annotations", sentence | {"caption": " \n"}, r'annotation 3: "caption" is empty'),
    (
        "annotations",
        sentence | {"caption": "a \ud83d"},
        r'annotation 3: "caption" is no valid Unicode .*surrogate at 2',
    ),
    ("annotations", None, r"annotation 3: expected an object, found null"),
]


@pytest.mark.parametrize(("part", "entry", "message"), wrong_entries)
def test_a_wrong_entry_is_an_error_or_left_out(tmp_path, pictures, part, entry, message):
    whole = json.loads(coco(tmp_path / "captions.json").read_text())
    before = read_coco(tmp_path / "captions.json", pictures, refuse)
    whole[part].append(entry)
    (tmp_path / "captions.json").write_text(json.dumps(whole))
    with pytest.raises(CaptionFileError, match=message):
        read_coco(tmp_path / "captions.json", pictures, refuse)
    problems = []
    assert read_coco(tmp_path / "captions.json", pictures, problems.append) == before
    assert len(problems) == 1


@pytest.mark.parametrize("name", ["nowhere.jpg", "more", "a\0b.jpg", "x" * 300 + ".jpg", "\ud800.jpg"])
def test_a_caption_whose_image_is_missing_is_an_error_or_left_out(tmp_path, pictures, name):
    images = [{"id": 1, "file_name": name}, {"id": 2, "file_name": "a.jpg"}]
    annotations = [{"image_id": 1, "caption": "gone"}, {"image_id": 2, "caption": "here"}]
    file = coco(tmp_path / "captions.json", images, annotations)
    with pytest.raises(
        ImageFileError, match=r"there is no such file, yet .*captions\.json has captions of it \(image 1\)"
    ):
        read_coco(file, pictures, refuse)
    problems = []
    assert [found.image_id for found in read_coco(file, pictures, problems.append)] == [2]
    assert len(problems) == 1


@pytest.mark.parametrize("problem", [refuse, lambda error: None])
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no JSON, or cut off: .* the file has 0 characters"),
        ("[]", "expected an object, found a list"),
        ('{"annotations": []}', '"images" is missing'),
        ('{"images": {}, "annotations": []}', '"images" must be a list, found an object'),
        ('{"images": []}', '"annotations" is missing'),
        ("[" * 100_000, "no JSON"),
        ('{"images": [], "annotations": "caf\xe9"}'.encode("latin-1"), r"not UTF-8 \(byte 34\)"),
    ],
)
def test_a_file_of_another_form_is_an_error_however_errors_are_treated(tmp_path, pictures, text, message, problem):
    (tmp_path / "captions.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(CaptionFileError, match=rf"captions\.json: {message}"):
        read_coco(tmp_path / "captions.json", pictures, problem)


@pytest.mark.parametrize("kept", [1, 50, 150, -1])
def test_a_file_that_is_cut_off_is_an_error(tmp_path, pictures, kept):
    file = coco(tmp_path / "captions.json")
    file.write_text(file.read_text()[:kept])
    with pytest.raises(CaptionFileError, match=r"captions\.json: no JSON, or cut off: .*fetch it again"):
        read_coco(file, pictures, lambda error: None)
    with pytest.raises(FileNotFoundError, match=r"nowhere\.json: there is no such file of captions"):
        read_coco(tmp_path / "nowhere.json", pictures, refuse)


def karpathy(path, *changes):
    images = [
        {"filename": "a.jpg", "imgid": 0, "cocoid": 30, "split": "train", "sentences": [{"raw": "an a"}, {"raw": "A"}]},
        {"filename": "b.jpg", "imgid": 1, "cocoid": 20, "split": "restval", "sentences": [{"raw": "a b"}]},
        {"filename": "c.jpg", "imgid": 2, "split": "val", "sentences": [{"raw": "a c"}]},
        {"filename": "more/d.jpg", "imgid": 3, "split": "test", "sentences": [{"raw": "a d"}]},
    ]
    for place, change in changes:
        images[place] |= change
    path.write_text(json.dumps({"images": images, "dataset": "coco"}))
    return path


def test_restval_of_karpathy_belongs_to_train(tmp_path, pictures):
    found = read_karpathy(karpathy(tmp_path / "d.json"), lambda entry: pictures / entry["filename"], refuse)
    assert found == {
        "train": [(pictures / "a.jpg", 30, ["an a", "A"]), (pictures / "b.jpg", 20, ["a b"])],
        "validation": [(pictures / "c.jpg", 2, ["a c"])],
        "test": [(pictures / "more" / "d.jpg", 3, ["a d"])],
    }


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"split": "dev"}, r"image 1: \"split\" 'dev' is none of train, restval, val, test"),
        ({"split": None}, r'image 1: "split" must be a string, found null'),
        ({"cocoid": 30}, r"image 1: its id 30 is that of an image before"),
        ({"cocoid": None}, r'image 1: "cocoid" must be a whole number or a string, found null'),
        ({"sentences": "a b"}, r'image 1: "sentences" must be a list, found a string'),
        ({"sentences": []}, r"image 20 \(b\.jpg\) has no caption"),
        ({"filename": 5}, r'image 1: "filename" must be a string'),
        ({"filename": "gone.jpg"}, r"gone\.jpg: there is no such file"),
    ],
)
def test_a_wrong_entry_of_karpathys_file_is_an_error_or_left_out(tmp_path, pictures, change, message):
    file = karpathy(tmp_path / "d.json", (1, change))
    with pytest.raises(ValueError, match=message):
        read_karpathy(file, lambda entry: pictures / entry["filename"], refuse)
    problems = []
    found = read_karpathy(file, lambda entry: pictures / entry["filename"], problems.append)
    assert [image.image_id for image in found["train"]] == [30]
    assert len(problems) == 1


def test_a_wrong_sentence_of_karpathys_file_leaves_the_others(tmp_path, pictures):
    file = karpathy(tmp_path / "d.json", (0, {"sentences": [{"raw": ""}, {"tokens": ["A"]}, {"raw": "A"}]}))
    with pytest.raises(CaptionFileError, match=r'image 0, sentence 0: "raw" is empty'):
        read_karpathy(file, lambda entry: pictures / entry["filename"], refuse)
    problems = []
    found = read_karpathy(file, lambda entry: pictures / entry["filename"], problems.append)
    assert found["train"][0].captions == ["A"]
    assert len(problems) == 2


def flickr8k_text(folder, tokens="a.jpg#0\tan a\na.jpg#1\tA .\nb.jpg#0\ta b\nc.jpg#0\ta c\nx.jpg.1#0\tnobody's\n"):
    folder.mkdir(exist_ok=True)
    (folder / "Flickr8k.token.txt").write_text(tokens)
    for name, images in (("train", "a.jpg\n"), ("dev", "b.jpg\n"), ("test", "c.jpg\n")):
        (folder / f"Flickr_8k.{name}Images.txt").write_text(images)
    return folder


def test_the_texts_of_flickr8k_as_published(tmp_path, pictures):
    assert read_flickr8k_text(flickr8k_text(tmp_path / "text"), pictures, refuse) == {
        "train": [(pictures / "a.jpg", "a.jpg", ["an a", "A ."])],
        "validation": [(pictures / "b.jpg", "b.jpg", ["a b"])],
        "test": [(pictures / "c.jpg", "c.jpg", ["a c"])],
    }


def test_a_line_of_another_form_is_an_error_or_left_out(tmp_path, pictures):
    text = flickr8k_text(
        tmp_path / "text", "a.jpg#0\tan a\nb.jpg#0\ta b\nc.jpg#0\ta c\nb.jpg#1 a spaced b\nb.jpg#2\t\n"
    )
    with pytest.raises(CaptionFileError, match=r"Flickr8k\.token\.txt: line 4: has no tab"):
        read_flickr8k_text(text, pictures, refuse)
    problems = []
    assert read_flickr8k_text(text, pictures, problems.append)["validation"][0].captions == ["a b"]
    assert [str(problem).partition(": ")[2][:6] for problem in problems] == ["line 4", "line 5"]
    (text / "Flickr_8k.devImages.txt").unlink()
    with pytest.raises(FileNotFoundError, match=r"Flickr_8k\.devImages\.txt"):
        read_flickr8k_text(text, pictures, problems.append)
