"""Queries are matched to objects at the least cost."""

import itertools

import pytest
import torch
from torchvision.ops import box_convert, generalized_box_iou

from visattn.heads.matching import SetTargets, focal_cost, generalized_iou, match, set_targets


def boxes(*shape):
    return torch.cat([0.2 + 0.6 * torch.rand(*shape, 2), 0.05 + 0.3 * torch.rand(*shape, 2)], dim=-1)


def objects(counts, most, classes=5):
    present = torch.arange(most) < torch.tensor(counts)[:, None]
    return SetTargets(torch.randint(classes, (len(counts), most)) * present, boxes(len(counts), most), present)


def cost(logits, found, targets, image, query, item, softmax):
    """Of one query and one object, by torchvision."""
    label = targets.labels[image, item]
    if softmax:
        of_class = -2 * logits.softmax(-1)[label]
    else:
        p = logits.sigmoid()[label]
        of_class = 2 * (-0.25 * (1 - p) ** 2 * p.log() + 0.75 * p**2 * (1 - p).log())
    truth = targets.boxes[image, item]
    corners = [box_convert(box[None], "cxcywh", "xyxy") for box in (found, truth)]
    return of_class + 5 * (found - truth).abs().sum() - 2 * generalized_box_iou(*corners)[0, 0]


@pytest.mark.parametrize("softmax", [False, True])
def test_no_other_assignment_costs_less(softmax):
    torch.manual_seed(0)
    targets = objects((3, 0, 2), most=3)
    logits, found = torch.randn(2, 3, 5, 7), boxes(2, 3, 5)
    assignment = match(logits, found, targets, softmax=softmax)
    assert assignment.shape == (2, 3, 5)
    for layer, image in itertools.product(range(2), range(3)):
        count = int(targets.present[image].sum())
        table = torch.tensor(
            [
                [
                    cost(logits[layer, image, q], found[layer, image, q], targets, image, q, n, softmax)
                    for n in range(count)
                ]
                for q in range(5)
            ]
        ).reshape(5, count)
        least = min(
            sum(table[q, n].item() for n, q in enumerate(queries))
            for queries in itertools.permutations(range(5), count)
        )
        chosen = [(q, n) for q, n in enumerate(assignment[layer, image].tolist()) if n >= 0]
        assert sorted(n for _, n in chosen) == list(range(count))
        assert sum(table[q, n].item() for q, n in chosen) == pytest.approx(least, abs=1e-4)


def test_where_there_are_more_objects_than_queries_each_query_gets_one():
    torch.manual_seed(0)
    assignment = match(torch.randn(1, 1, 3, 5), boxes(1, 1, 3), objects((7,), most=7))
    assert len(set(assignment.flatten().tolist()) - {-1}) == 3


def test_without_objects_nothing_is_matched():
    for counts in ((0, 0), ()):
        assignment = match(torch.randn(2, len(counts), 3, 5), boxes(2, len(counts), 3), objects_of(counts))
        assert assignment.shape == (2, len(counts), 3)
        assert (assignment == -1).all()


def objects_of(counts):
    targets = [{"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.long)} for _ in counts]
    return set_targets(targets, torch.full((len(counts), 2), 32))


def test_numbers_of_a_diverged_run_do_not_stop_the_matching():
    torch.manual_seed(0)
    logits = torch.randn(1, 1, 3, 5)
    logits[0, 0, 1] = float("nan")
    assignment = match(logits, boxes(1, 1, 3), objects((2,), most=2))
    assert assignment[0, 0, 1] == -1
    assert sorted(assignment[0, 0, [0, 2]].tolist()) == [0, 1]


def test_targets_become_parts_of_their_own_image():
    targets = [
        {"boxes": torch.tensor([[10.0, 20.0, 30.0, 60.0]]), "labels": torch.tensor([3])},
        {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.long)},
        {"boxes": torch.tensor([[0.0, 0.0, 50.0, 20.0], [25.0, 10.0, 50.0, 20.0]]), "labels": torch.tensor([0, 1])},
    ]
    found = set_targets(targets, torch.tensor([[80, 40], [32, 32], [20, 50]]))
    assert found.labels.tolist() == [[3, 0], [0, 0], [0, 1]]
    assert found.present.tolist() == [[True, False], [False, False], [True, True]]
    torch.testing.assert_close(found.boxes[0, 0], torch.tensor([0.5, 0.5, 0.5, 0.5]))
    torch.testing.assert_close(found.boxes[2], torch.tensor([[0.5, 0.5, 1.0, 1.0], [0.75, 0.75, 0.5, 0.5]]))


def test_generalized_iou_is_torchvisions():
    torch.manual_seed(0)
    some, others = boxes(7), boxes(11)
    expected = generalized_box_iou(box_convert(some, "cxcywh", "xyxy"), box_convert(others, "cxcywh", "xyxy"))
    torch.testing.assert_close(generalized_iou(some[:, None], others), expected)


def test_boxes_without_area_have_finite_numbers_and_gradients():
    flat = torch.tensor([[0.5, 0.5, 0.0, 0.0], [0.5, 0.5, 0.3, 0.0]], requires_grad=True)
    value = generalized_iou(flat[:, None], flat[None])
    gradient = torch.autograd.grad(value.sum(), flat)[0]
    assert value.isfinite().all()
    assert gradient.isfinite().all()


def test_the_focal_cost_is_finite_for_sure_logits():
    assert focal_cost(torch.tensor([-200.0, 200.0]), 0.25, 2.0).isfinite().all()
