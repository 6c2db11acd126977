import time

import pytest
import torch

import visattn
from tests.benchmark.cifar_folders import write_images
from visattn.benchmark.airbench import Airbench94
from visattn.benchmark.zoo_speed import build, small_models
from visattn.benchmark.zoo_training import (
    Images,
    augmented_batches,
    elapsing,
    load_images,
    measure_accuracy,
    memory_format,
    train_with_muon,
)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return load_images(write_images(tmp_path_factory.mktemp("cifar")), train_images=60)


def steps_of(count):
    return (step / count for step in range(count))


def small_model():
    return visattn.create_model("vit_tiny", 3, 32, dim=24, depth=2, num_heads=2)


def test_fewer_images_are_spread_over_all_classes(data):
    assert data.train.labels.bincount().tolist() == [20, 20, 20]
    assert len(data.test.labels) == 36


def test_time_passes_from_the_call_on():
    fractions = elapsing(0.4)
    time.sleep(0.2)
    passed = []
    for fraction in fractions:
        passed.append(fraction)
        time.sleep(0.01)
    assert passed[0] == 0
    assert 0.5 <= passed[1] < passed[-1] < 1


def test_training_ends_with_its_time(data):
    seen = []
    start = time.perf_counter()
    trained = train_with_muon(
        small_model(),
        augmented_batches(data, 20, 0, erasing=0.2),
        elapsing(0.5),
        lambda passed, loss: seen.append(passed),
        learning_rate=6e-3,
    )
    assert time.perf_counter() - start >= 0.5
    assert trained.steps == len(seen)
    assert trained.images == 20 * trained.steps
    assert seen == sorted(seen)
    assert seen[0] == 0
    assert seen[-1] < 1


def test_the_recipe_learns(data):
    torch.manual_seed(0)
    batches = augmented_batches(data, 20, 0, erasing=0.2)
    trained = train_with_muon(small_model(), batches, steps_of(60), lambda passed, loss: None, learning_rate=6e-3)
    assert (trained.steps, trained.left_out) == (60, 0)
    score = measure_accuracy(trained.model, data.test, data.preprocess)
    assert score.accuracy > 0.9


def test_a_step_without_finite_gradient_is_left_out(data):
    def batches():
        for count, (images, labels) in enumerate(augmented_batches(data, 8, 0)):
            yield images * (float("inf") if count == 1 else 1.0), labels

    trained = train_with_muon(small_model(), batches(), steps_of(5), lambda passed, loss: None, learning_rate=1e-3)
    assert (trained.steps, trained.left_out) == (4, 1)
    assert all(tensor.isfinite().all() for tensor in trained.model.state_dict().values())


def test_views_are_averaged(data):
    class Bright(torch.nn.Module):
        """Class 0 where the top left pixel is bright, else class 1."""

        def forward(self, images):
            return torch.stack([images[:, 0, 0, 0], torch.zeros(len(images))], dim=1)

    images = torch.zeros(2, 3, 32, 32, dtype=torch.uint8)
    images[0, :, 0, 0], images[1, :, 0, 0] = 255, 150  # behind the mean of the mirrored pixel only the first stays
    score = measure_accuracy(Bright(), Images(images, torch.tensor([0, 1])), data.preprocess)
    assert (score.accuracy, score.views, score.accuracy_views) == (0.5, 2, 1.0)
    alone = measure_accuracy(Bright(), Images(images, torch.tensor([0, 1])), data.preprocess, views=1)
    assert (alone.accuracy, alone.accuracy_views) == (0.5, None)


def test_convolutional_networks_run_channels_last():
    assert memory_format(Airbench94()) == torch.channels_last
    assert memory_format(visattn.create_model("local_hybrid_tiny", 3, 32)) == torch.channels_last
    assert memory_format(small_model()) == torch.contiguous_format


@pytest.mark.parametrize("name", [name for name in small_models()[1:] if name != "swin_tiny"])  # which takes longest
def test_networks_of_all_families_can_be_trained(name, data):
    torch.manual_seed(0)
    model = build(name, 32, 3)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    batches = augmented_batches(data, 4, 0)
    trained = train_with_muon(model, batches, steps_of(2), lambda passed, loss: None, learning_rate=6e-3)
    assert trained.left_out == 0
    assert all(tensor.isfinite().all() for tensor in trained.model.state_dict().values())
    same = [torch.equal(*pair) for pair in zip(before, model.parameters(), strict=True)]
    assert sum(same) / len(same) < 0.1  # such as what nothing depends on yet
