import numpy as np
import pytest
import torch

from visattn.data.annotated_pictures import AnnotatedPictures, Window, box_areas
from visattn.data.detection_preprocess import DetectionPreprocess
from visattn.data.shapes_detection import boxes_around, draw_split

side = 61


@pytest.fixture(scope="module")
def scenes():
    return draw_split(3, range(7), side, masks=True)


def shown(scenes, **changes):
    return AnnotatedPictures(scenes.pictures, scenes.instances, DetectionPreprocess(side, side), **changes)


def test_a_whole_picture_is_the_picture_with_all_its_objects(scenes):
    for index in range(7):
        whole = shown(scenes).whole(index)
        first, last = scenes.instances.first[index : index + 2]
        assert torch.equal(whole.pixels, scenes.pictures[index])
        assert whole.objects.tolist() == list(range(first, last))
        assert np.array_equal(whole.boxes.numpy(), scenes.instances.corners()[first:last])
        assert torch.equal(whole.areas, whole.masks.flatten(1).sum(1).float())


def test_boxes_and_masks_stay_together_when_the_picture_grows(scenes):
    pictures = AnnotatedPictures(scenes.pictures, scenes.instances, DetectionPreprocess(3 * side, 3 * side))
    whole = pictures.whole(2)
    assert whole.pixels.shape == (3, 3 * side, 3 * side)
    assert whole.masks.shape[1:] == (3 * side, 3 * side)
    left, top, width, height = boxes_around(whole.masks.bool().numpy()).T
    assert np.array_equal(whole.boxes.numpy(), np.stack([left, top, left + width, top + height], 1))
    assert torch.equal(whole.areas, whole.masks.flatten(1).sum(1).float())


def test_a_picture_stored_in_another_size_is_shown_the_same(scenes):
    large = [image.repeat_interleave(2, 1).repeat_interleave(2, 2) for image in scenes.pictures]
    preprocess = DetectionPreprocess(side, side)
    one, other = (
        AnnotatedPictures(stored, scenes.instances, preprocess).whole(4) for stored in (scenes.pictures, large)
    )
    assert torch.equal(one.boxes, other.boxes)
    assert torch.equal(one.masks, other.masks)
    assert torch.equal(one.areas, other.areas)
    assert one.pixels.shape == other.pixels.shape


def test_a_window_shows_what_lies_within_it(scenes):
    pictures, window = shown(scenes), Window(10, 5, 30, 41)
    for index in range(7):
        before = pictures.whole(index)
        view = pictures.view(index, scenes.pictures[index], window, (30, 41))
        assert torch.equal(view.pixels, before.pixels[:, 10:40, 5:46])
        kept = [before.objects.tolist().index(place) for place in view.objects.tolist()]
        assert torch.equal(view.masks, before.masks[kept][:, 10:40, 5:46])
        inside = before.boxes.clone().clamp(torch.tensor([5, 10, 5, 10]), torch.tensor([46, 40, 46, 40]))
        assert torch.equal(view.boxes, inside[kept] - torch.tensor([5, 10, 5, 10]))


def test_what_is_hardly_visible_is_left_out(scenes):
    pictures, window = shown(scenes), Window(0, 0, 61, 25)
    for index in range(7):
        before = pictures.whole(index).boxes
        share = box_areas(before.clamp(max=torch.tensor([25, 61, 25, 61]))) / box_areas(before)
        for least in (0.0, 0.4, 0.9):
            view = pictures.view(index, scenes.pictures[index], window, (61, 25), least)
            assert len(view.boxes) <= ((share >= least) & (share > 0)).sum()
            assert (box_areas(view.boxes) > 0).all()
    assert len(pictures.view(0, scenes.pictures[0], Window(0, 0, 1, 1), (30, 30)).boxes) == 0


def test_crowds_and_empty_boxes_are_shown_where_they_should_be(scenes):
    instances = scenes.instances.select([0, 1])
    instances.crowd[0] = True
    instances.boxes[1, 2:] = 0
    assert shown(scenes._replace(instances=instances)).whole(0).objects.tolist() == list(range(2, instances.first[1]))
    with_crowds = shown(scenes._replace(instances=instances), crowds=True).whole(0)
    assert with_crowds.objects.tolist() == [0, *range(2, instances.first[1])]


def test_a_picture_without_objects_has_empty_boxes_and_masks(scenes):
    instances = scenes.instances.select([3])
    instances = instances._replace(
        first=np.array([0, 0]), boxes=np.zeros((0, 4)), areas=np.zeros(0), crowd=np.zeros(0, bool), masks=[]
    )
    pictures = AnnotatedPictures(scenes.pictures[3:4], instances, DetectionPreprocess(97, 97))
    view = pictures.view(0, scenes.pictures[3], Window(3, 3, 20, 30), (97, 89), 0.3)
    assert view.boxes.shape == (0, 4)
    assert view.masks.shape == (0, 97, 89)
    assert pictures.whole(0).masks.shape == (0, 97, 97)
