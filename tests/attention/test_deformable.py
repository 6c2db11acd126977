"""Multi-scale deformable attention against a plain loop over samples."""

import math

import pytest
import torch
from torch.nn import functional

from visattn.attention import DeformableAttention, deformable_attention, deformable_attention_weights

grids = ((7, 5), (3, 2), (1, 1))
keys = 42


def inputs(dtype=torch.float64, samples=6, spread=1.0, batch=2, queries=11, heads=3, head_dim=5):
    torch.manual_seed(0)
    value = torch.randn(batch, keys, heads, head_dim, dtype=dtype, requires_grad=True)
    locations = (0.5 + spread * (torch.rand(batch, queries, heads, samples, 2, dtype=dtype) - 0.5)).requires_grad_()
    weights = torch.rand(batch, queries, heads, samples, dtype=dtype).softmax(dim=-1).requires_grad_()
    return value, locations, weights


def plainly(value, locations, weights, points):
    """Each sample by itself: the cells of the map around it, each weighted by how near it is along both axes."""
    batch, queries, heads, samples, _ = locations.shape
    maps = [level for level, count in enumerate(points) for _ in range(count)]
    first = [sum(height * width for height, width in grids[:level]) for level in range(len(grids))]
    result = value.new_zeros(batch, queries, heads, value.shape[-1])
    for b, q, h, s in torch.cartesian_prod(*map(torch.arange, (batch, queries, heads, samples))).tolist():
        height, width = grids[maps[s]]
        x, y = locations[b, q, h, s, 0] * width - 0.5, locations[b, q, h, s, 1] * height - 0.5
        for row in range(height):
            for column in range(width):
                share = max(1 - abs(float(x) - column), 0) * max(1 - abs(float(y) - row), 0)
                cell = value[b, first[maps[s]] + row * width + column, h]
                result[b, q, h] += share * weights[b, q, h, s] * cell
    return result


@pytest.mark.parametrize("points", [(2, 2, 2), (3, 1, 2), (0, 5, 1)])
@pytest.mark.parametrize("spread", [0.5, 1.6])
def test_every_sample_is_interpolated_among_its_four_cells_and_is_zero_beyond_the_map(points, spread):
    value, locations, weights = (tensor.detach() for tensor in inputs(spread=spread))
    expected = plainly(value, locations, weights, points)
    torch.testing.assert_close(deformable_attention(value, locations, weights, grids, points), expected)
    dense = deformable_attention_weights(locations, weights, grids, points)
    torch.testing.assert_close((dense @ value.transpose(1, 2)).transpose(1, 2), expected)


def test_maps_have_equally_many_samples_unless_told_otherwise():
    tensors = inputs()
    torch.testing.assert_close(
        deformable_attention(*tensors, grids), deformable_attention(*tensors, grids, (2, 2, 2)), rtol=0, atol=0
    )


def test_a_sample_at_a_cells_center_gives_that_cell():
    value, _, _ = inputs()
    y, x = torch.meshgrid(torch.arange(7).double(), torch.arange(5).double(), indexing="ij")
    centers = torch.stack([(x + 0.5) / 5, (y + 0.5) / 7], dim=-1).reshape(1, 35, 1, 1, 2).expand(2, -1, 3, -1, -1)
    seen = deformable_attention(value, centers, torch.ones(2, 35, 3, 1, dtype=torch.float64), grids, (1, 0, 0))
    torch.testing.assert_close(seen, value[:, :35])


def test_gradients_are_those_of_finite_differences():
    value, locations, weights = inputs(spread=1.4, queries=3, heads=2, head_dim=2)
    assert torch.autograd.gradcheck(
        lambda *tensors: deformable_attention(*tensors, grids), (value, locations, weights), eps=1e-7, atol=1e-5
    )


