"""Every file of conf/ composes, and what it names exists."""

from __future__ import annotations

import datetime
import inspect
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.utils import get_class, get_method, instantiate
from omegaconf import DictConfig, OmegaConf

import train
from visattn import list_models
from visattn.checkpoints.efficientnet_lite import trained_sizes

conf = Path(train.__file__).parent / "conf"
files = sorted(path.relative_to(conf) for path in conf.glob("*/*.yaml"))


def composed(*overrides: str) -> DictConfig:
    with initialize_config_dir(str(conf), version_base="1.3"):
        config = compose("config", [*overrides, "hydra.run.dir=."], return_hydra_config=True)
    OmegaConf.set_struct(config, False)
    config.hydra.runtime.output_dir = "outputs"
    if OmegaConf.is_missing(config.dataset, "root"):
        config.dataset.root = "pictures"
    config.pop("hydra")
    return config


@pytest.mark.parametrize("file", files, ids=str)
def test_every_choice_composes_and_its_keywords_are_known(file):
    with initialize_config_dir(str(conf), version_base="1.3"):
        config = compose("config", [f"{file.parent}={file.stem}"])
    targets = [node for node in nodes(config) if "_target_" in node]
    assert targets
    for node in targets:
        called = found(node["_target_"])
        if called is datetime.timedelta:  # tells no signature
            assert called(**{key: value for key, value in node.items() if key != "_target_"}) > datetime.timedelta(0)
            continue
        accepted = inspect.signature(called).parameters
        if any(parameter.kind is parameter.VAR_KEYWORD for parameter in accepted.values()):
            continue
        given = {str(key) for key in node if not str(key).startswith("_")}
        assert given <= accepted.keys(), f"{node['_target_']} doesn't take {given - accepted.keys()}"


def nodes(config: DictConfig):
    """The configuration and every part of it that has names, without resolving values."""
    yield OmegaConf.to_container(config, resolve=False)
    for key in config:
        if OmegaConf.is_config(config._get_node(key)) and OmegaConf.is_dict(config._get_node(key)):
            yield from nodes(config._get_node(key))


def found(target: str):
    try:
        return get_class(target)
    except ValueError:
        return get_method(target)


def test_every_model_of_the_zoo_has_a_file_and_the_other_way_round():
    presets = {path.stem for path in (conf / "model").glob("*.yaml")}
    assert set(list_models()) | {"timm"} | set(trained_sizes) <= presets
    families = presets - set(list_models()) - {"timm"} - set(trained_sizes)  # the family's name alone is its small one
    assert all(list_models(f"{family}_*") for family in families)


def test_a_network_of_timm_is_chosen_by_its_name():
    config = composed("model=timm", "model.architecture=test_resnet", "+model.drop_path_rate=0.1").model
    backbone = instantiate(config, image_size=32)
    assert backbone.arguments | {"drop_path_rate": 0.1} == backbone.arguments
    assert backbone.arguments["architecture"] == "test_resnet"


def test_a_dataset_brings_its_task_and_another_can_be_chosen():
    assert "ImageClassification" in composed("dataset=cifar10").task._target_
    assert composed("dataset=cifar10").dataset.root == "data"


@pytest.mark.parametrize(
    ("dataset", "metric"),
    [("shapes", "val/accuracy"), ("shapes_captions", "val/CIDEr"), ("shapes_detection", "val/AP")],
)
def test_the_task_names_the_metric_that_picks_the_best_epoch_and_stops_early(dataset, metric):
    callbacks = composed(f"dataset={dataset}").callbacks
    assert callbacks.best.monitor == callbacks.early_stopping.monitor == metric
    other = composed(f"dataset={dataset}", "task.monitor=val/other").callbacks
    assert other.best.monitor == other.early_stopping.monitor == "val/other"


@pytest.mark.parametrize("file", sorted((conf / "task" / "head").glob("*.yaml")), ids=lambda file: file.stem)
def test_every_detection_head_is_chosen_by_its_name(file):
    """Also where the dataset brings the task, and an experiment another head."""
    for chosen in (("dataset=shapes_detection",), ("dataset=coco_json",), ("experiment=bccd_detection",)):
        config = composed(*chosen, f"task/head={file.stem}")
        assert "ObjectDetection" in config.task._target_
        head = instantiate(config.task.head)((8, 16), (8, 16), 3)
        assert head.num_classes == 3
        given = OmegaConf.to_container(config.task.head)
        for name, value in given.items():
            if not name.startswith("_"):
                expected = tuple(value) if isinstance(value, list) else value
                assert head.arguments[name] == expected, name
