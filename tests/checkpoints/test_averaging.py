import pytest
import torch

from visattn.backbones import vit_tiny
from visattn.checkpoints import CheckpointError, average_pretrained, save_pretrained
from visattn.heads import ImageClassifier


def saved(folder, seed, **overrides):
    torch.manual_seed(seed)
    model = ImageClassifier(vit_tiny(16, 4, **{"dim": 8, "depth": 1, "num_heads": 2} | overrides), 3)
    save_pretrained(model, folder)
    return model


def test_weights_are_the_weighted_mean(tmp_path):
    first, second = saved(tmp_path / "a", 0), saved(tmp_path / "b", 1)
    sources = [tmp_path / "a", tmp_path / "b"]
    for weights, share in ((None, 0.5), ((3, 1), 0.75)):
        mean = average_pretrained(sources, weights).state_dict()
        for name, value in first.state_dict().items():
            torch.testing.assert_close(mean[name], share * value + (1 - share) * second.state_dict()[name])


def test_models_of_another_architecture_are_refused(tmp_path):
    saved(tmp_path / "a", 0)
    saved(tmp_path / "b", 1, depth=2)
    with pytest.raises(CheckpointError, match=r"b: is of another architecture than .*a"):
        average_pretrained([tmp_path / "a", tmp_path / "b"])


@pytest.mark.parametrize("weights", [(1,), (0, 0)])
def test_weights_must_fit_the_sources(tmp_path, weights):
    with pytest.raises(ValueError, match="2 sources need as many weights"):
        average_pretrained([tmp_path, tmp_path], weights)
