import pytest
import torch

from tests.interpret.small_models import backbones, images_for, model_of
from visattn.attention import NeighborhoodAttention, WindowAttention
from visattn.attention.projected import ProjectedAttention
from visattn.backbones.swin import SwinBlock
from visattn.interpret import record_attention


def attention_modules(model):
    return {name: module for name, module in model.named_modules() if isinstance(module, ProjectedAttention)}


@pytest.mark.parametrize("kind", backbones)
def test_outputs_are_the_same_while_recording(kind):
    model = model_of(kind)
    images = images_for(model)
    with torch.no_grad():
        expected = model(images)
        with record_attention(model):
            torch.testing.assert_close(model(images), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", backbones)
def test_every_module_is_recorded_by_its_name(kind):
    model = model_of(kind)
    with torch.no_grad(), record_attention(model) as maps:
        model(images_for(model))
    modules = attention_modules(model)
    assert maps.keys() == modules.keys()
    for name, weights in maps.items():
        assert weights.shape[:2] == (2, modules[name].num_heads)


@pytest.mark.parametrize("kind", [kind for kind in backbones if "padded" not in kind])
@pytest.mark.parametrize("full", [False, True])
def test_the_weights_of_a_query_sum_to_one(kind, full):
    model = model_of(kind)
    with torch.no_grad(), record_attention(model, full=full) as maps:
        model(images_for(model))
    for weights in maps.values():
        torch.testing.assert_close(weights.sum(dim=3), torch.ones(weights.shape[:3]))


@pytest.mark.parametrize("kind", ["local", "dilated", "hybrid", "swin"])
def test_local_kinds_have_as_many_keys_as_a_neighborhood_or_window(kind):
    model = model_of(kind)
    with torch.no_grad(), record_attention(model) as maps:
        model(images_for(model))
    for name, module in attention_modules(model).items():
        if isinstance(module, NeighborhoodAttention):
            assert maps[name].shape[3] == module.kernel_size[0] * module.kernel_size[1]
        if isinstance(module, WindowAttention):
            assert maps[name].shape[3] == module.window_size[0] * module.window_size[1]


def dense_neighborhood(module, tokens, grid):
    """The softmax over all keys, with a mask drawn key by key."""
    height, width = grid
    qkv = module.qkv(tokens).unflatten(2, (3, module.num_heads, module.head_dim)).permute(2, 0, 3, 1, 4)
    scores = qkv[0] @ qkv[1].transpose(2, 3) * module.head_dim**-0.5  # (batch, heads, N, N)
    (kernel_size, _), (dilation, _) = module.fit(grid)
    table = module.bias_for((kernel_size, kernel_size))

    def keys_along(length, place):
        group = [key for key in range(length) if key % dilation == place % dilation]
        start = min(max(group.index(place) - kernel_size // 2, 0), len(group) - kernel_size)
        return group[start : start + kernel_size]

    added = torch.full(scores.shape[1:], float("-inf"))
    for row in range(height):
        for column in range(width):
            for key_row in keys_along(height, row):
                for key_column in keys_along(width, column):
                    down = (key_row - row) // dilation + kernel_size - 1
                    right = (key_column - column) // dilation + kernel_size - 1
                    added[:, row * width + column, key_row * width + key_column] = table[:, down, right]
    return (scores + added).softmax(dim=3)


@pytest.mark.parametrize("kind", ["local", "dilated", "hybrid"])
def test_full_maps_of_neighborhoods_equal_a_masked_softmax_over_all_keys(kind):
    model = model_of(kind)
    module_of = attention_modules(model)
    name = next(name for name, module in module_of.items() if isinstance(module, NeighborhoodAttention))
    seen = []
    module_of[name].register_forward_pre_hook(lambda module, inputs: seen.append(inputs))
    with torch.no_grad(), record_attention(model, full=True) as maps:
        model(images_for(model))
        torch.testing.assert_close(maps[name], dense_neighborhood(module_of[name], *seen[0]))


def dense_windows(block, tokens, grid):
    """The softmax over all cells of the padded map, queries and keys within one window and one side of the shift."""
    module, (height, width) = block.attention, block.padded(grid)
    cells = block.pad(tokens.unflatten(1, grid))
    qkv = module.qkv(cells.flatten(1, 2)).unflatten(2, (3, module.num_heads, module.head_dim)).permute(2, 0, 3, 1, 4)
    scores = qkv[0] @ qkv[1].transpose(2, 3) * module.head_dim**-0.5  # (batch, heads, padded N, padded N)
    (high, wide), (down, right) = module.fit((height, width))

    def window_of(row, column):
        return (row - down) // high, (column - right) // wide

    added = torch.full(scores.shape[1:], float("-inf"))
    for query in range(height * width):
        for key in range(height * width):
            (row, column), (key_row, key_column) = divmod(query, width), divmod(key, width)
            if window_of(row, column) == window_of(key_row, key_column):
                place = row - key_row + high - 1, column - key_column + wide - 1
                added[:, query, key] = module.relative_position_bias[:, place[0], place[1]]
    weights = (scores + added).softmax(dim=3)
    numbers = block.pad(torch.arange(1, grid[0] * grid[1] + 1).view(1, *grid, 1)).flatten()
    order = [int((numbers == token + 1).nonzero()) for token in range(grid[0] * grid[1])]
    return weights[:, :, order][:, :, :, order]


@pytest.mark.parametrize("kind", ["swin", "padded swin", "swin padded first"])
@pytest.mark.parametrize("index", [0, 1])
def test_full_maps_of_windows_equal_a_masked_softmax_over_all_keys(kind, index):
    model = model_of(kind)
    block = model.backbone.stages[1].blocks[index]
    assert isinstance(block, SwinBlock)
    name = f"backbone.stages.1.blocks.{index}.attention"
    seen = []
    block.register_forward_pre_hook(lambda module, inputs: seen.append(inputs))
    with torch.no_grad(), record_attention(model, full=True) as maps:
        model(images_for(model))
        tokens, grid = seen[0]
        torch.testing.assert_close(maps[name], dense_windows(block, block.norm1(tokens), grid))


def test_nothing_is_kept_when_off():
    model = model_of("local")
    images = images_for(model)
    with torch.no_grad():
        with record_attention(model) as maps:
            pass
        model(images)
    assert maps == {}
    assert all("record" not in vars(module) for module in attention_modules(model).values())
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_nested_recordings_each_see_what_happens_within_them():
    model = model_of("swin")
    images = images_for(model)
    with torch.no_grad(), record_attention(model) as outer:
        with record_attention(model, full=True) as inner:
            model(images)
        assert outer.keys() == inner.keys()
        first, inner_count = {name: weights.clone() for name, weights in outer.items()}, len(inner)
        model(images + 1)
    assert any(not torch.equal(outer[name], first[name]) for name in outer)
    assert len(inner) == inner_count


def test_an_exception_ends_the_recording():
    model = model_of("swin")
    with pytest.raises(RuntimeError, match="interrupted"), record_attention(model) as maps:
        raise RuntimeError("interrupted")
    model(images_for(model))
    assert maps == {}
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_a_part_of_the_modules_can_be_chosen():
    model = model_of("vit")
    with torch.no_grad(), record_attention(model, modules=["backbone.blocks.1.attention"]) as maps:
        model(images_for(model))
    assert list(maps) == ["backbone.blocks.1.attention"]
    with pytest.raises(ValueError, match=r"no attention module is called head; there are backbone\.blocks\.0"):
        record_attention(model, modules=["head"]).__enter__()
    with pytest.raises(ValueError, match="Linear has no attention modules"):
        record_attention(model.head).__enter__()


def test_recorded_weights_carry_gradients():
    model = model_of("local")
    with record_attention(model) as maps:
        model(images_for(model)).sum().backward(retain_graph=True)
    assert all(weights.requires_grad for weights in maps.values())
