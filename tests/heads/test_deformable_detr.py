"""Deformable DETR: queries of every kind on the maps of any backbone, padding, denoising, and that it learns."""

from datetime import timedelta

import pytest
import torch
from torch import distributed
from torch.nn.parallel import DistributedDataParallel

from tests.heads.test_set_loss import free_port
from visattn.heads import DeformableDetrHead
from visattn.heads.deformable_queries import InputProjection, inverse_sigmoid
from visattn.heads.padded_maps import image_part, map_padding, map_positions, waves
from visattn.interpret import record_attention

small = {"dim": 32, "num_heads": 2, "hidden_dim": 20, "decoder_depth": 2, "num_queries": 11, "points": 3}
published = {"neck": "projection", "query_selection": "static", "denoising": 0}
kinds = {
    "mixed": {},
    "mixed, projection": {"neck": "projection", "levels": (3, 4, 5, 6)},
    "static": published | {"box_refinement": False},
    "static, refined": published,
    "pure": published | {"query_selection": "pure", "class_agnostic_proposals": True},
    "without encoder": {"encoder_depth": 0},
    "varifocal": {"classification": "varifocal"},
}


def head_of(name="mixed", channels=(5, 7, 13), strides=(8, 16, 32), num_classes=3, **options):
    torch.manual_seed(0)
    head = DeformableDetrHead(channels, strides, num_classes, **small | kinds[name] | options)
    for module in head.modules():  # as after some training: offsets and corrections that depend on what is seen
        if isinstance(module, torch.nn.Linear) and not module.weight.any():
            torch.nn.init.normal_(module.weight, std=0.1)
    return head