def test_nearest_sampling_takes_the_cell_whose_numbers_are_nearest():
    value, _, _ = inputs(batch=1, heads=1)
    locations = torch.tensor([[0.0, 0.0], [0.29, 0.22], [0.31, 0.2], [1.0, 1.0], [-3.0, 9.0]], dtype=torch.float64)
    seen = deformable_attention(
        value,
        locations.view(1, 5, 1, 1, 2),
        torch.ones(1, 5, 1, 1, dtype=torch.float64),
        grids,
        (1, 0, 0),
        sampling="nearest",
    )
    torch.testing.assert_close(seen[0, :, 0], value[0, [0, 2 * 5 + 1, 1 * 5 + 2, 34, 30], 0])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_equals_float_within_its_rounding(dtype):
    exact = inputs(torch.float32)
    rounded = [tensor.detach().to(dtype).requires_grad_() for tensor in exact]
    output = deformable_attention(*rounded, grids)
    assert output.dtype == dtype
    tolerance = {"rtol": 0.05, "atol": 0.05}
    torch.testing.assert_close(
        output.float(), deformable_attention(*(one.float() for one in rounded), grids), **tolerance
    )
    given = torch.autograd.grad(output.float().square().sum(), rounded[::2])
    expected = torch.autograd.grad(deformable_attention(*exact, grids).square().sum(), exact[::2])
    for one, other in zip(given, expected, strict=True):
        torch.testing.assert_close(one.float(), other, rtol=0.1, atol=0.3)


def test_an_empty_batch_and_no_queries_give_empty_results_and_gradients():
    for batch, queries in ((0, 5), (2, 0)):
        leaves = inputs(torch.float32, batch=batch, queries=queries)
        output = deformable_attention(*leaves, grids)
        assert output.shape == (batch, queries, 3, 5)
        for gradient in torch.autograd.grad(output.sum(), leaves):
            assert not gradient.any()


def test_images_of_a_batch_do_not_touch_each_other():
    tensors = inputs(batch=3)
    alone = [deformable_attention(*(tensor[index : index + 1] for tensor in tensors), grids) for index in range(3)]
    torch.testing.assert_close(deformable_attention(*tensors, grids), torch.cat(alone))


def test_what_does_not_fit_is_refused():
    value, locations, weights = inputs()
    with pytest.raises(ValueError, match="41 keys don't fill maps of 7x5, 3x2, 1x1, which have 42 cells"):
        deformable_attention(value[:, 1:], locations, weights, grids)
    with pytest.raises(ValueError, match="say points="):
        deformable_attention(value, locations[..., :5, :], weights[..., :5], grids)
    with pytest.raises(ValueError, match=r"points \(2, 2, 1\) don't say"):
        deformable_attention(value, locations, weights, grids, (2, 2, 1))
    with pytest.raises(ValueError, match="sampling 'cubic' is unknown"):
        deformable_attention(value, locations, weights, grids, sampling="cubic")
    with pytest.raises(ValueError, match="5 heads don't divide 12 channels"):
        DeformableAttention(12, 5)


def module_inputs(coordinates=4):
    torch.manual_seed(0)
    module = DeformableAttention(12, 3, levels=3, points=2)
    for layer in (module.offsets, module.weights):
        torch.nn.init.normal_(layer.weight, std=0.3)
    queries, context = torch.randn(2, 11, 12, requires_grad=True), torch.randn(2, keys, 12, requires_grad=True)
    return module, queries, torch.rand(2, 11, 3, coordinates), context


@pytest.mark.parametrize("coordinates", [2, 4])
def test_offsets_are_counted_in_cells_from_points_and_in_sizes_from_boxes(coordinates):
    module, queries, reference, context = module_inputs(coordinates)
    offsets = module.offsets(queries).view(2, 11, 3, 3, 2, 2)
    anchors = reference[:, :, None, :, None]
    sizes = torch.tensor([[5, 7], [2, 3], [1, 1]])[:, None]
    scale = 1 / sizes if coordinates == 2 else anchors[..., 2:] / 4
    weights = module.weights(queries).view(2, 11, 3, 6).softmax(-1)
    seen = deformable_attention(
        module.value(context).view(2, keys, 3, 4), (anchors[..., :2] + offsets * scale).flatten(3, 4), weights, grids
    )
    torch.testing.assert_close(module(queries, reference, context, grids), module.projection(seen.flatten(2)))


