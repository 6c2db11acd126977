import pytest
import torch

from visattn.heads import ConditionalDetrHead, DetrHead
from visattn.interpret import record_attention

channels, strides = (5, 13), (8, 32)
small = {"dim": 24, "num_heads": 3, "encoder_depth": 2, "decoder_depth": 3, "feedforward_dim": 31, "num_queries": 7}
heads = [DetrHead, ConditionalDetrHead]


def head(kind, **options):
    torch.manual_seed(0)
    made = kind(channels, strides, 11, **small | options)
    torch.nn.init.normal_(made.box_head[-1].weight, std=0.2)  # Conditional DETR starts with 0
    return made.eval()


def maps_of(batch, height, width, seed=1):
    generator = torch.Generator().manual_seed(seed)
    fine = torch.randn(batch, 5, 4 * height, 4 * width, generator=generator)
    return fine, torch.randn(batch, 13, height, width, generator=generator)


def padding_of(sizes, height, width):
    padding = torch.ones(len(sizes), height, width, dtype=torch.bool)
    for one, (image_height, image_width) in zip(padding, sizes, strict=True):
        one[:image_height, :image_width] = False
    return padding, torch.tensor(sizes)


def target(boxes, labels):
    return {"boxes": torch.tensor(boxes).reshape(-1, 4), "labels": torch.tensor(labels, dtype=torch.long)}


@pytest.mark.parametrize(("kind", "logits"), [(DetrHead, 12), (ConditionalDetrHead, 11)])
def test_every_query_has_logits_and_a_box_within_the_image(kind, logits):
    output = head(kind)(maps_of(2, 3, 5), *padding_of([(96, 160), (90, 131)], 96, 160))
    assert output.logits.shape == (2, 7, logits)
    assert output.boxes.shape == (2, 7, 4)
    assert output.auxiliary == ()
    assert ((output.boxes > 0) & (output.boxes < 1)).all()


@pytest.mark.parametrize("kind", heads)
def test_earlier_layers_predict_in_training(kind):
    made = head(kind, dropout=0.0)
    given = (maps_of(2, 3, 5), *padding_of([(96, 160), (90, 131)], 96, 160))
    expected, output = made(*given), made.train()(*given)
    assert len(output.auxiliary) == 2
    assert all(logits.shape == expected.logits.shape for logits, _ in output.auxiliary)
    torch.testing.assert_close(output.logits, expected.logits)
    torch.testing.assert_close(output.boxes, expected.boxes)
    assert head(kind, auxiliary_loss=False).train()(*given).auxiliary == ()


@torch.no_grad()
@pytest.mark.parametrize("kind", heads)
def test_padding_is_never_attended(kind):
    made = head(kind)
    fine, coarse = maps_of(2, 3, 5)
    whole = made((fine, coarse), *padding_of([(96, 160)] * 2, 96, 160))
    larger = torch.full((2, 13, 4, 7), 50.0)
    larger[:, :, :3, :5] = coarse
    padded = made((fine, larger), *padding_of([(96, 160)] * 2, 128, 224))
    torch.testing.assert_close(padded.logits, whole.logits, rtol=0, atol=1e-5)
    torch.testing.assert_close(padded.boxes, whole.boxes, rtol=0, atol=1e-5)
    seen = made((fine, larger), *padding_of([(128, 224)] * 2, 128, 224))
    assert not torch.allclose(seen.logits, whole.logits, atol=1e-2)


@torch.no_grad()
@pytest.mark.parametrize("kind", heads)
def test_images_of_a_batch_do_not_see_each_other(kind):
    made, sizes = head(kind), [(96, 160), (64, 131), (33, 97)]
    fine, coarse = maps_of(3, 3, 5)
    together = made((fine, coarse), *padding_of(sizes, 96, 160))
    for index, size in enumerate(sizes):
        alone = made((fine[index : index + 1], coarse[index : index + 1]), *padding_of([size], 96, 160))
        torch.testing.assert_close(together.logits[index], alone.logits[0], rtol=0, atol=1e-5)
        torch.testing.assert_close(together.boxes[index], alone.boxes[0], rtol=0, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("kind", heads)
def test_the_decoders_attention_to_the_image_is_recorded_by_name(kind):
    made = head(kind)
    given = (maps_of(2, 3, 5), *padding_of([(96, 160), (64, 131)], 96, 160))
    expected = made(*given)
    with record_attention(made) as maps:
        output = made(*given)
    torch.testing.assert_close(output.logits, expected.logits, rtol=0, atol=1e-5)
    weights = maps["decoder.2.cross_attention"]
    assert weights.shape == (2, 3, 7, 15)
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 3, 7))
    assert (weights[1].unflatten(-1, (3, 5))[:, :, 2] == 0).all()
    assert (weights[0] > 0).all()
    assert {"encoder.1.attention", "decoder.0.attention"} < maps.keys()


