"""Parameter groups and the refusal to continue a run with another model."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from visattn.backbones import vit_tiny
from visattn.checkpoints import model_config
from visattn.heads import ImageClassifier
from visattn.tasks.optimization import parameter_groups, scheduled_optimizer
from visattn.tasks.task import refuse_other_model


def small_classifier(**overrides) -> ImageClassifier:
    return ImageClassifier(vit_tiny(16, 4, **{"dim": 8, "depth": 2, "num_heads": 2} | overrides), 3)


def rates(model: ImageClassifier, groups: list[dict]) -> dict[str, float]:
    """The learning rate of each parameter that is trained."""
    of_parameter = {id(parameter): group["lr"] for group in groups for parameter in group["params"]}
    return {name: of_parameter[id(p)] for name, p in model.named_parameters() if id(p) in of_parameter}


def test_the_backbone_has_its_own_learning_rate_which_decays_with_depth():
    model = small_classifier()
    found = rates(model, parameter_groups(model, model.backbone, 1.0, 0.1, 0.5, backbone_learning_rate=0.1))
    assert found["head.weight"] == 1.0
    assert found["backbone.blocks.1.norm1.weight"] == pytest.approx(0.05)
    assert found["backbone.blocks.0.norm1.weight"] == pytest.approx(0.025)
    assert found["backbone.class_token"] == pytest.approx(0.0125)


def test_without_a_rate_of_its_own_the_backbone_trains_as_the_rest():
    model = small_classifier()
    assert set(rates(model, parameter_groups(model, model.backbone, 1.0, 0.1)).values()) == {1.0}


def test_a_frozen_backbone_is_in_no_group():
    model = small_classifier()
    model.backbone.requires_grad_(False)
    found = rates(model, parameter_groups(model, model.backbone, 1.0, 0.1, backbone_learning_rate=0.0))
    assert set(found) == {"head.weight", "head.bias"}


def test_vectors_and_tables_are_not_decayed():
    model = small_classifier()
    groups = parameter_groups(model, model.backbone, 1.0, 0.1)
    decayed = {id(parameter) for group in groups if group["weight_decay"] for parameter in group["params"]}
    names = {name for name, parameter in model.named_parameters() if id(parameter) in decayed}
    assert "head.weight" in names
    assert not names & {"head.bias", "backbone.class_token", "backbone.position_embedding", "backbone.norm.weight"}


def test_muon_moves_the_matrices_within_the_backbone_by_orthogonal_ones_and_the_rest_as_adamw():
    torch.manual_seed(0)
    model = small_classifier()
    groups = parameter_groups(model, model.backbone, 0.01, 0.0)
    muon = {id(parameter) for group in groups if not group["use_fallback"] for parameter in group["params"]}
    within = {name for name, parameter in model.named_parameters() if id(parameter) in muon}
    layers = ("attention.qkv", "attention.projection", "mlp.fc1", "mlp.fc2")
    assert within == {f"backbone.blocks.{block}.{layer}.weight" for block in range(2) for layer in layers}

    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    trainer = SimpleNamespace(precision="32-true", estimated_stepping_batches=10, max_epochs=1)
    made = scheduled_optimizer(SimpleNamespace(trainer=trainer), groups, (0.9, 0.999), 0.0, 0.01, "muon")
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter) * torch.linspace(1, 5, parameter.shape[-1])
    made["optimizer"].step()
    name = "backbone.blocks.0.mlp.fc1.weight"
    step = model.get_parameter(name).detach() - before[name]
    assert spread(step) < 0.5 * spread(model.get_parameter(name).grad)
    bias = model.get_parameter("head.bias").detach() - before["head.bias"]
    torch.testing.assert_close(bias.abs(), bias.abs().max().expand(3))  # as far as any, whatever its gradient


def spread(matrix: torch.Tensor) -> float:
    """The largest singular value over the smallest: 1 for an orthogonal matrix."""
    values = torch.linalg.svdvals(matrix)
    return float(values.max() / values.min())


def test_an_unknown_optimizer_is_refused():
    trainer = SimpleNamespace(precision="32-true", estimated_stepping_batches=10, max_epochs=1)
    with pytest.raises(ValueError, match="optimizer 'sgd' is unknown; choose adamw or muon"):
        scheduled_optimizer(SimpleNamespace(trainer=trainer), [], (0.9, 0.999), 0.0, 0.01, "sgd")


def test_another_model_is_refused_and_the_difference_named():
    saved = model_config(small_classifier())
    refuse_other_model(saved, model_config(small_classifier()))
    refuse_other_model(None, saved)
    with pytest.raises(ValueError, match=r"differing in depth \(2 instead of 3\); resume with the same model="):
        refuse_other_model(saved, model_config(small_classifier(depth=3)))