def test_heads_begin_by_looking_in_directions_of_their_own_ever_farther():
    module = DeformableAttention(16, 4, levels=2, points=3)
    start = module.offsets.bias.detach().view(4, 2, 3, 2)
    for head, (x, y) in enumerate(((1, 0), (0, 1), (-1, 0), (0, -1))):
        for step in range(3):
            expected = torch.tensor([x, y], dtype=torch.float) * (step + 1)
            torch.testing.assert_close(start[head, :, step], expected.expand(2, 2), atol=1e-5, rtol=0)


def test_padding_is_never_seen():
    module, queries, reference, context = module_inputs()
    padding = torch.zeros(2, keys, dtype=torch.bool)
    padding[0, 20:35] = padding[1, -1] = True
    other = torch.where(padding[..., None], torch.full_like(context, math.pi), context)
    torch.testing.assert_close(
        module(queries, reference, context, grids, padding), module(queries, reference, other, grids, padding)
    )
    assert not torch.allclose(module(queries, reference, context, grids), module(queries, reference, other, grids))


def test_compiled_modules_equal_eager_ones_in_output_and_gradients():
    module, queries, reference, context = module_inputs()
    leaves = [queries, context, *module.parameters()]
    expected = module(queries, reference, context, grids)
    torch.compiler.reset()
    output = torch.compile(module, fullgraph=True, backend="aot_eager")(queries, reference, context, grids)
    torch.testing.assert_close(output, expected)
    weight = torch.randn_like(output)
    torch.testing.assert_close(
        torch.autograd.grad(output, leaves, weight), torch.autograd.grad(expected, leaves, weight), rtol=1e-4, atol=1e-5
    )


def test_it_equals_grid_sample():
    value, locations, weights = inputs(torch.float32, spread=1.3)
    output, start = 0, 0
    for level, (height, width) in enumerate(grids):
        cells = value[:, start : start + height * width]
        maps = cells.permute(0, 2, 3, 1).reshape(6, 5, height, width)
        places = 2 * locations[..., 2 * level : 2 * level + 2, :].transpose(1, 2).reshape(6, 11, 2, 2) - 1
        sampled = functional.grid_sample(maps, places, align_corners=False)  # (6, 5, 11, 2)
        share = weights[..., 2 * level : 2 * level + 2].transpose(1, 2).reshape(6, 1, 11, 2)
        output = output + (sampled * share).sum(-1).view(2, 3, 5, 11).permute(0, 3, 1, 2)
        start += height * width
    torch.testing.assert_close(deformable_attention(value, locations, weights, grids), output)


@pytest.mark.parametrize("sampling", ["bilinear", "nearest"])
def test_some_maps_may_have_more_points_than_others(sampling):
    """Around a box the offsets of each map count as parts of the box, as many as the map has points to its whole."""
    torch.manual_seed(0)
    module = DeformableAttention(12, 3, levels=2, points=(3, 2), offset_scale=0.7, sampling=sampling).double()
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    grids = ((5, 7), (3, 4))
    queries, context = torch.randn(2, 11, 12).double(), torch.randn(2, 47, 12).double()
    box = torch.rand(2, 11, 1, 4).double()
    value = module.value(context).view(2, 47, 3, 4)
    weights = module.weights(queries).view(2, 11, 3, 5).softmax(-1)
    offsets = (
        module.offsets(queries).view(2, 11, 3, 5, 2) * torch.tensor([0.7 / 3] * 3 + [0.7 / 2] * 2)[:, None].double()
    )
    locations = box[:, :, :, None, :2] + offsets * box[:, :, :, None, 2:]
    expected = deformable_attention(value, locations, weights, grids, (3, 2), sampling=sampling).flatten(2)
    expected = module.projection(expected)
    torch.testing.assert_close(module(queries, box, context, grids), expected)
    torch.testing.assert_close(module(queries, box.expand(-1, -1, 2, -1), context, grids), expected)
    module.record = lambda weights, keys: None
    torch.testing.assert_close(module(queries, box, context, grids), expected)


def test_points_that_do_not_fit_the_maps_are_an_error():
    with pytest.raises(ValueError, match=r"points \(3, 2\) must be one number for each of 3 maps"):
        DeformableAttention(12, 3, levels=3, points=(3, 2))
