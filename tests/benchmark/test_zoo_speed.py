import pytest
import torch

from visattn.backbones import VisionTransformer
from visattn.benchmark import zoo_speed
from visattn.benchmark.backbones import twin_cases
from visattn.benchmark.zoo_speed import build, count_parameters, large_models, multiply_adds, small_models
from visattn.zoo import list_models


def test_all_presets_are_measured_at_one_size_at_least():
    assert set(small_models()) | set(large_models()) == {"airbench94", *list_models()}


sizes = [(name, 32) for name in small_models()]
sizes += [(name, 224) for name in large_models() if not name.endswith(("_small", "_base"))]


@pytest.mark.parametrize(("name", "image_size"), sizes)
def test_networks_of_all_families_can_be_counted(name, image_size):
    assert 5e6 < multiply_adds(name, image_size, 10) < 50e9


@pytest.mark.parametrize(  # as published
    ("name", "millions"), [("swin_tiny", 4500), ("pvt_v2_b0", 600), ("vit_base", 17_500), ("nat_mini", 2700)]
)
def test_multiply_adds_are_the_published_ones(name, millions):
    assert multiply_adds(name, 224, 1000) / 1e6 == pytest.approx(millions, rel=0.06)


def test_multiply_adds_of_the_reference_are_the_published_ones():
    # 3.6e14 operations in 9.9 epochs of 50,000 images, of which a training step needs three times the forward's.
    assert multiply_adds("airbench94", 32, 10) == pytest.approx(3.6e14 / 9.9 / 50_000 / 3 / 2, rel=0.03)


@pytest.mark.parametrize("image_size", [32, 96])  # of which one has few enough tokens to be computed densely
def test_neighborhood_attention_counts_the_keys_that_are_seen(monkeypatch, image_size):
    def network(kind):
        options = {"attention": (kind,), "attention_options": {"local": {"kernel_size": 5}} if kind == "local" else {}}
        return VisionTransformer(
            image_size, 4, dim=24, depth=1, num_heads=2, class_token=False, pooling="average", **options
        )

    counts = {}
    for kind in ("global", "local"):
        monkeypatch.setattr(zoo_speed, "build", lambda *_, kind=kind: network(kind))
        counts[kind] = multiply_adds("any", image_size, 10)
    tokens = (image_size // 4) ** 2
    assert counts["global"] - counts["local"] == 2 * 24 * tokens * (tokens - 25)


def test_our_operators_have_formulas():
    names = {name.split(".")[0] for name in torch._C._dispatch_get_all_op_names() if name.startswith("visattn::")}
    counted = {formula._qualified_op_name for formula in zoo_speed.formulas}
    not_of_backbones = {"visattn::products_at"}  # of deformable attention, in detectors
    assert {name for name in names if not name.endswith("_backward")} - not_of_backbones <= counted


@pytest.mark.parametrize("case", twin_cases, ids=lambda case: case.label)
def test_twins_have_as_many_parameters(case):
    import timm

    with torch.device("meta"):
        theirs = timm.create_model(case.timm_name, **case.timm_arguments)
        ours = build(case.name, case.image_size, 1000)
    assert count_parameters(ours) == count_parameters(theirs)
