import pytest
import torch
from transformers import (
    ConditionalDetrConfig,
    ConditionalDetrForObjectDetection,
    ConditionalDetrImageProcessor,
    ResNetConfig,
)
from transformers.models.timm_backbone.configuration_timm_backbone import TimmBackboneConfig

from tests.checkpoints.published_captioners import rewrite
from tests.checkpoints.published_detectors import (
    batch,
    own_network,
    perturb,
    same_detections,
    same_outputs,
    sizes,
    timm_network,
)
from visattn.checkpoints import CheckpointError, load_pretrained
from visattn.heads import ConditionalDetrHead, ObjectDetector
from visattn.interpret import record_attention

names = {0: "N/A", 1: "person", 2: "bicycle", 3: "N/A", 4: "kite"}


def conditional_detr(network, **options):
    kind = {"timm_backbone": TimmBackboneConfig, "resnet": ResNetConfig}[network["model_type"]]
    arguments = {name: value for name, value in network.items() if name != "model_type"}
    config = ConditionalDetrConfig(**sizes | {"id2label": names, "backbone_config": kind(**arguments)} | options)
    return ConditionalDetrForObjectDetection(config)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("conditional_detr")


@pytest.fixture(scope="module")
def processor(folder):
    processor = ConditionalDetrImageProcessor(size={"shortest_edge": 64, "longest_edge": 90})
    processor.save_pretrained(folder)
    return processor


@pytest.fixture(scope="module")
def original(folder):
    model = perturb(conditional_detr(timm_network()))
    model.save_pretrained(folder)
    return model


@pytest.fixture(scope="module")
def model(folder, original, processor):
    return load_pretrained(folder, expected=ObjectDetector)


def test_logits_and_boxes_are_those_of_transformers(original, model):
    output = same_outputs(original, model, (64, 96), (77, 53))
    assert output.logits.shape == (2, 11, 5)
    same_outputs(original, model, (61, 89))
    assert isinstance(model.head, ConditionalDetrHead)


def test_a_resnet_of_transformers_is_read(tmp_path):
    original = perturb(conditional_detr(own_network()))
    original.save_pretrained(tmp_path)
    same_outputs(original, load_pretrained(tmp_path), (64, 96), (77, 53))


def test_objects_are_those_of_the_image_processor_of_transformers(original, processor, model):
    found = same_detections(original, processor, model, threshold=0.5)
    assert any(len(one.scores) < 55 for one in found)


def test_the_decoder_looks_where_that_of_transformers_looks(original, model):
    images, padding, _ = batch((64, 96), (77, 53))
    eager = conditional_detr(timm_network(), attn_implementation="eager")
    eager.load_state_dict(original.state_dict())
    with torch.no_grad():
        expected = eager.eval()(images, (~padding).long(), output_attentions=True).cross_attentions
    with record_attention(model) as maps, torch.no_grad():
        model(images, padding)
    for index, weights in enumerate(expected):
        torch.testing.assert_close(maps[f"head.decoder.{index}.cross_attention"], weights, rtol=0, atol=1e-5)


def of_version_4(weights):
    """As microsoft's file has it, where the decoder's layers held the projections themselves."""
    renamed = {}
    for name, tensor in weights.items():
        name = name.replace("model.backbone.model.", "model.backbone.conv_encoder.model.").replace(".mlp.fc", ".fc")
        if "decoder.layers" in name and "_proj." in name and ".o_proj." not in name:
            name = name.replace("q_pos_sine_proj", "qpos_sine_proj").replace("_content_proj", "content_proj")
            name = name.replace("_pos_proj", "pos_proj")
            name = name.replace("self_attn.", "sa_").replace("encoder_attn.", "ca_")
        renamed[name.replace(".o_proj.", ".out_proj.")] = tensor
    return renamed


def test_names_of_older_versions_give_the_same_model(folder, original, model, tmp_path):
    current = original.state_dict()
    old = of_version_4(current)
    assert {"model.decoder.layers.0.ca_qpos_proj.weight", "model.decoder.layers.1.sa_kcontent_proj.bias"} < old.keys()
    assert "model.decoder.layers.2.ca_qpos_sine_proj.weight" in old
    for weights in (current, old):
        rewrite(folder, tmp_path, lambda _, weights=weights: weights)
        loaded = load_pretrained(tmp_path).state_dict()
        assert all(torch.equal(tensor, loaded[name]) for name, tensor in model.state_dict().items())


def test_a_missing_weight_is_named(folder, original, tmp_path):
    current, name = original.state_dict(), "model.decoder.layers.1.encoder_attn.k_pos_proj.weight"
    rewrite(folder, tmp_path, lambda _: {key: tensor for key, tensor in current.items() if key != name})
    with pytest.raises(CheckpointError, match=r"missing: head\.decoder\.1\.cross_attention\.key_place\.weight"):
        load_pretrained(tmp_path)
