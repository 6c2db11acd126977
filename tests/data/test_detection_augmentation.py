import numpy as np
import pytest
import torch
from torchvision.transforms.v2 import functional

from visattn.data.annotated_pictures import AnnotatedPictures, box_areas
from visattn.data.detection_augmentation import DetectionAugmentation, distort, flipped, paste
from visattn.data.detection_preprocess import DetectionPreprocess
from visattn.data.shapes_detection import boxes_around, draw_split

side = 61
everything = {
    "flip": 0.5,
    "scale": (0.5, 2.0),
    "crop": 0.7,
    "photometric": 0.5,
    "mosaic": 0.4,
    "copy_paste": 0.5,
}


@pytest.fixture(scope="module")
def pictures():
    scenes = draw_split(5, range(12), side, masks=True)
    return AnnotatedPictures(scenes.pictures, scenes.instances, DetectionPreprocess(side, side))


def same(one, other):
    return all(torch.equal(mine, yours) for mine, yours in zip(one, other, strict=True))


def test_zero_leaves_the_picture_as_it_is(pictures):
    for index in range(12):
        assert same(DetectionAugmentation(0)(pictures, 3, index), pictures.whole(index))


def test_an_augmented_picture_depends_on_seed_epoch_and_index_alone(pictures):
    augmentation = DetectionAugmentation(7, **everything)
    first = [augmentation(pictures, 2, index) for index in range(12)]
    torch.manual_seed(1)
    again = DetectionAugmentation(7, **everything)
    assert all(same(again(pictures, 2, index), first[index]) for index in reversed(range(12)))
    for other in (DetectionAugmentation(8, **everything), None):
        changed = [(other or augmentation)(pictures, 2 if other else 3, index) for index in range(12)]
        assert not any(same(one, before) for one, before in zip(changed, first, strict=True))


def test_stored_pictures_never_change(pictures):
    before = torch.stack(pictures.pictures)
    for index in range(12):
        DetectionAugmentation(1, **everything)(pictures, 0, index)
    assert torch.equal(torch.stack(pictures.pictures), before)


@pytest.mark.parametrize("part", [*everything, None])
def test_boxes_lie_around_their_masks_within_the_picture(pictures, part):
    augmentation = DetectionAugmentation(2, **({part: everything[part]} if part else everything))
    for epoch in range(4):
        for index in range(12):
            shown = augmentation(pictures, epoch, index)
            height, width = shown.pixels.shape[1:]
            assert shown.pixels.dtype == torch.uint8
            assert shown.masks.shape == (len(shown.boxes), height, width)
            assert len(shown.objects) == len(shown.areas) == len(shown.boxes)
            left, top, right, bottom = shown.boxes.unbind(1)
            assert torch.stack([left, top]).min() >= 0
            assert right.max() <= width
            assert bottom.max() <= height
            assert (box_areas(shown.boxes) > 0).all()
            around = boxes_around(shown.masks.bool().numpy())  # (n, 4)
            assert (around[:, 0] >= left.numpy() - 1).all()
            assert (around[:, 1] >= top.numpy() - 1).all()
            assert (around[:, 0] + around[:, 2] <= right.numpy() + 1).all()
            assert (around[:, 1] + around[:, 3] <= bottom.numpy() + 1).all()


def test_objects_keep_their_colours_under_their_masks(pictures):
    """Each object's mean colour, wherever it went, is that of the object."""
    augmentation = DetectionAugmentation(4, **everything | {"photometric": 0.0})
    seen = 0
    for epoch in range(3):
        for index in range(12):
            shown = augmentation(pictures, epoch, index)
            for place, mask in zip(shown.objects.tolist(), shown.masks, strict=True):
                owner = int(np.searchsorted(pictures.instances.first, place, side="right")) - 1
                whole = pictures.whole(owner)
                original = whole.masks[whole.objects.tolist().index(place)]
                if mask.sum() < 150:
                    continue
                now, before = shown.pixels[:, mask > 0].float(), whole.pixels[:, original > 0].float()
                assert (now.mean(1) - before.mean(1)).abs().max() < 25
                seen += 1
    assert seen > 40


def test_a_flip_turns_boxes_and_masks(pictures):
    before = pictures.whole(1)
    after = flipped(before)
    assert torch.equal(after.pixels, before.pixels.flip(2))
    assert torch.equal(after.masks, before.masks.flip(2))
    assert torch.equal(after.boxes[:, 0], side - before.boxes[:, 2])
    assert same(flipped(after), before)


def test_a_vertical_flip_turns_boxes_and_masks(pictures):
    before = pictures.whole(1)
    after = flipped(before, functional.vertical_flip)
    assert torch.equal(after.pixels, before.pixels.flip(1))
    assert torch.equal(after.masks, before.masks.flip(1))
    assert torch.equal(after.boxes[:, 1], side - before.boxes[:, 3])
    assert same(DetectionAugmentation(vertical_flip=1.0)(pictures, 0, 1), after)


