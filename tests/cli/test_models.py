import json

import pytest

import visattn
from tests.interpret.small_captioners import captioner_of
from visattn.backbones import VisionTransformer
from visattn.checkpoints import save_pretrained
from visattn.heads import ImageCaptioner, ImageClassifier


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
    _, output, _ = run("models", "swin_[!v]*", "--json")
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
    assert all(row["bytes"] > 0 and (row["classes"] or row["words"]) for row in rows)


def test_captioners_are_listed_with_classifiers(tmp_path, monkeypatch, run):
    classifier = ImageClassifier(VisionTransformer(32, 8, 24, 1, 2), 3)
    models = {"birds": classifier, "describer": captioner_of("encoder")}
    for name, model in models.items():
        save_pretrained(model, tmp_path / name)
    monkeypatch.setattr("visattn.checkpoints.shipped._asset_folders", (tmp_path,))
    birds, describer = json.loads(run("models", "--pretrained", "--json")[1])
    assert (birds["kind"], birds["classes"], birds["words"]) == ("classification", 3, None)
    words = models["describer"].tokenizer.vocabulary_size
    assert (describer["kind"], describer["classes"], describer["words"]) == ("captioning", None, words)
    for row in (birds, describer):
        assert row["parameters"] == sum(parameter.numel() for parameter in models[row["name"]].parameters())
    code, output, _ = run("models", "--pretrained")
    assert code == 0
    assert "captioning" in output
    assert "None" not in output
    assert isinstance(visattn.load_pretrained("describer"), ImageCaptioner)
    with pytest.raises(ValueError, match="no weights are shipped for 'describer'; there are: birds"):
        visattn.create_model("vit_tiny", pretrained="describer")
