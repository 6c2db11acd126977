import pytest
import torch

from visattn.backbones import ResNetD, TimmBackbone, VisionTransformer
from visattn.heads import ObjectDetector, RtDetrHead
from visattn.heads.hybrid_encoder import HybridEncoder

tiny = {"encoder_dim": 20, "encoder_heads": 5, "encoder_hidden_dim": 28, "dim": 24, "num_heads": 3, "hidden_dim": 36}
tiny |= {"depth": 2, "num_queries": 13}


def detector(**options):
    torch.manual_seed(0)
    backbone = ResNetD(64, depths=(1, 1, 1, 1), widths=(8, 12, 16, 20), stem_width=8)
    return ObjectDetector(backbone, RtDetrHead(backbone.channels, backbone.strides, 7, **(tiny | options)))


def batch(sizes=((64, 96), (41, 67)), height=64, width=96):
    """Images in the upper left corners, with one object each but the last, which has three."""
    torch.manual_seed(1)
    images = torch.zeros(len(sizes), 3, height, width)
    padding = torch.ones(len(sizes), height, width, dtype=torch.bool)
    targets = []
    for index, (h, w) in enumerate(sizes):
        images[index, :, :h, :w] = torch.rand(3, h, w)
        padding[index, :h, :w] = False
        count = 3 if index == len(sizes) - 1 else 1
        start = torch.rand(count, 2) * torch.tensor([w, h]) / 2
        boxes = torch.cat([start, start + torch.tensor([w, h]) / 3], dim=1)
        targets.append({"boxes": boxes, "labels": torch.randint(7, (count,))})
    return images, padding, torch.tensor(sizes), targets


def test_shapes():
    images, padding, *_ = batch()
    output = detector().eval()(images, padding)
    assert output.logits.shape == (2, 13, 7)
    assert output.boxes.shape == (2, 13, 4)
    assert output.auxiliary == ()
    auxiliary = detector().train()(images, padding).auxiliary
    assert [(tuple(logits.shape), tuple(boxes.shape)) for logits, boxes in auxiliary] == [((2, 13, 7), (2, 13, 4))] * 2


@torch.no_grad()
def test_small_images_have_as_many_queries_as_cells():
    model = detector(num_queries=1000).eval()
    assert model(torch.rand(2, 3, 64, 32)).logits.shape == (2, 32 + 8 + 2, 7)


