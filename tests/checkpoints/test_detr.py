import json

import pytest
import torch
from safetensors.torch import save_file
from transformers import DetrConfig, DetrForObjectDetection, DetrForSegmentation, DetrImageProcessor, ResNetConfig
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
from visattn.checkpoints import CheckpointError, load_pretrained, save_pretrained
from visattn.heads import DetrHead, ObjectDetector
from visattn.interpret import record_attention

names = {0: "N/A", 1: "person", 2: "bicycle", 3: "N/A", 4: "kite"}


def detr(network, model=DetrForObjectDetection, **options):
    kind = {"timm_backbone": TimmBackboneConfig, "resnet": ResNetConfig}[network["model_type"]]
    arguments = {name: value for name, value in network.items() if name != "model_type"}
    config = DetrConfig(**sizes | {"id2label": names, "backbone_config": kind(**arguments)} | options)
    return model(config)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("detr")


@pytest.fixture(scope="module")
def processor(folder):
    processor = DetrImageProcessor(size={"shortest_edge": 64, "longest_edge": 90})
    processor.save_pretrained(folder)
    return processor


@pytest.fixture(scope="module")
def original(folder):
    model = perturb(detr(timm_network()))
    model.save_pretrained(folder)
    return model


@pytest.fixture(scope="module")
def model(folder, original, processor):
    return load_pretrained(folder, expected=ObjectDetector)


def test_logits_and_boxes_are_those_of_transformers(original, model):
    output = same_outputs(original, model, (64, 96), (77, 53))
    assert output.logits.shape == (2, 11, 6)
    assert output.boxes.shape == (2, 11, 4)
    same_outputs(original, model, (61, 89))
    same_outputs(original, model, (96, 64), (96, 64))


@pytest.mark.parametrize("network", [timm_network("resnet18"), own_network()], ids=["timm", "transformers"])
def test_resnets_of_both_libraries_are_read(network, tmp_path):
    original = perturb(detr(network))
    original.save_pretrained(tmp_path)
    same_outputs(original, load_pretrained(tmp_path), (64, 96), (77, 53))


def test_the_dilated_last_stage_is_read(tmp_path):
    original = perturb(detr(timm_network(output_stride=16), dilation=True))
    original.save_pretrained(tmp_path)
    model = load_pretrained(tmp_path)
    same_outputs(original, model, (64, 96), (77, 53))
    assert model.backbone.strides[-1] == 16


def test_objects_are_those_of_the_image_processor_of_transformers(original, processor, model):
    found = same_detections(original, processor, model, threshold=0.5)
    assert any(len(one.scores) < 11 for one in found)


def test_pictures_are_prepared_as_published(folder, processor, model):
    from tests.checkpoints.test_published_preprocess import picture

    for size in ((333, 500), (500, 281), (64, 64), (30, 400)):
        expected = processor(picture(*size), return_tensors="pt")["pixel_values"][0]
        torch.testing.assert_close(model.preprocess(picture(*size)), expected, rtol=0, atol=1e-4)


def test_classes_keep_their_published_names(model):
    assert model.classes == ("N/A", "person", "bicycle", "N/A", "kite")
    assert model.num_classes == 5


def test_the_decoder_looks_where_that_of_transformers_looks(original, folder, model):
    images, padding, _ = batch((64, 96), (77, 53))
    eager = detr(timm_network(), attn_implementation="eager")
    eager.load_state_dict(original.state_dict())
    with torch.no_grad():
        expected = eager.eval()(images, (~padding).long(), output_attentions=True).cross_attentions
    with record_attention(model) as maps, torch.no_grad():
        model(images, padding)
    for index, weights in enumerate(expected):
        torch.testing.assert_close(maps[f"head.decoder.{index}.cross_attention"], weights, rtol=0, atol=1e-5)


def test_norms_of_the_backbone_stay_frozen_in_training(model):
    before = {name: tensor.clone() for name, tensor in model.backbone.state_dict().items()}
    model.train()
    with torch.no_grad():
        model(*batch((64, 96), (77, 53))[:2])
    after = model.eval().backbone.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert not any(parameter.requires_grad for name, parameter in model.named_parameters() if ".bn1." in name)


