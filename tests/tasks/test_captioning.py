"""The captioning task: losses, what is frozen, what is scored, both stages."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image
from torch.nn import functional

import train
import visattn
from tests.tasks.small_captions import FewScenes, few_scenes
from tests.tasks.small_runs import small_backbone, trainer
from visattn.backbones import local_hybrid_tiny
from visattn.checkpoints import save_pretrained
from visattn.evaluation.captions import METRICS, evaluate
from visattn.heads import ImageClassifier
from visattn.tasks import ImageCaptioning
from visattn.tasks import captioning as captioning_module

conf = train.Path(train.__file__).parent / "conf"


def captioning(data: FewScenes, backbone=None, pretrained: str | None = None, **options) -> ImageCaptioning:
    """The task with the values of conf/, but a small model."""
    keywords = OmegaConf.to_container(OmegaConf.load(conf / "task" / "captioning.yaml"), resolve=False)
    assert keywords.pop("_target_") == "visattn.tasks.ImageCaptioning"
    decoder = {"dim": 16, "depth": 1, "num_heads": 2, "dropout": 0.0, "max_length": 24}
    small = {"seed": 0, "new_decoder": True, "decoder": decoder, "encoder_depth": 1, "encoder_heads": 2}
    if backbone is None and pretrained is None:
        backbone = small_backbone()
    return ImageCaptioning(data, backbone, pretrained, **keywords | small | options)


@pytest.fixture
def data() -> FewScenes:
    torch.manual_seed(0)
    return few_scenes()


@pytest.mark.filterwarnings("ignore:.*does not have many workers.*")
@pytest.mark.filterwarnings("ignore:.*in eval mode at the start of training.*")  # what is frozen
@pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning")  # between Lightning and torch
class TestRun:
    def test_a_run_leaves_model_results_and_picture_that_agree(self, data, tmp_path):
        task = captioning(data, validation_beams=1, test_beams=2, max_new_tokens=8)
        run = trainer(tmp_path, epochs=2)
        run.fit(task, datamodule=data)
        assert {"val/Bleu_4", "val/METEOR", "val/ROUGE_L", "val/CIDEr"} <= run.callback_metrics.keys()
        assert set(task.captions) == set(range(5))
        (tmp_path / "captions.png").unlink()  # that of the validation
        run.test(task, datamodule=data, verbose=False)
        task.save_results(tmp_path, data)
        results = json.loads((tmp_path / "results.json").read_text())
        assert [entry["image_id"] for entry in results] == list(data.references("test"))
        captions = {entry["image_id"]: entry["caption"] for entry in results}
        scores = evaluate(data.references("test"), captions).corpus
        assert run.callback_metrics["test/CIDEr"] == pytest.approx(scores["CIDEr"], rel=1e-6)
        model = visattn.load_pretrained(tmp_path / "model")
        images, index = data.examples(4)
        again = model.caption(images, num_beams=2, max_new_tokens=8)
        assert [captions[1017 + place] for place in index.tolist()] == [best.text for best, *_ in again]
        with Image.open(tmp_path / "captions.png") as picture:
            assert min(picture.size) > 300

    def test_a_frozen_backbone_stays_as_it_is(self, data, tmp_path):
        backbone = local_hybrid_tiny(16, dims=(8, 16), depths=(1, 1), num_heads=(1, 2), stem_dim=8, drop_path=0.5)
        before = {name: tensor.clone() for name, tensor in backbone.state_dict().items()}
        task = captioning(data, backbone, backbone_learning_rate=0)
        trainer(tmp_path, limit_val_batches=0).fit(task, datamodule=data)
        for name, tensor in task.model.backbone.state_dict().items():
            assert torch.equal(tensor, before[name]), name
        assert not task.train().model.backbone.training
        assert task.model.decoder.training

    def test_cached_features_train_as_the_images_do(self, tmp_path):
        weights = []
        for options in ({}, {"cache_features": True, "cache_folder": str(tmp_path / "features")}):
            torch.manual_seed(0)
            data = few_scenes()
            task = captioning(data, backbone_learning_rate=0, **options)
            trainer(tmp_path).fit(task, datamodule=data)
            weights.append(task.model.decoder.embedding.weight.detach())
        assert len(list((tmp_path / "features").iterdir())) == 2  # of training and validation
        assert (weights[0] - weights[1]).abs().max() < 2e-3
        assert not torch.equal(*weights)  # float16

    def test_the_second_stage_starts_from_the_first_and_raises_the_reward(self, tmp_path):
        data = few_scenes(train=4, validation=2, test=2)
        first = captioning(data, learning_rate=1e-2)
        trainer(tmp_path, 5, limit_val_batches=0).fit(first, datamodule=data)
        save_pretrained(first.model, tmp_path / "model")
        data = few_scenes(train=4, validation=2, test=2)
        second = captioning(
            data, pretrained=str(tmp_path / "model"), objective="scst", scst_learning_rate=2e-3, max_new_tokens=12
        )
        rewards: list[float] = []
        second.log = lambda name, value, **_: rewards.append(float(value)) if name == "train/reward" else None
        trainer(tmp_path, 40, limit_val_batches=0).fit(second, datamodule=data)
        assert len(rewards) == 40  # an epoch runs over the images, not over their captions
        assert np.mean(rewards[-8:]) > 1.2 * np.mean(rewards[:8])
        assert not second.train().model.decoder.training


def test_the_loss_is_the_mean_over_words_and_ends(data, tmp_path):
    task = captioning(data, label_smoothing=0.1).eval()
    task.trainer = trainer(tmp_path)
    images, token_ids, index = next(iter(data.train_dataloader()))
    index[1] = -1  # as if it only filled up the batch
    loss = task.word_loss(task.memory(images), token_ids, index)
    total, words = 0.0, 0
    for row in (0, 2, 3):
        length = token_ids[row].tolist().index(data.tokenizer.end_id) + 1
        logits = task.model(images[row : row + 1], token_ids[row : row + 1, : length - 1])[0]
        total += functional.cross_entropy(logits, token_ids[row, 1:length], label_smoothing=0.1, reduction="sum")
        words += length - 1
    torch.testing.assert_close(loss, total / words)


def test_captions_of_one_image_share_its_memory_in_the_loss(tmp_path):
    data = few_scenes(pairs="images", captions_per_image=3)
    task = captioning(data).eval()
    task.trainer = trainer(tmp_path)
    images, token_ids, index = next(iter(data.train_dataloader()))
    assert len(images) * 3 == len(token_ids) == len(index)
    shared = task.word_loss(task.memory(images), token_ids, index)
    repeated = task.word_loss(task.memory(images.repeat_interleave(3, dim=0)), token_ids, index)
    torch.testing.assert_close(shared, repeated)


def test_without_its_extra_meteor_is_left_out_with_one_warning(monkeypatch):
    def missing():
        raise ModuleNotFoundError('pip install "visattn[meteor]"')

    monkeypatch.setattr(captioning_module, "Meteor", missing)
    captioning_module.metrics.cache_clear()
    try:
        with pytest.warns(UserWarning, match=r"scored without METEOR: pip install"):
            captioning_module.metrics()
        assert set(METRICS) - set(captioning_module.metrics()) == {"METEOR"}  # without a second warning
        with pytest.raises(ValueError, match="monitor 'val/METEOR' is none of"):
            captioning(few_scenes(), monitor="val/METEOR")
    finally:
        captioning_module.metrics.cache_clear()


def test_scheduled_sampling_grows_over_the_epochs(data, tmp_path):
    task = captioning(data, scheduled_sampling=0.6)
    task.trainer = trainer(tmp_path, epochs=11)
    images, token_ids, _ = next(iter(data.train_dataloader()))
    token_ids = token_ids.repeat(50, 1)
    memory = task.memory(images).repeat(50, 1, 1)
    assert torch.equal(task.words_to_read(memory, token_ids), token_ids)
    for epoch, expected in ((5, 0.3), (10, 0.6)):
        task.trainer.fit_loop.epoch_progress.current.completed = epoch
        read = task.words_to_read(memory, token_ids)
        assert torch.equal(read[:, 0], token_ids[:, 0])
        chance = 1 / data.tokenizer.vocabulary_size  # that what is said happens to be right
        changed = (read[:, 1:] != token_ids[:, 1:]).float().mean()
        assert float(changed) == pytest.approx(expected * (1 - chance), abs=0.05)


def test_gradients_reach_all_weights_of_the_second_pass_in_bfloat16(data, tmp_path):
    """The first pass, without gradients, must not leave its 16-bit copies of the weights to the second."""
    task = captioning(data, scheduled_sampling=0.5)
    task.trainer = trainer(tmp_path, epochs=2)
    task.trainer.fit_loop.epoch_progress.current.completed = 1
    batch = next(iter(data.train_dataloader()))
    with torch.autocast("cpu", torch.bfloat16):
        task.word_loss(task.memory(batch[0]), batch[1], batch[2]).backward()
    missing = [name for name, parameter in task.model.decoder.named_parameters() if parameter.grad is None]
    assert missing == []


def test_a_classifiers_backbone_becomes_the_encoder_with_its_colours(data, tmp_path):
    classifier = ImageClassifier(small_backbone(), 3)
    classifier.preprocess = visattn.data.Preprocess(16, mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7))
    save_pretrained(classifier, tmp_path / "classifier")
    task = captioning(data, pretrained=str(tmp_path / "classifier"))
    torch.testing.assert_close(task.model.backbone.state_dict(), classifier.backbone.state_dict())
    assert data.preprocess.mean == (0.1, 0.2, 0.3)
    assert task.model.preprocess is data.preprocess
    with pytest.raises(ValueError, match="is no captioner but a ImageClassifier; there is nothing to test"):
        captioning(data, pretrained=str(tmp_path / "classifier"), new_decoder=False)


def test_a_pretrained_captioner_brings_its_words_and_preprocessing(data, tmp_path):
    other = few_scenes(seed=3, min_count=3)
    save_pretrained(captioning(other).model, tmp_path / "model")
    task = captioning(data, pretrained=str(tmp_path / "model"), new_decoder=False)
    assert data.tokenizer.arguments == other.tokenizer.arguments
    assert task.model.decoder.vocabulary_size == other.tokenizer.vocabulary_size
    _, token_ids, _ = next(iter(data.train_dataloader()))
    assert int(token_ids.max()) < other.tokenizer.vocabulary_size


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"objective": "reinforce"}, "objective 'reinforce' is unknown; choose cross_entropy or scst"),
        ({"monitor": "val/cider"}, "monitor 'val/cider' is none of val/Bleu_1"),
        ({"cache_features": True}, "set task.backbone_learning_rate=0"),
        ({"pretrained": "somewhere", "backbone": small_backbone()}, "give one of backbone"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_runs(data, options, message):
    with pytest.raises(ValueError, match=message):
        captioning(data, **options)


def test_a_run_is_not_continued_with_another_tokenizer_or_frozen_backbone(data):
    task = captioning(data, backbone_learning_rate=0)
    checkpoint = {"state_dict": task.state_dict()}
    task.on_save_checkpoint(checkpoint)
    task.on_load_checkpoint(checkpoint)
    with pytest.raises(ValueError, match=r"differing in decoder\.vocabulary_size .*, tokenizer"):
        captioning(few_scenes(min_count=9), backbone_learning_rate=0).on_load_checkpoint(checkpoint)
    with pytest.raises(ValueError, match="frozen backbone has other weights"):
        captioning(few_scenes(), small_backbone(), backbone_learning_rate=0).on_load_checkpoint(checkpoint)
