"""Detections: a threshold, another size; and how raw predictions become detections."""

import torch

from visattn.heads import DetectionOutput, Detections


def found():
    masks = torch.zeros(3, 10, 20, dtype=torch.bool)
    masks[0, 2:6, 4:12] = masks[1, :, :10] = True
    boxes = torch.tensor([[4.0, 2.0, 12.0, 6.0], [-3.0, 0.0, 10.0, 11.0], [0.0, 0.0, 1.0, 1.0]])
    return Detections(boxes, torch.tensor([0.9, 0.5, 0.1]), torch.tensor([4, 0, 2]), masks)


def test_above_keeps_what_is_surer_than_the_threshold():
    kept = found().above(0.5)
    assert kept.labels.tolist() == [4]
    assert kept.boxes.shape == (1, 4)
    assert kept.masks.shape == (1, 10, 20)
    assert found()._replace(masks=None).above(0.05).masks is None


def test_resized_scales_boxes_and_masks_and_cuts_boxes_off():
    larger = found().resized((10, 20), (30, 40))
    assert larger.boxes[:2].tolist() == [[8.0, 6.0, 24.0, 18.0], [0.0, 0.0, 20.0, 30.0]]
    assert larger.masks.shape == (3, 30, 40)
    assert larger.masks.dtype == torch.bool
    expected = torch.zeros(30, 40, dtype=torch.bool)
    expected[6:18, 8:24] = True
    assert (larger.masks[0] != expected).sum() <= 4  # corners are rounded
    same = found().resized((10, 20), (10, 20))
    assert torch.equal(same.masks, found().masks)


def test_nothing_can_be_resized():
    nothing = found().above(1.0).resized((10, 20), (7, 5))
    assert nothing.boxes.shape == (0, 4)
    assert nothing.masks.shape == (0, 7, 5)


def output():
    logits = torch.tensor([[[2.0, 1.0, -9.0], [-9.0, 3.0, 4.0]], [[-9.0, -9.0, 9.0], [0.0, 5.0, -9.0]]])
    boxes = torch.tensor([[[0.5, 0.5, 1.0, 1.0], [0.25, 0.5, 0.5, 0.2]]]).repeat(2, 1, 1)
    return DetectionOutput(logits, boxes)


def test_with_sigmoids_a_query_may_give_several_classes():
    first, second = output().detections(torch.tensor([[10, 20], [40, 30]]), 3)
    assert first.labels.tolist() == [2, 1, 0]
    torch.testing.assert_close(first.scores, torch.tensor([4.0, 3.0, 2.0]).sigmoid())
    torch.testing.assert_close(first.boxes[:2], torch.tensor([[0.0, 4.0, 10.0, 6.0]]).repeat(2, 1))
    torch.testing.assert_close(first.boxes[2], torch.tensor([0.0, 0.0, 20.0, 10.0]))
    assert second.labels.tolist() == [2, 1, 0]
    torch.testing.assert_close(second.boxes[0], torch.tensor([0.0, 0.0, 30.0, 40.0]))


def test_with_a_softmax_a_query_gives_its_likeliest_class_other_than_no_object():
    first, second = output().detections(torch.tensor([[10, 20], [40, 30]]), 100, softmax=True)
    assert first.labels.tolist() == [0, 1]
    torch.testing.assert_close(first.scores, output().logits[0].softmax(-1)[[0, 1], [0, 1]])
    assert second.labels.tolist() == [1, 0]
    assert second.scores[1] < 1e-6
