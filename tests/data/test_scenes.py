import re

import numpy as np
import pytest

from visattn.data.scene_plans import colors, kinds, plan_scenes, relations, textures
from visattn.data.scenes import draw_scene, draw_scenes, scene_classes

scenes = [draw_scene(0, index, 64) for index in range(150)]


@pytest.mark.parametrize("image_size", [32, 48, 127, 256])
def test_a_scene_depends_on_its_seed_and_index_alone(image_size):
    images, labels = draw_scenes(5, range(100, 140), image_size)
    assert images.shape == (40, 3, image_size, image_size)
    assert images.dtype == np.uint8
    few, few_labels = draw_scenes(5, [131, 104], image_size)
    np.testing.assert_array_equal(few, images[[31, 4]])
    np.testing.assert_array_equal(few_labels, labels[[31, 4]])
    alone = draw_scene(5, 131, image_size)
    np.testing.assert_array_equal(alone.image.transpose(2, 0, 1), images[31])
    assert alone.label == labels[31]
    assert not np.array_equal(draw_scenes(6, [131], image_size)[0], few[:1])


def test_no_two_scenes_are_alike():
    images, _ = draw_scenes(0, range(2000), 32)
    assert len({image.tobytes() for image in images}) == 2000


@pytest.mark.parametrize("image_size", [32, 64, 131])
def test_boxes_are_the_tight_boxes_of_the_visible_masks(image_size):
    for index in range(60):
        scene = draw_scene(1, index, image_size)
        assert scene.image.shape == (image_size, image_size, 3)
        covered = np.zeros((image_size, image_size), dtype=int)
        for thing in scene.objects:
            left, top, width, height = thing.bounding_box
            inside = thing.mask[top : top + height, left : left + width]
            assert inside.sum() == thing.mask.sum() > 0
            assert inside[0].any() and inside[-1].any() and inside[:, 0].any() and inside[:, -1].any()  # noqa: PT018
            covered += thing.mask
        assert covered.max() == 1  # a pixel belongs to one object


def test_every_object_that_is_spoken_of_can_be_seen():
    for index in range(300):
        for thing in draw_scene(2, index, 32).objects:
            assert thing.mask.sum() >= 10


def test_masks_lie_on_the_pixels_of_their_color():
    for scene in scenes:
        for thing in scene.objects:
            seen = scene.image[thing.mask].astype(float)
            shades = np.array(colors[thing.color]) * np.array([[1.0], [0.55]])  # the two of a texture
            distance = abs(seen[:, None] - shades).max(axis=2).min(axis=1)
            assert np.median(distance) < 25  # the grain
            dark = abs(seen - shades[1]).max(axis=1) < abs(seen - shades[0]).max(axis=1)
            assert (thing.texture != "plain") or thing.color == "black" or dark.mean() < 0.1
            assert (thing.texture == "plain") or thing.color == "black" or dark.mean() > 0.1


def middle(mask):
    rows, columns = mask.nonzero()
    return np.array([columns.mean(), rows.mean()])


def holds(relation, first, second):
    """Whether the relation is true of two masks: along its axis, and there more than along the other."""
    across, down = middle(first) - middle(second)
    along = {"left of": -across, "right of": across, "above": -down, "below": down}
    return along[relation] == max(along.values()) > 0


def test_labels_are_true_of_the_picture():
    for scene in scenes:
        circle, square = scene.objects[:2]
        assert (circle.kind, square.kind) == ("circle", "square")
        assert holds(scene.relation, circle.mask, square.mask)
        same = ", same color" if circle.color == square.color else ""
        assert scene_classes[scene.label] == f"circle {scene.relation} square{same}"


def test_large_objects_are_larger_than_small_ones():
    plan = plan_scenes(0, range(500))
    assert plan.radius[plan.large].min() > plan.radius[~plan.large].max()


def test_every_label_is_equally_frequent():
    counts = np.bincount(plan_scenes(0, range(16_000)).label, minlength=8)
    assert ((counts - 2000) ** 2 / 2000).sum() < 27  # chi-squared of 7 degrees: 1 in 3,000