@pytest.mark.parametrize("kind", heads)
def test_predictions_are_sorted_and_in_pixels_of_the_image(kind):
    made = head(kind)
    given = (maps_of(2, 3, 5), *padding_of([(96, 160), (64, 131)], 96, 160))
    found, output = made.predict(*given, max_detections=5), made(*given)
    for index, (height, width) in enumerate([(96, 160), (64, 131)]):
        assert found[index].boxes.shape == (5, 4)
        assert (found[index].scores.diff() <= 0).all()
        assert (found[index].labels < 11).all()
        centers = (found[index].boxes[:, :2] + found[index].boxes[:, 2:]) / 2 / torch.tensor([width, height])
        apart = torch.cdist(centers, output.boxes[index, :, :2])
        assert (apart.amin(dim=1) < 1e-5).all()


def test_no_object_is_no_prediction():
    made = head(DetrHead)
    torch.nn.init.constant_(made.class_head.bias[11:], 9.0)
    found = made.predict(maps_of(2, 3, 5), *padding_of([(96, 160)] * 2, 96, 160))
    assert all(one.labels.max() < 11 and len(one.labels) == 7 and one.scores.max() < 0.1 for one in found)


@pytest.mark.parametrize("kind", heads)
def test_the_loss_reaches_every_weight_and_is_finite_without_objects(kind):
    made = head(kind).train()
    given = (maps_of(2, 3, 5), *padding_of([(96, 160), (64, 131)], 96, 160))
    targets = [target([[10.0, 20.0, 60.0, 90.0], [5.0, 5.0, 40.0, 30.0]], [3, 10]), target([], [])]
    losses = made.loss(*given, targets)
    assert losses.keys() == {"class", "l1", "giou", "auxiliary"}
    sum(losses.values()).backward()
    assert [
        name for name, value in made.named_parameters() if value.grad is None or not value.grad.isfinite().all()
    ] == []
    empty = made.loss(*given, [target([], []), target([], [])])
    assert all(value.isfinite() for value in empty.values())
    assert empty["l1"] == 0
    nothing = made.loss(maps_of(0, 3, 5), *(tensor[:0] for tensor in given[1:]), [])
    assert all(value.isfinite() for value in nothing.values())


@pytest.mark.parametrize("kind", heads)
def test_training_finds_the_objects_of_two_images(kind):
    made = head(kind, dropout=0.0).train()
    given = (maps_of(2, 3, 5), *padding_of([(96, 160), (64, 131)], 96, 160))
    truths = [
        target([[10.0, 20.0, 60.0, 90.0], [100.0, 5.0, 150.0, 30.0]], [3, 7]),
        target([[20.0, 9.0, 120.0, 60.0]], [5]),
    ]
    optimizer = torch.optim.AdamW(made.parameters(), lr=2e-3)
    for _ in range(120):
        optimizer.zero_grad()
        sum(made.loss(*given, truths).values()).backward()
        torch.nn.utils.clip_grad_norm_(made.parameters(), 1.0)
        optimizer.step()
    for found, truth in zip(made.eval().predict(*given), truths, strict=True):
        count = len(truth["labels"])
        assert sorted(found.labels[:count].tolist()) == truth["labels"].tolist()
        order = found.labels[:count].argsort()
        torch.testing.assert_close(found.boxes[:count][order], truth["boxes"], rtol=0, atol=12.0)
        assert found.scores[count - 1] > 2 * found.scores[count]


@pytest.mark.parametrize("kind", heads)
def test_the_arguments_build_the_same_head(kind):
    made = kind(channels, strides, 11, **small, class_weight=3, auxiliary_loss=False)
    again = kind(channels, strides, 11, **made.arguments)
    assert again.arguments == made.arguments
    assert again.arguments["class_weight"] == 3
    again.load_state_dict(made.state_dict())


@pytest.mark.parametrize("kind", heads)
def test_sizes_that_make_no_head_are_errors(kind):
    with pytest.raises(ValueError, match="dim 26 must be a multiple of 4"):
        kind(channels, strides, 11, **small | {"dim": 26})
    with pytest.raises(ValueError, match="decoder_depth 0 and num_queries 7 must be at least 1"):
        kind(channels, strides, 11, **small | {"decoder_depth": 0})
    with pytest.raises(ValueError, match="5 heads don't divide 24 channels"):
        kind(channels, strides, 11, **small | {"num_heads": 5})
