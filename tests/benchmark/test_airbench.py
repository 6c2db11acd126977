import pytest
import torch

from tests.benchmark.cifar_folders import write_images
from visattn.benchmark.airbench import Airbench94, Lookahead, train_airbench
from visattn.benchmark.zoo_training import augmented_batches, first_images, load_images, measure_accuracy


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return load_images(write_images(tmp_path_factory.mktemp("cifar")))


def test_it_has_the_published_size():
    trained = sum(parameter.numel() for parameter in Airbench94().parameters())
    assert round(trained / 1e6, 2) == 1.97
    assert Airbench94(7)(torch.randn(2, 3, 32, 32)).shape == (2, 7)
    assert Airbench94(7)(torch.randn(2, 3, 41, 53)).shape == (2, 7)


def test_convolutions_pass_their_input_on_at_first():
    convolution = Airbench94().groups[0][0]
    cells = torch.randn(2, 24, 5, 7)
    torch.testing.assert_close(convolution(cells)[:, :24], cells)


def test_lookahead_sets_the_network_back_to_its_average():
    model = torch.nn.Linear(3, 2)
    lookahead = Lookahead(model)
    before = model.weight.detach().clone()
    with torch.no_grad():
        model.weight += 1
    lookahead.update(0.75)
    torch.testing.assert_close(model.weight.detach(), before + 0.25)
    with torch.no_grad():
        model.weight += 1
    lookahead.update(1.0)
    torch.testing.assert_close(model.weight.detach(), before + 0.25)


def steps_of(count):
    return (step / count for step in range(count))


def test_it_learns_and_freezes_the_first_layer(data):
    torch.manual_seed(0)
    model = Airbench94(3, (16, 24, 24))
    losses = []
    batches = augmented_batches(data, 30, 0)
    trained = train_airbench(
        model, first_images(data, 50), batches, steps_of(40), lambda passed, loss: losses.append(loss)
    )
    score = measure_accuracy(trained.model, data.test, data.preprocess)
    assert score.accuracy > 0.9, (trained, losses)
    assert trained.steps == len(losses) == 40
    assert trained.images == 30 * 40
    assert model.whitening.bias.abs().sum() > 0
    assert not model.whitening.bias.requires_grad
