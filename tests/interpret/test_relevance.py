import pytest
import torch

from tests.interpret.small_models import backbones, images_for, model_of
from visattn.heads import ImageClassifier
from visattn.interpret import attention_heatmap, attention_rollout, record_attention
from visattn.interpret.relevance import follow, grid_of, look, read_by_classifier, refine


@pytest.mark.parametrize("kind", backbones)
@pytest.mark.parametrize("explain", [attention_heatmap, attention_rollout])
def test_maps_have_the_size_of_the_images_and_span_zero_to_one(kind, explain):
    model = model_of(kind)
    images = images_for(model)
    maps = explain(model, images)
    assert maps.shape == (2, *images.shape[2:])
    torch.testing.assert_close(maps.amin((1, 2)), torch.zeros(2))
    torch.testing.assert_close(maps.amax((1, 2)), torch.ones(2))


@pytest.mark.parametrize("explain", [attention_heatmap, attention_rollout])
def test_an_image_is_explained_the_same_in_any_batch(explain):
    model = model_of("hybrid")
    images = images_for(model, batch=3)
    torch.testing.assert_close(explain(model, images)[1:2], explain(model, images[1:2]), rtol=0, atol=1e-4)


@pytest.mark.parametrize("kind", ["vit", "distilled", "local", "pooled by attention"])
def test_rollout_is_the_product_of_all_attention_matrices(kind):
    model = model_of(kind)
    images = images_for(model)
    with torch.no_grad(), record_attention(model.backbone, full=True) as maps:
        features = model.features(images)
    count = features.tokens.shape[1]
    matrix = torch.eye(count).expand(2, -1, -1)
    for name, weights in maps.items():
        if name.startswith("blocks."):
            matrix = (0.5 * torch.eye(count) + 0.5 * weights.mean(dim=1)) @ matrix
    start = {
        "vit": lambda: torch.eye(count)[0].expand(2, 1, -1),
        "distilled": lambda: torch.eye(count)[:2].mean(0).expand(2, 1, -1),
        "local": lambda: torch.full((2, 1, count), 1 / count),
        "pooled by attention": lambda: maps["attention_pooling.attention"].mean(dim=1),
    }[kind]()
    grid = features.maps[0].shape[-2:]
    expected = (start @ matrix)[:, 0, -grid[0] * grid[1] :].view(2, 1, *grid)
    expected = torch.nn.functional.interpolate(expected, images.shape[-2:], mode="bilinear")[:, 0]
    lowest, highest = expected.amin((1, 2), keepdim=True), expected.amax((1, 2), keepdim=True)
    torch.testing.assert_close(attention_rollout(model, images), (expected - lowest) / (highest - lowest))


@pytest.mark.parametrize("kind", ["swin", "hybrid"])
def test_rollout_of_a_network_with_stages_uses_its_first_attention_too(kind):
    model = model_of(kind)
    images = images_for(model)
    before = attention_rollout(model, images)
    module = next(module for name, module in model.named_modules() if name.endswith("attention"))
    with torch.no_grad():
        module.relative_position_bias.copy_(3 * torch.randn_like(module.relative_position_bias))
    # The bias of the first block changes its own attention a lot; the map is no smoother than its grid.
    assert (attention_rollout(model, images) - before).abs().max() > 0.05


@pytest.mark.parametrize("kind", [kind for kind in backbones if "padded" not in kind])
def test_no_share_is_lost_on_the_way_back(kind):
    model = model_of(kind)
    images = images_for(model)
    with torch.no_grad():
        features, steps, _ = look(model, images)
    share, grid = read_by_classifier(model.backbone, features, steps), grid_of(features.maps[-1])
    torch.testing.assert_close(share.sum(dim=1), torch.ones(2))
    for step in reversed([step for step in steps if not step.pools]):
        share, grid = refine(share, grid, step.grid), step.grid
        share = follow(share, step.weights.mean(dim=1), step.keys)
        torch.testing.assert_close(share.sum(dim=1), torch.ones(2))


def test_a_coarse_token_is_divided_among_those_it_was_merged_from():
    share = torch.tensor([[8.0, 4.0, 2.0, 6.0]])  # a 2x2 map from one of 3x4: the last row of pairs has one row
    expected = torch.tensor([[2.0, 2, 1, 1], [2, 2, 1, 1], [1, 1, 3, 3]])
    torch.testing.assert_close(refine(share, (2, 2), (3, 4)), expected.flatten()[None])


def test_queries_without_gradient_pass_nothing_on():
    """Noise is not taken for relevance: what counts is the size of weight times gradient within an image."""
    model = model_of("vit")
    images = images_for(model)
    with torch.no_grad():
        for block in model.backbone.blocks:
            block.attention.projection.weight.mul_(1e-6)  # no attention matters any more
    maps = attention_heatmap(model, images)
    assert torch.isfinite(maps).all()


def test_the_class_to_explain_can_be_chosen():
    model = model_of("vit")
    images = images_for(model)
    predicted = model(images).argmax(dim=1)
    torch.testing.assert_close(attention_heatmap(model, images, predicted), attention_heatmap(model, images))
    assert not torch.allclose(attention_heatmap(model, images, (predicted + 1) % 5), attention_heatmap(model, images))


def test_modes_and_gradients_are_as_before():
    model = model_of("hybrid").train()
    model.backbone.norm.eval()
    attention_heatmap(model, images_for(model))
    assert model.training
    assert model.backbone.stem.training
    assert not model.backbone.norm.training
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_model_without_classifier_has_rollout_but_no_relevance():
    model = ImageClassifier(backbones["vit"](), None)
    assert attention_rollout(model, images_for(model)).shape == (2, 32, 32)
    with pytest.raises(ValueError, match="attention_rollout needs none"):
        attention_heatmap(model, images_for(model))