def test_the_label_shows_in_no_property_of_a_single_object():
    plan = plan_scenes(3, range(16_000))
    for slot in (0, 1):
        for values in (plan.color[:, slot], plan.texture[:, slot], plan.large[:, slot]):
            for value in np.unique(values):
                shares = np.bincount(plan.label[values == value], minlength=8) / (values == value).sum()
                assert abs(shares - 1 / 8).max() < 0.035


def test_the_place_of_the_circle_alone_does_not_give_the_label_away():
    plan = plan_scenes(3, range(16_000))
    across, down = (plan.center[:, 0] - 0.5).T
    guess = np.argmax([-across, across, -down, down], axis=0)
    assert (guess == plan.relation).mean() < 0.95
    assert (guess == plan.label).mean() < 0.5


@pytest.mark.parametrize("scene", scenes[:60], ids=range(60))
def test_captions_are_true(scene):
    circle, square = scene.objects[:2]
    words = {
        "left": "left of", "right": "right of", "above": "above", "over": "above", "higher": "above",
        "below": "below", "under": "below", "lower": "below",
    }  # fmt: skip
    assert len(set(scene.captions)) == 5
    for sentence in scene.captions:
        assert sentence == sentence.strip().lower()
        assert "  " not in sentence
        relational = re.search(r"\b(left|right|above|over|higher|below|under|lower)\b", sentence)
        if relational:
            relation = words[relational[1]]
            about_square = sentence.rindex("circle") > relational.start() or re.search(
                r"square (with|that has)", sentence
            )
            if re.search(r"square (with|that has)", sentence):  # "a square with a circle to its left"
                assert relation == scene.relation
            elif about_square:
                assert holds(relation, square.mask, circle.mask)
            else:
                assert holds(relation, circle.mask, square.mask)
        described = re.findall(r"(\w+) (circle|square|triangle|cross)\b", sentence)
        for color, kind in described:
            if color in colors:
                assert color in [thing.color for thing in scene.objects if thing.kind == kind]
    full, everything = scene.captions[0], scene.captions[4]
    assert circle.color in full
    assert square.color in full
    assert everything.count("circle") + everything.count("square") == 2
    assert sum(everything.count(kind) for kind in kinds) == len(scene.objects)


def test_captions_vary_in_their_wording():
    patterns = set()
    for scene in scenes:
        for sentence in scene.captions:
            for word in (*colors, *kinds, *textures, "stripy", "checkered"):
                sentence = re.sub(rf"\b{word}\b", "_", sentence)
            patterns.add(sentence)
    assert len(patterns) > 150
    assert len({sentence.split()[0] for scene in scenes for sentence in scene.captions}) > 5


@pytest.mark.parametrize("scene", scenes[:60], ids=range(60))
def test_answers_are_true(scene):
    circle, square = scene.objects[:2]
    answers = dict(scene.questions)
    assert len(answers) == len(scene.questions) == 10
    assert answers["what color is the circle?"] == circle.color
    assert answers["what color is the square?"] == square.color
    assert holds(answers["where is the circle, seen from the square?"], circle.mask, square.mask)
    assert (answers["do circle and square have the same color?"] == "yes") == (circle.color == square.color)
    assert answers["how many shapes are there?"] == str(len(scene.objects))
    assert answers["is the circle large or small?"] == circle.size
    assert answers["is the square plain, striped or checked?"] == square.texture
    for question, answer in scene.questions:
        if match := re.fullmatch(rf"is the circle ({'|'.join(relations)}) the square\?", question):
            assert (answer == "yes") == holds(match[1], circle.mask, square.mask)
        if match := re.fullmatch(r"is there a (\w+)\?", question):
            assert (answer == "yes") == any(thing.kind == match[1] for thing in scene.objects)
        if match := re.fullmatch(rf"how many shapes are ({'|'.join(colors)})\?", question):
            assert answer == str(sum(thing.color == match[1] for thing in scene.objects))


def test_no_question_can_be_answered_without_the_picture():
    answers = {}
    for scene in scenes:
        for question, answer in scene.questions:
            answers.setdefault(question, []).append(answer)
    for question, given in answers.items():
        if len(given) > 40:
            assert max(map(given.count, given)) < 0.75 * len(given), question