def maps_of(height=96, width=64, channels=(5, 7, 13), strides=(8, 16, 32), batch=2):
    generator = torch.Generator().manual_seed(1)
    return tuple(
        torch.randn(batch, count, -(-height // stride), -(-width // stride), generator=generator)
        for count, stride in zip(channels, strides, strict=True)
    )


def inputs(height=96, width=64, batch=2, **options):
    padding = torch.zeros(batch, height, width, dtype=torch.bool)
    return maps_of(height, width, batch=batch, **options), padding, torch.tensor([[height, width]]).expand(batch, 2)


def targets_of(*counts):
    generator = torch.Generator().manual_seed(2)
    targets = []
    for count in counts:
        start = torch.rand(count, 2, generator=generator) * 40
        boxes = torch.cat([start, start + 5 + 15 * torch.rand(count, 2, generator=generator)], dim=1)
        targets.append({"boxes": boxes, "labels": torch.randint(3, (count,), generator=generator)})
    return targets


@pytest.mark.parametrize("name", kinds)
def test_every_query_has_logits_and_a_box_in_every_layer(name):
    head = head_of(name).train()
    output = head(*inputs())
    assert output.logits.shape == (2, 11, 3)
    assert output.boxes.shape == (2, 11, 4)
    assert ((output.boxes > 0) & (output.boxes <= 1)).all()
    assert len(output.auxiliary) == (1 if "static" in name else 2)
    evaluated = head.eval()(*inputs())
    assert evaluated.auxiliary == ()
    torch.testing.assert_close(evaluated.boxes, output.boxes)


@pytest.mark.parametrize("name", kinds)
def test_all_parameters_are_trained(name):
    head = head_of(name).train()
    sum(head.loss(*inputs(), targets_of(3, 1)).values()).backward()
    for key, parameter in head.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.isfinite().all(), key


@pytest.mark.parametrize("name", ["mixed", "static", "pure"])
@pytest.mark.parametrize("batch", [2, 0])
def test_losses_are_finite_without_objects_and_every_parameter_takes_part(name, batch):
    head = head_of(name).train()
    sum(head.loss(*inputs(batch=batch), targets_of(*(0,) * batch)).values()).backward()
    for key, parameter in head.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.isfinite().all(), key


@pytest.mark.parametrize(
    ("channels", "strides"), [((13,), (16,)), ((13,), (14,)), ((3, 5, 7, 13), (4, 8, 16, 32)), ((5, 7), (2, 4))]
)
def test_any_backbones_maps_fit(channels, strides):
    head = head_of(channels=channels, strides=strides).eval()
    output = head(*inputs(112, 84, channels=channels, strides=strides))
    assert output.boxes.shape == (2, 11, 4)


@pytest.mark.parametrize("name", ["mixed", "static, refined", "pure"])
def test_padding_is_never_seen(name):
    """Neither what the maps hold there, nor, but for the norms over a whole map, that it is there."""
    head = head_of(name).eval()
    maps, padding, sizes = inputs()
    padding[:, 64:] = padding[:, :, 32:] = True
    sizes = torch.tensor([[64, 32]] * 2)
    output = head(maps, padding, sizes)
    cut = [one[:, :, : 64 // stride, : 32 // stride] for one, stride in zip(maps, (8, 16, 32), strict=True)]
    assert not torch.allclose(output.boxes, head(maps, torch.zeros_like(padding), sizes).boxes)
    if name == "mixed":
        others = [torch.zeros_like(one) for one in maps]
        for one, kept in zip(others, cut, strict=True):
            one[:, :, : kept.shape[2], : kept.shape[3]] = kept
        alone = head(cut, padding[:, :64, :32], sizes)
        padded = head(others, padding, sizes)
        border = (alone.boxes - padded.boxes).abs().median()  # the pyramid's 3x3 kernels see zeros beyond either border
        assert border < 0.05


def test_boxes_of_an_image_do_not_hang_on_the_rest_of_the_batch():
    head = head_of().eval()
    maps, padding, sizes = inputs()
    padding[1, 48:] = True
    sizes[1, 0] = 48
    together = head(maps, padding, sizes)
    for index in range(2):
        alone = head([one[index : index + 1] for one in maps], padding[index : index + 1], sizes[index : index + 1])
        torch.testing.assert_close(alone.boxes[0], together.boxes[index], rtol=1e-4, atol=1e-5)


def test_denoising_queries_change_nothing_for_the_others():
    head = head_of().train()
    maps, padding, sizes = inputs()
    expected = head(maps, padding, sizes)
    losses = head.loss(maps, padding, sizes, targets_of(3, 1))
    assert losses["denoising"] > 0
    alone = head_of(denoising=0).train()
    alone.load_state_dict(head.state_dict())
    without = alone.loss(maps, padding, sizes, targets_of(3, 1))
    for part in ("class", "l1", "giou", "auxiliary"):
        torch.testing.assert_close(losses[part], without[part], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(alone(maps, padding, sizes).boxes, expected.boxes, rtol=1e-4, atol=1e-5)


def test_without_training_only_the_last_layer_is_judged():
    head = head_of().eval()
    assert head.loss(*inputs(), targets_of(3, 1)).keys() == {"class", "l1", "giou"}


def test_fewer_cells_than_queries_make_fewer_queries():
    head = head_of(num_queries=50, levels=(5,)).eval()
    assert head(*inputs()).boxes.shape == (2, 6, 4)


def test_predictions_are_in_pixels_of_each_image():
    maps, padding, _ = inputs()
    padding[1, 32:] = True
    sizes = torch.tensor([[96, 64], [32, 64]])
    head = head_of().eval()
    output = head(maps, padding, sizes)
    found = head.predict(maps, padding, sizes, max_detections=5)
    for index, one in enumerate(found):
        assert one.boxes.shape == (5, 4)
        query = output.logits[index].amax(1).argmax()
        center = output.boxes[index, query, :2] * sizes[index].flip(0)
        torch.testing.assert_close((one.boxes[0, :2] + one.boxes[0, 2:]) / 2, center)


def test_arguments_build_the_same_head():
    head = head_of("pure")
    other = DeformableDetrHead((5, 7, 13), (8, 16, 32), 3, **head.arguments)
    other.load_state_dict(head.state_dict())
    torch.testing.assert_close(other.eval()(*inputs()).boxes, head.eval()(*inputs()).boxes)


def test_recording_gives_weights_over_all_cells_and_the_same_boxes():
    head = head_of().eval()
    expected = head(*inputs()).boxes
    with record_attention(head) as maps:
        recorded = head(*inputs()).boxes
    torch.testing.assert_close(recorded, expected, rtol=1e-4, atol=1e-5)
    cells = 12 * 8 + 6 * 4 + 3 * 2
    assert maps["encoder.0.attention"].shape == (2, 2, cells, cells)
    assert maps["decoder.1.cross_attention"].shape == (2, 2, 11, cells)
    assert maps["decoder.1.attention"].shape == (2, 2, 11, 11)
    assert maps["decoder.1.cross_attention"].sum(-1).max() <= 1 + 1e-5


def test_bfloat16_trains():
    head = head_of().train()
    with torch.autocast("cpu", torch.bfloat16):
        loss = sum(head.loss(*inputs(), targets_of(3, 1)).values())
    loss.backward()
    assert loss.isfinite()


def test_it_learns_to_find_what_it_is_shown():
    head = head_of(denoising=20).train()
    maps, padding, sizes = inputs()
    targets = targets_of(3, 1)
    optimizer = torch.optim.AdamW(head.parameters(), 2e-3)
    for _ in range(90):
        loss = sum(head.loss(maps, padding, sizes, targets).values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    for found, target in zip(head.eval().predict(maps, padding, sizes), targets, strict=True):
        count = len(target["labels"])
        assert (found.scores[:count] > 0.3).all()
        distance = (found.boxes[:count, None] - target["boxes"]).abs().amax(-1)
        distance[found.labels[:count, None] != target["labels"]] = 1000
        assert distance.amin(dim=0).max() < 4  # pixels


def test_options_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="neck 'fpn' is unknown"):
        head_of(neck="fpn")
    with pytest.raises(ValueError, match="query_selection 'random' is unknown"):
        head_of(query_selection="random")
    with pytest.raises(ValueError, match="mixed queries begin with boxes to refine"):
        head_of(box_refinement=False)
    with pytest.raises(ValueError, match="dim 30 must be a multiple of 4"):
        head_of(dim=30)
    with pytest.raises(ValueError, match=r"levels \(2, 3\) mean maps of strides 4, 8.*those of 8, 16, 32"):
        InputProjection((5, 7, 13), (8, 16, 32), 32, (2, 3))
    with pytest.raises(ValueError, match=r"levels \(3, 4, 5\).*those of 16"):
        InputProjection((5,), (16,), 32, (3, 4, 5))


def test_positions_go_from_border_to_border_of_the_image_whatever_its_padding():
    padding = torch.zeros(1, 6, 8, dtype=torch.bool)
    padding[:, 3:] = padding[:, :, 4:] = True
    within = map_positions(padding, 12).view(6, 8, 12)[:3, :4]
    alone = map_positions(padding[:, :3, :4], 12).view(3, 4, 12)
    torch.testing.assert_close(within, alone)
    torch.testing.assert_close(alone[0, :, 6:], waves((torch.arange(4) + 0.5) / 4, 6), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(image_part(padding), torch.tensor([[0.5, 0.5]]))


def test_a_cell_is_padding_where_its_first_pixel_is():
    padding = torch.arange(40)[None, None] >= torch.tensor([40, 17, 1])[:, None, None]
    assert (~map_padding(padding.expand(3, 8, 40), (1, 5))).sum(dim=2).flatten().tolist() == [5, 3, 1]


def test_inverse_sigmoid_is_finite_at_the_ends():
    parts = torch.tensor([0.0, 0.3, 1.0])
    assert inverse_sigmoid(parts).isfinite().all()
    torch.testing.assert_close(inverse_sigmoid(parts).sigmoid(), parts, atol=1e-4, rtol=0)


def train_in_two_processes(rank, port, folder):
    distributed.init_process_group("gloo", f"tcp://localhost:{port}", rank=rank, world_size=2, timeout=timedelta(0, 60))
    head = DistributedDataParallel(LossOnly(head_of().train()))
    counts = (0, 0) if rank else (3, 1)
    sum(head(*inputs(), targets_of(*counts)).values()).backward()
    torch.save([parameter.grad for parameter in head.parameters()], folder / f"{rank}.pt")
    distributed.destroy_process_group()


class LossOnly(torch.nn.Module):
    def __init__(self, head):
        super().__init__()
        self.head = head

    def forward(self, *arguments):
        return self.head.loss(*arguments)


def test_processes_train_together_also_where_one_has_no_objects(tmp_path):
    torch.multiprocessing.spawn(train_in_two_processes, (free_port(), tmp_path), nprocs=2)
    gradients, others = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    assert all(torch.equal(one, other) for one, other in zip(gradients, others, strict=True))
    assert any(one.any() for one in gradients)
