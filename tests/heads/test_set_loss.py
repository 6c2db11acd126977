"""The loss of a set: class, L1 and generalised IoU of matched queries, in every layer."""

import multiprocessing
import socket

import pytest
import torch
from torch import distributed
from torch.nn import functional
from torchvision.ops import box_convert, generalized_box_iou_loss, sigmoid_focal_loss

from tests.heads.test_matching import boxes, objects, objects_of
from visattn.heads.detections import DetectionOutput
from visattn.heads.matching import match
from visattn.heads.set_loss import SetLoss, objects_per_process


def output(layers=3, batch=3, queries=7, classes=5):
    torch.manual_seed(0)
    logits, found = torch.randn(layers, batch, queries, classes), boxes(layers, batch, queries)
    leaves = (logits.requires_grad_(), found.requires_grad_())
    return DetectionOutput(logits[-1], found[-1], tuple(zip(logits[:-1], found[:-1], strict=True))), leaves


def test_parts_are_those_of_torchvision_over_the_matched_queries():
    (found, (logits, found_boxes)), targets = output(), objects((3, 0, 2), most=3)
    losses = SetLoss(class_weight=2.0, l1_weight=5.0, giou_weight=3.0)(found, targets)
    assignment = match(logits[-1:], found_boxes[-1:], targets, giou_cost=2.0)[0]
    wanted, l1, giou = torch.zeros(3, 7, 5), 0.0, 0.0
    for image, query in torch.nonzero(assignment >= 0).tolist():
        item = assignment[image, query]
        wanted[image, query, targets.labels[image, item]] = 1
        pair = found.boxes[image, query], targets.boxes[image, item]
        l1 += functional.l1_loss(*pair, reduction="sum")
        giou += generalized_box_iou_loss(*(box_convert(box, "cxcywh", "xyxy") for box in pair))
    torch.testing.assert_close(losses["class"], 2 * sigmoid_focal_loss(found.logits, wanted, reduction="sum") / 5)
    torch.testing.assert_close(losses["l1"], 5 * l1 / 5)
    torch.testing.assert_close(losses["giou"], 3 * giou / 5)


@pytest.mark.parametrize("classification", ["focal", "varifocal", "softmax"])
def test_auxiliary_losses_are_those_of_each_earlier_layer_by_itself(classification):
    (found, _), targets, loss = output(), objects((3, 1, 2), most=3, classes=4), SetLoss(classification=classification)
    alone = [sum(loss(DetectionOutput(*layer), targets).values()) for layer in found.auxiliary]
    torch.testing.assert_close(loss(found, targets)["auxiliary"], sum(alone))


def test_softmax_weighs_no_object_down():
    (found, _), targets = output(layers=1), objects_of((0, 0, 0))
    losses = SetLoss(classification="softmax", class_weight=1.0, no_object_weight=0.1)(found, targets)
    classes = torch.full((21,), 4)
    torch.testing.assert_close(losses["class"], functional.cross_entropy(found.logits.flatten(0, 1), classes))
    targets = objects((3, 1, 2), most=3, classes=4)
    assignment = match(found.logits[None], found.boxes[None], targets, softmax=True)[0]
    classes = torch.where(assignment < 0, 4, targets.labels.gather(1, assignment.clamp(min=0)))
    weights = torch.tensor([1.0, 1.0, 1.0, 1.0, 0.1])
    expected = functional.cross_entropy(found.logits.flatten(0, 1), classes.flatten(), weights)
    losses = SetLoss(classification="softmax", class_weight=1.0)(found, targets)
    torch.testing.assert_close(losses["class"], expected)


def test_varifocal_wants_the_iou_of_the_box():
    targets = objects((1,), most=1)
    logits = torch.full((1, 1, 1, 5), -30.0).requires_grad_()
    for shift, probability, too_sure in ((0.0, 0.95, False), (0.5, 0.28, False), (0.5, 0.38, True)):
        found = targets.boxes[None] + targets.boxes[None, ..., 2:].repeat(1, 1, 1, 2) * torch.tensor([shift, 0, 0, 0])
        logits.data[..., targets.labels[0, 0]] = torch.tensor(probability).logit()
        losses = SetLoss(classification="varifocal")(DetectionOutput(logits[0], found[0]), targets)
        slope = torch.autograd.grad(losses["class"], logits)[0][0, 0, 0, targets.labels[0, 0]]
        assert (slope > 0) == too_sure


@pytest.mark.parametrize("classification", ["focal", "varifocal", "softmax"])
@pytest.mark.parametrize("batch", [2, 0])
def test_without_objects_all_is_finite_and_boxes_are_left_alone(classification, batch):
    found, leaves = output(batch=batch)
    losses = SetLoss(classification=classification)(found, objects_of((0,) * batch))
    total = sum(losses.values())
    assert total.isfinite()
    assert losses["l1"] == losses["giou"] == 0
    of_logits, of_boxes = torch.autograd.grad(total, leaves)
    assert of_logits.isfinite().all()
    assert not of_boxes.any()


def test_degenerate_boxes_have_finite_losses_and_gradients():
    (found, leaves), targets = output(), objects((3, 0, 2), most=3)
    targets.boxes[0, :, 2:] = 0
    gradients = torch.autograd.grad(sum(SetLoss()(found, targets).values()), leaves)
    assert all(gradient.isfinite().all() for gradient in gradients)


def test_an_unknown_classification_is_refused():
    with pytest.raises(ValueError, match="classification 'hinge' is unknown; choose focal, varifocal or softmax"):
        SetLoss(classification="hinge")


def one_of_two_processes(rank, port, results):
    distributed.init_process_group("gloo", f"tcp://localhost:{port}", rank=rank, world_size=2)
    results.put((rank, objects_per_process(objects((rank * 3, 2), most=3)).item()))
    distributed.destroy_process_group()


def test_processes_divide_by_the_same_number_of_objects():
    context = multiprocessing.get_context("fork")
    results, port = context.SimpleQueue(), free_port()
    processes = [context.Process(target=one_of_two_processes, args=(rank, port, results)) for rank in range(2)]
    for process in processes:
        process.start()
    found = dict(results.get() for _ in processes)
    for process in processes:
        process.join()
    assert found == {0: 3.5, 1: 3.5}


def free_port():
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]
