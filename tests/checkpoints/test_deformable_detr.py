from copy import deepcopy

import pytest
import torch
from safetensors.torch import save_file
from transformers import (
    DeformableDetrConfig,
    DeformableDetrForObjectDetection,
    DeformableDetrImageProcessor,
    ResNetConfig,
)
from transformers.models.timm_backbone.configuration_timm_backbone import TimmBackboneConfig

from tests.checkpoints.published_captioners import rewrite
from tests.checkpoints.published_detectors import (
    own_network,
    same_detections,
    same_outputs,
    sizes,
    timm_network,
)
from visattn.checkpoints import CheckpointError, load_pretrained
from visattn.heads import DeformableDetrHead, ObjectDetector

names = {0: "N/A", 1: "person", 2: "bicycle", 3: "N/A", 4: "kite"}
kinds = {
    "published": {},
    "with_box_refine": {"with_box_refine": True},
    "two_stage": {"with_box_refine": True, "two_stage": True, "two_stage_num_proposals": 13},
    "single_scale": {"num_feature_levels": 1},
}


def deformable_detr(network, **options):
    kind = {"timm_backbone": TimmBackboneConfig, "resnet": ResNetConfig}[network["model_type"]]
    arguments = {name: value for name, value in network.items() if name != "model_type"}
    config = DeformableDetrConfig(**sizes | {"id2label": names, "backbone_config": kind(**arguments)} | options)
    return perturb(DeformableDetrForObjectDetection(config))


@torch.no_grad()
def perturb(model):
    """Draws weights anew, each prediction layer for itself, so that queries differ and logits are about normal."""
    generator = torch.Generator().manual_seed(0)
    if model.config.with_box_refine:
        model.bbox_embed = torch.nn.ModuleList(map(deepcopy, model.bbox_embed))
        model.model.decoder.bbox_embed = model.bbox_embed
        model.class_embed = torch.nn.ModuleList(map(deepcopy, model.class_embed))
    if model.config.two_stage:
        model.model.decoder.class_embed = model.class_embed
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if not tensor.is_floating_point():
            continue
        noise = torch.randn(tensor.shape, generator=generator)
        if name.endswith("running_var"):
            tensor.copy_(noise.abs() * 0.3 + 0.7)
        elif tensor.ndim == 2 and "level_embed" not in name:
            tensor.copy_(noise * tensor.shape[1] ** -0.5)
        elif "bbox_embed" in name:
            tensor.add_(noise * 0.5)
        else:
            tensor.add_(noise * 0.2 * (tensor.std() if tensor.ndim == 4 else 1.0))
    if not model.config.two_stage:
        embedding = model.model.query_position_embeddings.weight
        embedding.copy_(torch.randn(embedding.shape, generator=generator))
    return model.eval()


def save(model, folder):
    """As `save_pretrained`, which refuses the prediction layers, each of which it wants to be one with the first."""
    model.config.save_pretrained(folder)
    stored = {}
    for name, tensor in model.state_dict().items():
        if not name.startswith(("model.decoder.class_embed", "model.decoder.bbox_embed")):
            stored[name] = tensor.clone()
    save_file(stored, folder / "model.safetensors")


@pytest.fixture(scope="module", params=kinds)
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def folder(tmp_path_factory, kind):
    return tmp_path_factory.mktemp(kind)


@pytest.fixture(scope="module")
def processor(folder):
    processor = DeformableDetrImageProcessor(size={"shortest_edge": 64, "longest_edge": 90})
    processor.save_pretrained(folder)
    return processor


@pytest.fixture(scope="module")
def original(folder, kind):
    indices = [4] if kind == "single_scale" else [2, 3, 4]
    model = deformable_detr(timm_network(out_indices=indices), **kinds[kind])
    save(model, folder)
    return model


@pytest.fixture(scope="module")
def model(folder, original, processor):
    return load_pretrained(folder, expected=ObjectDetector)


def test_logits_and_boxes_are_those_of_transformers(original, model, kind):
    output = same_outputs(original, model, (64, 96), (77, 53))
    assert output.logits.shape == (2, 13 if kind == "two_stage" else 11, 5)
    same_outputs(original, model, (61, 89))
    assert isinstance(model.head, DeformableDetrHead)
    assert output.boxes.std(dim=1).min() > 0.01


def test_objects_are_those_of_the_image_processor_of_transformers(original, processor, model):
    same_detections(original, processor, model, threshold=0.05)


def test_prediction_layers_may_be_stored_under_two_names(folder, original, model, tmp_path):
    weights = original.state_dict()
    doubled = {name: tensor for name, tensor in weights.items() if name.startswith("model.decoder.")}
    rewrite(folder, tmp_path, lambda stored: stored | doubled)
    loaded = load_pretrained(tmp_path).state_dict()
    assert all(torch.equal(tensor, loaded[name]) for name, tensor in model.state_dict().items())


def test_prediction_layers_that_are_stored_once_are_those_of_all_layers(folder, original, tmp_path, kind):
    def once(weights):
        return {
            name: tensor
            for name, tensor in weights.items()
            if not name.startswith(("class_embed.", "bbox_embed.")) or "_embed.0." in name
        }

    rewrite(folder, tmp_path, once)
    predictors = load_pretrained(tmp_path).head.predictors
    assert len(predictors) == (3 if "with_box_refine" in kinds[kind] else 1)
    assert all(torch.equal(one.classes.weight, original.class_embed[0].weight) for one in predictors)


def test_a_resnet_of_transformers_is_read(tmp_path):
    network = own_network() | {"out_features": ["stage2", "stage3", "stage4"]}
    original = deformable_detr(network)
    save(original, tmp_path)
    same_outputs(original, load_pretrained(tmp_path), (64, 96), (77, 53))


def test_what_has_no_counterpart_is_named(folder, original, tmp_path):
    rewrite(folder, tmp_path, lambda weights: weights, encoder_n_points=2)
    with pytest.raises(CheckpointError, match="encoder_n_points 2 and decoder_n_points 4 differ"):
        load_pretrained(tmp_path)
    rewrite(folder, tmp_path, lambda weights: weights, position_embedding_type="learned")
    with pytest.raises(CheckpointError, match="position_embedding_type 'learned' has no counterpart"):
        load_pretrained(tmp_path)
    rewrite(folder, tmp_path, lambda weights: {name: weights[name] for name in weights if "_embed." not in name})
    with pytest.raises(CheckpointError, match="holds no classifier"):
        load_pretrained(tmp_path)


def test_a_missing_weight_is_named(folder, original, tmp_path):
    name = "model.decoder.layers.1.encoder_attn.sampling_offsets.weight"
    rewrite(folder, tmp_path, lambda weights: {key: weights[key] for key in weights if key != name})
    with pytest.raises(CheckpointError, match=r"missing: head\.decoder\.1\.cross_attention\.offsets\.weight"):
        load_pretrained(tmp_path)