def of_version_4(weights):
    """As facebook's file has it: another prefix of the backbone, o_proj as out_proj, no module for the MLP."""
    renamed = {}
    for name, tensor in weights.items():
        name = name.replace("model.backbone.model.", "model.backbone.conv_encoder.model.")
        renamed[name.replace(".o_proj.", ".out_proj.").replace(".mlp.fc", ".fc")] = tensor
    return renamed


def test_names_of_older_versions_give_the_same_model(folder, original, model, tmp_path):
    current = original.state_dict()
    for weights in (current, of_version_4(current)):
        rewrite(folder, tmp_path, lambda _, weights=weights: weights)
        loaded = load_pretrained(tmp_path).state_dict()
        assert all(torch.equal(tensor, loaded[name]) for name, tensor in model.state_dict().items())


def test_the_configuration_of_2021_names_the_network_alone(folder, original, model, tmp_path):
    rewrite(folder, tmp_path, of_version_4)
    config = json.loads((tmp_path / "config.json").read_text())
    del config["backbone_config"]
    (tmp_path / "config.json").write_text(json.dumps(config | {"backbone": "test_resnet", "use_timm_backbone": True}))
    preprocessor = {"feature_extractor_type": "DetrFeatureExtractor", "size": 64, "max_size": 90, "do_normalize": True}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(preprocessor))
    loaded = load_pretrained(tmp_path)
    assert loaded.preprocess.arguments == model.preprocess.arguments
    assert all(torch.equal(tensor, loaded.state_dict()[name]) for name, tensor in model.state_dict().items())


def original_layout(weights):
    """The names of https://github.com/facebookresearch/detr for those of transformers, by what either module does."""
    pairs = (
        ("model.backbone.model.", "backbone.0.body."),
        ("model.encoder.", "transformer.encoder."),
        ("model.decoder.layernorm.", "transformer.decoder.norm."),
        ("model.decoder.", "transformer.decoder."),
        (".encoder_attn.", ".multihead_attn."),
        (".o_proj.", ".out_proj."),
        (".mlp.fc", ".linear"),
        (".self_attn_layer_norm.", ".norm1."),
        (".encoder_attn_layer_norm.", ".norm2."),
        ("model.query_position_embeddings.", "query_embed."),
        ("model.input_projection.", "input_proj."),
        ("class_labels_classifier.", "class_embed."),
        ("bbox_predictor.", "bbox_embed."),
    )
    renamed = {}
    for name, tensor in weights.items():
        last = ".norm2." if ".encoder.layers." in name else ".norm3."
        for theirs, ours in (*pairs, (".final_layer_norm.", last)):
            name = name.replace(theirs, ours)
        renamed[name] = tensor
    for name in [name for name in renamed if ".q_proj." in name]:
        parts = [renamed.pop(name.replace(".q_proj.", f".{part}_proj.")) for part in "qkv"]
        renamed[name.replace(".q_proj.", ".in_proj_")] = torch.cat(parts)
    return renamed


@pytest.fixture(scope="module")
def coco_original():
    return perturb(detr(timm_network("resnet50"), id2label={index: str(index) for index in range(91)}))


def test_the_file_of_the_original_repository_gives_the_same_outputs(coco_original, tmp_path):
    weights = original_layout(coco_original.state_dict())
    assert "transformer.encoder.layers.0.self_attn.in_proj_weight" in weights
    assert "backbone.0.body.layer1.0.downsample.1.running_var" in weights
    torch.save({"model": weights}, tmp_path / "detr-r50.pth")
    model = load_pretrained(tmp_path / "detr-r50.pth")
    same_outputs(coco_original, model, (64, 96), (77, 53))
    assert (model.classes[1], model.classes[12], model.classes[90]) == ("person", "N/A", "toothbrush")
    assert model.category_ids == tuple(range(91))
    assert (model.preprocess.shortest, model.preprocess.longest) == (800, 1333)


