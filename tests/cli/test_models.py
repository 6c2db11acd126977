import json

import pytest

import visattn


def test_the_table_names_every_model_and_its_size(run):
    code, output, _ = run("models")
    assert code == 0
    for name in visattn.list_models():
        assert name in output
    assert "5.52 M" in output  # ViT-Ti without its classifier


def test_json_counts_parameters_exactly(run):
    code, output, _ = run("models", "vit_tiny", "--json")
    assert code == 0
    (row,) = json.loads(output)
    backbone = visattn.create_model("vit_tiny", num_classes=None)
    assert row["parameters"] == sum(parameter.numel() for parameter in backbone.parameters())
    assert row["name"] == "vit_tiny"


def test_a_pattern_selects(run):
    _, output, _ = run("models", "swin*", "--json")
    assert [row["name"] for row in json.loads(output)] == ["swin_base", "swin_small", "swin_tiny"]
    assert run("models", "nothing*", "--json")[:2] == (0, "[]\n")


@pytest.mark.parametrize("options", [[], ["--pretrained"]])
def test_a_pattern_without_matches_is_an_error(options, run):
    code, output, errors = run("models", "nothing*", *options)
    assert (code, output) == (1, "")
    assert "are called 'nothing*'" in errors


def test_shipped_weights_are_listed_with_their_size(run):
    code, output, _ = run("models", "--pretrained", "--json")
    assert code == 0
    rows = json.loads(output)
    assert [row["name"] for row in rows] == visattn.list_models(pretrained=True)
    assert all(row["bytes"] > 0 and row["classes"] for row in rows)
