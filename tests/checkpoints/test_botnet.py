"""timm's BoTNets, and what it builds from the same class but visattn doesn't."""

import pytest
import timm
import torch
from timm.models import save_for_hf

from visattn.backbones import BoTNet
from visattn.checkpoints import CheckpointError, load_pretrained
from visattn.checkpoints import timm as layout
from visattn.checkpoints.botnet import botnet_backbone
from visattn.heads import ImageClassifier

# timm's name and arguments that make it small.
originals = {
    "botnet26t_256": {"img_size": 64, "width_factor": 0.125},
    "botnet50ts_256": {"img_size": (64, 96), "width_factor": 0.125},
    "eca_botnext26ts_256": {"img_size": 64, "width_factor": 0.25},
}
of_another_stem = originals["botnet26t_256"] | {"stem_type": "7x7"}
of_scaled_positions = originals["botnet26t_256"] | {"self_attn_kwargs": {"scale_pos_embed": True, "num_heads": 2}}


def perturbed(name, arguments):
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=11, **arguments)
    for parameter in model.parameters():
        parameter.data.add_(torch.randn_like(parameter) * 0.1)
    for buffer_name, buffer in model.named_buffers():
        if "running" in buffer_name:
            buffer.add_(torch.rand_like(buffer) * 0.5)
    return model.eval()


@pytest.mark.parametrize(
    ("name", "arguments"),
    [*originals.items(), ("botnet26t_256", of_another_stem), ("botnet26t_256", of_scaled_positions)],
)
def test_a_hub_folder_gives_the_logits_and_features_of_timm(name, arguments, tmp_path):
    original = perturbed(name, arguments)
    save_for_hf(original, tmp_path, model_args=arguments, safe_serialization=True)
    model = load_pretrained(tmp_path)
    assert not model.training
    images = torch.randn(2, 3, *model.backbone.image_size)
    with torch.no_grad():
        expected, last = original(images), original.forward_features(images)
        assert expected.std() > 0.1
        torch.testing.assert_close(model(images), expected, rtol=0, atol=1e-4)
        torch.testing.assert_close(model.features(images).maps[-1], last, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(model(images).detach(), expected, rtol=0, atol=1e-4)  # norms not folded


def test_positions_resampled_for_another_size_compute_what_they_did_there_before(tmp_path):
    arguments = originals["botnet26t_256"]
    save_for_hf(perturbed("botnet26t_256", arguments), tmp_path, model_args=arguments, safe_serialization=True)
    trained, resized = load_pretrained(tmp_path), load_pretrained(tmp_path, image_size=(96, 128))
    assert resized.backbone.image_size == (96, 128)
    images = torch.randn(2, 3, 96, 128)
    with torch.no_grad():
        torch.testing.assert_close(resized(images), trained(images), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", originals)
def test_published_sizes_have_as_many_parameters_as_timm(name):
    with torch.device("meta"):
        original = timm.create_model(name)
        ours = ImageClassifier(botnet_backbone(original, "weights"), 1000)
    assert isinstance(ours.backbone, BoTNet)
    assert ours.backbone.image_size == (256, 256)
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in original.parameters())


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("resnet51q", "no blocks with self-attention"),
        ("repvgg_a0", "blocks of type RepVggBlock"),
        ("halonet26t", "attention of type HaloAttn"),
        ("lambda_resnet26t", "attention of type LambdaLayer"),
        ("halo2botnet50ts_256", "attention of type HaloAttn"),
        ("sebotnet33ts_256", "a stem of conv1, conv2, conv3"),
    ],
)
def test_other_networks_of_the_class_are_refused_by_name(name, problem):
    with pytest.raises(CheckpointError, match=rf"^weights: .*BoTNet, but {name} has {problem}"):
        layout.build({"architecture": name}, {}, "weights")