def test_the_dilated_original_is_read_by_the_name_of_its_architecture(tmp_path):
    original = perturb(detr(timm_network("resnet50", output_stride=16), dilation=True))
    torch.save({"model": original_layout(original.state_dict())}, tmp_path / "detr-r50-dc5.pth")
    same_outputs(original, load_pretrained(tmp_path / "detr-r50-dc5.pth", "detr_resnet50_dc5"), (64, 96), (77, 53))


def test_other_weights_under_the_name_of_the_original_are_refused(original, tmp_path):
    save_file(original.state_dict(), tmp_path / "weights.safetensors")
    with pytest.raises(CheckpointError, match=r"no weights of the original DETR, such as query_embed\.weight"):
        load_pretrained(tmp_path / "weights.safetensors", "detr_resnet50")


def test_a_part_of_the_original_is_refused_by_what_it_lacks(coco_original, tmp_path):
    weights = original_layout(coco_original.state_dict())
    del weights["transformer.encoder.layers.0.linear1.weight"]
    torch.save(weights, tmp_path / "part.pth")
    with pytest.raises(CheckpointError, match=r"without its weight 'head\.encoder\.0\.mlp\.fc1\.weight'"):
        load_pretrained(tmp_path / "part.pth")


def test_panoptic_models_are_refused_by_name(tmp_path):
    detr(timm_network(), DetrForSegmentation).save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=r"panoptic segmentation.*bbox_attention\.k"):
        load_pretrained(tmp_path)


def test_a_missing_weight_and_an_unknown_one_are_named(folder, original, tmp_path):
    name = "model.decoder.layers.1.encoder_attn.v_proj.weight"
    current = original.state_dict()
    rewrite(folder, tmp_path, lambda _: {key: tensor for key, tensor in current.items() if key != name})
    with pytest.raises(CheckpointError, match=r"missing: head\.decoder\.1\.cross_attention\.key_value\.weight"):
        load_pretrained(tmp_path)
    rewrite(folder, tmp_path, lambda _: current | {"model.pooler.bias": torch.ones(3)})
    with pytest.raises(CheckpointError, match=r"unexpected: pooler\.bias"):
        load_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"position_embedding_type": "learned"}, "positions of type 'learned'"),
        ({"decoder_ffn_dim": 48}, "encoder_ffn_dim 44 and decoder_ffn_dim 48"),
        ({"backbone_config": {"model_type": "swin"}}, "a backbone of type 'swin'"),
        ({"backbone_config": {"model_type": "resnet", "embedding_size": 32}}, "embedding_size 32"),
        ({"activation_function": "mish"}, "activation 'mish' is unknown"),
    ],
)
def test_options_without_counterpart_are_refused(folder, original, tmp_path, change, message):
    rewrite(folder, tmp_path, lambda weights: weights, **change)
    with pytest.raises(CheckpointError, match=message):
        load_pretrained(tmp_path)


def test_numbers_of_classes_and_sizes_are_not_for_detectors(folder, original):
    with pytest.raises(ValueError, match="leave num_classes out"):
        load_pretrained(folder, num_classes=3)
    with pytest.raises(ValueError, match=r"setting model\.preprocess"):
        load_pretrained(folder, image_size=320)


def test_the_head_comes_with_its_arguments(model):
    assert isinstance(model.head, DetrHead)
    assert model.head.arguments["num_queries"] == 11
    again = DetrHead(model.backbone.channels, model.backbone.strides, 5, **model.head.arguments)
    assert again.state_dict().keys() == model.head.state_dict().keys()


@torch.no_grad()
def test_it_comes_back_from_our_own_format(model, tmp_path):
    save_pretrained(model, tmp_path)
    loaded = load_pretrained(tmp_path)
    assert loaded.classes == model.classes
    assert loaded.preprocess.arguments == model.preprocess.arguments
    images, padding, _ = batch((64, 96), (77, 53))
    assert torch.equal(loaded(images, padding).boxes, model(images, padding).boxes)
    assert loaded.backbone.frozen_norms