def test_a_window_keeps_an_object_and_what_is_kept_is_visible(pictures):
    augmentation = DetectionAugmentation(3, crop=1.0, crop_side=0.2, min_visible=0.6)
    sizes = []
    for epoch in range(6):
        for index in range(12):
            shown = augmentation(pictures, epoch, index)
            assert len(shown.boxes) > 0
            sizes.append(len(shown.boxes) / len(pictures.whole(index).boxes))
    assert np.mean(sizes) < 0.8  # and others leave


def test_scales_shrink_the_picture_or_show_a_part_of_it(pictures):
    smaller, larger = DetectionAugmentation(0, scale=(0.5, 0.5)), DetectionAugmentation(0, scale=(2.0, 2.0))
    whole = pictures.whole(2)
    shown = smaller(pictures, 0, 2)
    assert shown.pixels.shape == (3, 30, 30)
    assert torch.allclose(shown.boxes, whole.boxes * 30 / side, atol=1e-4)
    shown = larger(pictures, 0, 2)
    assert shown.pixels.shape[1:] == (side, side)
    assert shown.areas.max() > 1.5 * whole.areas.min()


@pytest.mark.parametrize("fit", ["within", "stretch"])
def test_a_part_stays_within_the_frame_of_the_whole(pictures, fit):
    wide = [picture[:, 10:50] for picture in pictures.pictures]  # 40 x 61
    instances = pictures.instances._replace(sizes=np.full((12, 2), (40, side)), masks=None)
    preprocess = DetectionPreprocess(80, 130, fit=fit)
    wide = AnnotatedPictures(wide, instances, preprocess)
    augmentation = DetectionAugmentation(3, crop=1.0, scale=(0.8, 2.0))
    sizes = {augmentation(wide, epoch, index).pixels.shape[1:] for epoch in range(3) for index in range(12)}
    most = preprocess.resized(40, side)
    assert all(0.4 * most[0] < height <= most[0] and 0.4 * most[1] < width <= most[1] for height, width in sizes)
    assert all(abs(height - most[0]) < 17 or abs(width - most[1]) < 27 for height, width in sizes)
    assert len(sizes) > 8


def test_a_mosaic_has_objects_of_several_pictures(pictures):
    augmentation = DetectionAugmentation(1, mosaic=1.0)
    owners = []
    for index in range(12):
        shown = augmentation(pictures, 0, index)
        assert shown.pixels.shape == (3, side, side)
        owners.append(len(set(np.searchsorted(pictures.instances.first, shown.objects.numpy(), side="right"))))
    assert max(owners) == 4


def test_pasted_objects_cover_what_lies_below(pictures):
    below, above = pictures.whole(0), pictures.whole(1)
    pasted = 0
    for draw in np.linspace(0, 0.99, 13):
        both = paste(below, above, np.array([draw]), 0.0)
        assert both.masks.sum(0).max() <= 1  # no pixel belongs to two
        new = [place for place in both.objects.tolist() if place in above.objects.tolist()]
        for place in new:
            mask = above.masks[above.objects.tolist().index(place)] > 0
            assert torch.equal(both.pixels[:, mask], above.pixels[:, mask])
        free = both.masks[[place in new for place in both.objects.tolist()]].sum(0) == 0
        assert torch.equal(both.pixels[:, free], below.pixels[:, free])
        around = boxes_around(both.masks.bool().numpy())
        assert np.array_equal(both.boxes[:, :2].numpy(), around[:, :2])
        assert np.array_equal((both.boxes[:, 2:] - both.boxes[:, :2]).numpy(), around[:, 2:])
        assert torch.equal(both.areas, both.masks.flatten(1).sum(1).float())
        pasted += len(new)
    assert 0 < pasted < 13 * len(above.objects)


def test_pasting_onto_a_picture_of_another_size_keeps_its_size(pictures):
    small = DetectionAugmentation(0, scale=(0.5, 0.5))(pictures, 0, 3)
    for below, above in ((small, pictures.whole(1)), (pictures.whole(1), small)):
        both = paste(below, above, np.array([0.3]), 0.3)
        assert both.pixels.shape == below.pixels.shape
        assert both.masks.shape[1:] == below.pixels.shape[1:]


def test_pasting_needs_masks(pictures):
    bare = pictures.whole(0)._replace(masks=None)
    with pytest.raises(ValueError, match="copy_paste needs masks"):
        paste(bare, bare, np.array([0.3]), 0.3)


def test_colours_change_by_their_draws(pictures):
    pixels = pictures.whole(0).pixels
    assert torch.equal(distort(pixels, np.full(10, 0.9)), pixels)
    for number in range(4):
        draws = np.full(10, 0.9)
        draws[number] = 0.1
        changed = distort(pixels, draws)
        assert changed.dtype == torch.uint8
        assert not torch.equal(changed, pixels)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"flip": 1.5}, "flip 1.5 must lie between 0 and 1"),
        ({"mosaic": -0.1}, "mosaic -0.1"),
        ({"crop_side": 0}, "crop_side 0 must be above 0"),
        ({"scale": (0, 1)}, "scale .0, 1. must be"),
        ({"scale": (2, 1)}, "scale .2, 1. must be"),
        ({"scale": (1,)}, "scale .1,. must be"),
    ],
)
def test_wrong_arguments_are_errors(arguments, message):
    with pytest.raises(ValueError, match=message):
        DetectionAugmentation(0, **arguments)