@torch.no_grad()
def test_what_stands_in_the_padding_of_maps_does_not_matter():
    model = detector().eval()
    images, padding, sizes, _ = batch()
    maps = model.features(images).maps
    expected = model.head(maps, padding, sizes)
    disturbed = [one.clone() for one in maps]
    for one, stride in zip(disturbed, (8, 16, 32), strict=True):
        one[1, :, -(-41 // stride) :] = 9.0
        one[1, :, :, -(-67 // stride) :] = -9.0
    output = model.head(disturbed, padding, sizes)
    torch.testing.assert_close(output.logits, expected.logits)
    torch.testing.assert_close(output.boxes, expected.boxes)
    maps[2][1, :, 0, 0] += 1.0  # within the image
    assert not torch.allclose(model.head(maps, padding, sizes).logits, expected.logits)


@torch.no_grad()
def test_no_query_comes_from_padding():
    model = detector(num_queries=21).eval()
    images, padding, *_ = batch(((32, 32), (64, 96)))
    memory = model.head.encode(model.features(images).maps, padding)
    assert (~memory.padding).sum(1).tolist() == [16 + 4 + 1, 96 + 24 + 6]
    for parameter in model.head.selection.box_head[-1].parameters():
        parameter.zero_()  # so that boxes are the anchors
    centers = model.head.selection(memory).boxes[0, :, :2] * torch.tensor([96, 64])  # in pixels
    assert (centers < 32).all()


@torch.no_grad()
def test_boxes_are_parts_of_the_image_without_padding():
    model = detector().eval()
    images, padding, sizes, _ = batch()
    maps = model.features(images).maps
    memory = model.head.encode(maps, padding)
    selected = model.head.selection(memory)
    [(_, boxes)] = model.head.decoder(selected.queries, selected.boxes, memory)  # parts of the batch's height and width
    output = model.head(maps, padding, sizes)
    torch.testing.assert_close(output.boxes[0], boxes[0])
    torch.testing.assert_close(output.boxes[1], boxes[1] * torch.tensor([96 / 67, 64 / 41] * 2))
    found = model.head.predict(maps, padding, sizes, max_detections=1000)[1]
    best = output.logits[1].amax(1).argmax()
    center, size = (output.boxes[1, best].view(2, 2) * torch.tensor([67, 41])).unbind()
    torch.testing.assert_close(found.boxes[0], torch.cat([center - size / 2, center + size / 2]))


@torch.no_grad()
def test_predictions_are_the_surest_pairs_of_query_and_class():
    model = detector().eval()
    images, padding, sizes, _ = batch()
    maps = model.features(images).maps
    probabilities = model.head(maps, padding, sizes).logits.sigmoid()
    for found, expected in zip(model.head.predict(maps, padding, sizes, max_detections=17), probabilities, strict=True):
        torch.testing.assert_close(found.scores, expected.flatten().sort(descending=True).values[:17])
        assert found.labels.tolist() == (expected.flatten().argsort(descending=True)[:17] % 7).tolist()


@pytest.mark.parametrize("objects", [True, False])
def test_the_loss_is_finite_and_reaches_every_parameter(objects):
    model = detector().train()
    images, padding, sizes, targets = batch()
    if not objects:
        targets = [{"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.long)} for _ in targets]
    losses = model.head.loss(model.features(images).maps, padding, sizes, targets)
    assert losses.keys() == {"class", "l1", "giou", "auxiliary"} | ({"denoising"} if objects else set())
    assert all(value.ndim == 0 and value.isfinite() for value in losses.values())
    sum(losses.values()).backward()
    without = {name for name, parameter in model.named_parameters() if parameter.grad is None}
    assert without == set()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


def test_denoising_queries_are_not_seen_by_the_others():
    """In evaluation mode but for the head's own, so that batch norms and queries are the same."""
    images, padding, sizes, targets = batch()
    losses = []
    for count in (0, 40):
        model = detector(denoising_queries=40).eval()
        model.head.training = model.head.decoder.training = True
        model.head.denoising_queries = count
        if count == 0:
            model.head.label_embedding = None
        losses.append(model.head.loss(model.features(images).maps, padding, sizes, targets))
    without, with_denoising = losses
    assert "denoising" in with_denoising
    for name, value in without.items():
        torch.testing.assert_close(with_denoising[name], value)


def test_training_finds_the_objects():
    model = detector(num_queries=7).train()
    images, padding, sizes, targets = batch()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    history = []
    for _ in range(60):
        losses = model.head.loss(model.features(images).maps, padding, sizes, targets)
        total = sum(losses.values())
        optimizer.zero_grad()
        total.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        optimizer.step()
        history.append((losses["l1"] + losses["giou"]).item())
    assert history[-1] < 0.5 * history[0]


@pytest.mark.parametrize(
    ("backbone", "options"),
    [
        (VisionTransformer(64, 16, dim=24, depth=1, num_heads=2), {}),
        (ResNetD(64, (1, 1), (8, 12), stem_width=8, out_stages=(0, 1)), {"levels": (2, 3)}),
        (TimmBackbone("resnet18", 64), {}),
    ],
    ids=["vit", "two stages", "timm"],
)
@torch.no_grad()
def test_any_backbone_serves(backbone, options):
    head = RtDetrHead(backbone.channels, backbone.strides, 3, **(tiny | options)).eval()
    output = ObjectDetector(backbone.eval(), head)(torch.rand(2, 3, 64, 96))
    assert output.logits.shape == (2, 13, 3)


@torch.no_grad()
def test_folding_does_not_change_the_encoder():
    torch.manual_seed(0)
    encoder = HybridEncoder((8, 12), 20, num_heads=2, hidden_dim=28, expansion=0.5).eval()
    for tensor in encoder.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(torch.rand_like(tensor) + 0.1)
    maps = [torch.rand(2, 8, 10, 14), torch.rand(2, 12, 5, 7)]
    folded = encoder(maps)
    with torch.enable_grad():
        expected = encoder(maps)
    for one, other in zip(folded, expected, strict=True):
        torch.testing.assert_close(one, other)


def test_points_must_say_every_level():
    with pytest.raises(ValueError, match=r"points \(4, 4\) must be one number for each of the levels \(3, 4, 5\)"):
        RtDetrHead((8, 12, 16), (8, 16, 32), 7, points=(4, 4))


def test_more_points_may_lie_on_some_levels():
    images, padding, *_ = batch()
    assert detector(points=(5, 3, 2)).eval()(images, padding).logits.isfinite().all()
