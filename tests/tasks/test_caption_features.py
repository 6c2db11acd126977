"""Features of a frozen backbone on disk."""

from __future__ import annotations

import os

import numpy as np
import pytest
import torch
from PIL import Image

from tests.tasks.small_captions import few_scenes
from visattn.backbones import vit_local_tiny
from visattn.data import Preprocess
from visattn.data.captions import CaptionData
from visattn.data.stored_images import StoredImages
from visattn.tasks.caption_features import cached_features


@pytest.fixture
def backbone():
    torch.manual_seed(0)
    return vit_local_tiny(16, 4, dim=8, depth=2, num_heads=2).eval()


@pytest.fixture
def data() -> CaptionData:
    return few_scenes(validation=7)


def files(folder) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_features_are_the_backbones_tokens_of_each_view(backbone, data, tmp_path):
    features = cached_features(backbone, data.stored_images("validation"), 2, tmp_path, batch_size=3)
    assert features.shape == (2, 7, 16, 8)
    assert features.dtype == np.float16
    seen, index = data.examples(7, "validation")
    assert index.tolist() == list(range(7))
    with torch.no_grad():
        for view, pictures in zip(features, (seen, seen.flip(3)), strict=True):
            expected = backbone(pictures).tokens
            torch.testing.assert_close(torch.from_numpy(view.copy()).float(), expected, atol=5e-3, rtol=2e-3)


def test_batches_hold_features_in_place_of_images(backbone, data, tmp_path):
    features = cached_features(backbone, data.stored_images("train"), 2, tmp_path)
    data.use_features({"train": features})
    shown, token_ids, index = next(iter(data.train_dataloader()))
    assert len(token_ids) == len(index) == 4
    for row, image in zip(shown, index.tolist(), strict=True):
        assert any(np.array_equal(row.numpy(), features[view, image].astype(np.float32)) for view in range(2))


def test_a_second_run_reads_what_the_first_computed(backbone, data, tmp_path):
    first = cached_features(backbone, data.stored_images("train"), 1, tmp_path)
    (name,) = files(tmp_path)
    before = (tmp_path / name).stat().st_mtime_ns
    backbone.forward = None
    np.testing.assert_array_equal(cached_features(backbone, data.stored_images("train"), 1, tmp_path), first)
    assert (tmp_path / name).stat().st_mtime_ns == before


def test_features_computed_in_bfloat16_are_kept_apart(backbone, data, tmp_path):
    exact = cached_features(backbone, data.stored_images("validation"), 1, tmp_path)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = cached_features(backbone, data.stored_images("validation"), 1, tmp_path)
    assert len(files(tmp_path)) == 2
    assert not np.array_equal(rounded, exact)
    np.testing.assert_allclose(rounded, exact, atol=0.1)


def test_all_that_features_depend_on_makes_another_file(backbone, data, tmp_path):
    cached_features(backbone, data.stored_images("train"), 1, tmp_path)
    cached_features(backbone, data.stored_images("train"), 2, tmp_path)
    cached_features(backbone, data.stored_images("validation"), 1, tmp_path)
    for preprocess in (Preprocess(16, mean=(0.4, 0.5, 0.5)), Preprocess(12)):
        data.preprocess = preprocess
        cached_features(backbone, data.stored_images("train"), 1, tmp_path)
    with torch.no_grad():
        backbone.norm.bias[0] += 1e-3
    cached_features(backbone, data.stored_images("train"), 1, tmp_path)
    assert len(files(tmp_path)) == 6


def test_a_changed_file_is_another_image(backbone, tmp_path):
    path, folder = tmp_path / "picture.png", tmp_path / "features"
    Image.new("RGB", (16, 16), "red").save(path)
    red = cached_features(backbone, StoredImages([path], Preprocess(16)), 1, folder)
    Image.new("RGB", (16, 16), "blue").save(path)
    os.utime(path, ns=(1, 1))
    blue = cached_features(backbone, StoredImages([path], Preprocess(16)), 1, folder)
    assert not np.array_equal(red, blue)


def test_a_file_that_is_cut_off_is_computed_again(backbone, data, tmp_path):
    features = np.array(cached_features(backbone, data.stored_images("test"), 1, tmp_path))
    path = next(tmp_path.iterdir())
    path.write_bytes(path.read_bytes()[:-100])
    np.testing.assert_array_equal(cached_features(backbone, data.stored_images("test"), 1, tmp_path), features)


def test_a_failed_computation_leaves_no_file(backbone, data, tmp_path):
    with torch.no_grad():
        backbone.norm.weight[0] = 1e8
    with pytest.raises(ValueError, match="exceed float16: leave out cache_features"):
        cached_features(backbone, data.stored_images("test"), 1, tmp_path)
    assert files(tmp_path) == []


def test_other_numbers_of_views_are_refused(backbone, data, tmp_path):
    with pytest.raises(ValueError, match="feature_views 0 is neither 1"):
        cached_features(backbone, data.stored_images("train"), 0, tmp_path)
