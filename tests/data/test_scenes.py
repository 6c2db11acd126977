import re

import numpy as np
import pytest

from visattn.data.scene_plans import colors, kinds, pairs, plan_scenes, relations, textures
from visattn.data.scenes import draw_scene, draw_scenes, scene_classes, tell_scenes

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


def test_the_same_is_said_about_a_scene_without_drawing_it():
    told = tell_scenes(0, range(150))
    assert told == [(scene.captions, scene.questions) for scene in scenes]


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
        first, second = scene.objects[:2]
        assert (first.color, second.color) in pairs
        assert holds(scene.relation, first.mask, second.mask)
        assert scene_classes[scene.label] == f"{first.color} {scene.relation} {second.color}"
        assert not {thing.color for thing in scene.objects[2:]} & {color for pair in pairs for color in pair}


def test_large_objects_are_larger_than_small_ones():
    plan = plan_scenes(0, range(500))
    assert plan.radius[plan.large].min() > plan.radius[~plan.large].max()


def test_every_label_is_equally_frequent():
    counts = np.bincount(plan_scenes(0, range(16_000)).label, minlength=8)
    assert ((counts - 2000) ** 2 / 2000).sum() < 27  # chi-squared of 7 degrees: 1 in 3,000


def test_the_relation_shows_in_no_property_of_a_single_object():
    plan = plan_scenes(3, range(16_000))
    for slot in range(4):
        for values in (plan.kind[:, slot], plan.color[:, slot], plan.texture[:, slot], plan.large[:, slot]):
            for value in np.unique(values):
                shares = np.bincount(plan.relation[values == value], minlength=4) / (values == value).sum()
                assert abs(shares - 1 / 4).max() < 0.035


def test_the_place_of_one_object_alone_does_not_give_the_label_away():
    plan = plan_scenes(3, range(16_000))
    across, down = (plan.center[:, 0] - 0.5).T
    guess = np.argmax([-across, across, -down, down], axis=0)
    assert (guess == plan.relation).mean() < 0.95
    assert (guess == plan.label).mean() < 0.5


@pytest.mark.parametrize("scene", scenes[:60], ids=range(60))
def test_captions_are_true(scene):
    words = {
        "left": "left of", "right": "right of", "above": "above", "over": "above", "higher": "above",
        "below": "below", "under": "below", "lower": "below",
    }  # fmt: skip
    assert len(set(scene.captions)) == 5
    things = {thing.color: thing for thing in scene.objects[:2]}
    for sentence in scene.captions:
        assert sentence == sentence.strip().lower()
        assert "  " not in sentence
        relational = re.search(r"\b(left|right|above|over|higher|below|under|lower)\b", sentence)
        if relational:
            before, after = (
                [color for color in re.findall(r"\w+", part) if color in things]
                for part in (sentence[: relational.start()], sentence[relational.end() :])
            )
            subject, thing = (before[-1], after[0]) if after else (before[-1], before[-2])  # "B with A to its left"
            assert subject != thing
            assert holds(words[relational[1]], things[subject].mask, things[thing].mask)
        for color, kind in re.findall(r"(\w+) (circle|square|triangle|cross)\b", sentence):
            if color in colors:
                assert color in [thing.color for thing in scene.objects if thing.kind == kind]
    full, everything = scene.captions[0], scene.captions[4]
    assert all(f"{thing.color} {thing.kind}" in full for thing in scene.objects[:2])
    assert sum(everything.count(f" {kind}") for kind in kinds) == len(scene.objects)


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
    first, second = scene.objects[:2]
    answers = dict(scene.questions)
    assert len(answers) == len(scene.questions) == 9
    assert answers[f"what is {first.color}?"] == first.kind
    assert answers[f"what is {second.color}?"] == second.kind
    seen = answers[f"where is the {first.color} shape, seen from the {second.color} one?"]
    assert holds(seen, first.mask, second.mask)
    assert answers["how many shapes are there?"] == str(len(scene.objects))
    assert answers[f"is the {first.color} shape large or small?"] == first.size
    assert answers[f"is the {second.color} shape plain, striped or checked?"] == second.texture
    matched = 0
    for question, answer in scene.questions:
        if match := re.fullmatch(rf"is the \w+ shape ({'|'.join(relations)}) the \w+ one\?", question):
            assert (answer == "yes") == holds(match[1], first.mask, second.mask)
            matched += 1
        if match := re.fullmatch(r"is there a (\w+)\?", question):
            assert (answer == "yes") == any(thing.kind == match[1] for thing in scene.objects)
            matched += 1
        if match := re.fullmatch(r"how many (circle|square|triangle|cross)e?s are there\?", question):
            assert answer == str(sum(thing.kind == match[1] for thing in scene.objects))
            matched += 1
    assert matched == 3


def test_no_question_can_be_answered_without_the_picture():
    answers = {}
    for scene in scenes:
        for question, answer in scene.questions:
            answers.setdefault(question, []).append(answer)
    for question, given in answers.items():
        if len(given) > 40:
            assert max(map(given.count, given)) < 0.75 * len(given), question
