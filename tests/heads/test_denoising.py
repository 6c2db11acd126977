"""Denoising queries: true objects, disturbed, in groups that don't see each other."""

import torch
from torchvision.ops import box_convert

from tests.heads.test_matching import objects, objects_of
from visattn.heads.denoising import denoising_queries


def drawn(counts=(3, 0, 2), most=3, **options):
    torch.manual_seed(0)
    targets = objects(counts, most)
    return targets, denoising_queries(targets, 5, **options)


def test_each_group_holds_every_object_twice_to_be_restored_and_to_be_refused():
    _, noisy = drawn(queries=26)
    assert noisy.groups == 4  # of 6
    assert noisy.labels.shape == noisy.assignment.shape == (3, 24)
    assert noisy.boxes.shape == (3, 24, 4)
    for group in range(4):
        kept = noisy.assignment[:, noisy.group == group]
        assert kept.tolist() == [[0, 1, 2, -1, -1, -1], [-1] * 6, [0, 1, -1, -1, -1, -1]]


def test_there_is_one_group_at_least():
    assert drawn(queries=2)[1].groups == 1


def test_boxes_to_be_restored_are_nearer_to_the_truth_than_those_to_be_refused():
    targets, noisy = drawn(queries=600, box_noise=1.0)
    truths = targets.boxes.repeat(1, 2 * noisy.groups, 1)
    moved = box_convert(noisy.boxes, "cxcywh", "xyxy") - box_convert(truths, "cxcywh", "xyxy")
    moved = (moved.abs() / (truths[..., 2:].repeat(1, 1, 2) / 2)).amax(dim=-1)
    restored = noisy.assignment >= 0
    refused = targets.present.repeat(1, 2 * noisy.groups) & ~restored
    assert moved[restored].max() <= 1 + 1e-5
    assert moved[restored].max() > 0.8
    assert moved[refused].max() > 1.2
    assert ((noisy.boxes >= 0) & (noisy.boxes <= 1)).all()


def test_noise_of_zero_leaves_the_truth():
    targets, noisy = drawn(label_noise=0.0, box_noise=0.0)
    torch.testing.assert_close(noisy.boxes, targets.boxes.repeat(1, 2 * noisy.groups, 1))
    assert (noisy.labels == targets.labels.repeat(1, 2 * noisy.groups)).all()


def test_labels_are_drawn_anew_by_half_of_the_noise():
    targets, noisy = drawn(queries=6000, label_noise=0.8)
    wrong = (noisy.labels != targets.labels.repeat(1, 2 * noisy.groups)).float().mean()
    assert abs(wrong - 0.4 * 4 / 5) < 0.03  # one in five is drawn as it was


def test_the_truth_can_not_be_read_off_another_group():
    _, noisy = drawn(queries=14)
    mask = noisy.mask(5)
    assert mask.shape == (17, 17)
    assert mask[:6, :6].all()
    assert mask[6:12, 6:12].all()
    assert not mask[:6, 6:12].any()
    assert not mask[6:12, :6].any()
    assert mask[12:, 12:].all()
    assert not mask[12:, :12].any()
    assert mask[:12, 12:].all()


def test_without_objects_there_are_no_such_queries():
    assert denoising_queries(objects_of((0, 0)), 5) is None
    assert denoising_queries(objects_of(()), 5) is None
