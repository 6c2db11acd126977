"""The detection task: what is trained, what is frozen, what is scored, and where models come from."""

from __future__ import annotations

import json
from functools import partial

import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image

import train
import visattn
from tests.tasks.small_runs import small_backbone, trainer
from visattn.backbones import TimmBackbone, local_hybrid_tiny
from visattn.checkpoints import save_pretrained
from visattn.data import Preprocess, ShapesDetectionDataModule
from visattn.evaluation.detection import evaluate_detections
from visattn.heads import (
    DeformableDetrHead,
    DetrHead,
    FasterRcnnHead,
    FcosHead,
    ImageClassifier,
    MaskRcnnHead,
    ObjectDetector,
    RetinaNetHead,
    RtDetrHead,
)
from visattn.tasks import ObjectDetection
from visattn.tasks.detection import example_index

conf = train.Path(train.__file__).parent / "conf"
pyramid = {"out_channels": 32, "levels": (2, 3, 4)}
regions = pyramid | {"hidden": 16, "samples": 16, "proposals": 20, "anchor_size": 3.0}
queries = {"dim": 16, "num_heads": 2, "num_queries": 9}
heads = {
    "fcos": partial(FcosHead, **pyramid, convolutions=1),
    "retinanet": partial(RetinaNetHead, **pyramid),
    "faster_rcnn": partial(FasterRcnnHead, **regions),
    "mask_rcnn": partial(MaskRcnnHead, **regions, mask_channels=8, mask_convolutions=1),
    "detr": partial(DetrHead, **queries, encoder_depth=1, decoder_depth=2, feedforward_dim=24),
    "deformable_detr": partial(DeformableDetrHead, **queries, decoder_depth=2, hidden_dim=24, denoising=6),
    "rt_detr": partial(
        RtDetrHead, **queries, encoder_dim=16, encoder_heads=2, encoder_hidden_dim=24, hidden_dim=24, depth=2,
        denoising_queries=6,
    ),
}  # fmt: skip


def few_scenes(train: int = 8, validation: int = 5, test: int = 4, **options) -> ShapesDetectionDataModule:
    sizes = {"train_scenes": train, "validation_scenes": validation, "test_scenes": test}
    data = ShapesDetectionDataModule(32, **sizes, **{"batch_size": 4} | options)
    data.setup()
    return data


def detection(data, backbone=None, pretrained: str | None = None, head: str = "fcos", **options) -> ObjectDetection:
    """The task with the values of conf/, but a small model."""
    keywords = OmegaConf.to_container(OmegaConf.load(conf / "task" / "detection.yaml"), resolve=False)
    assert keywords.pop("_target_") == "visattn.tasks.ObjectDetection"
    keywords.pop("defaults")
    if backbone is None and pretrained is None:
        backbone = small_backbone()
    given = {"seed": 0, "new_head": True, "head": heads[head]}
    return ObjectDetection(data, backbone, pretrained, **keywords | given | options)


def batch_of(data):
    return next(iter(data.train_dataloader()))


@pytest.fixture
def data() -> ShapesDetectionDataModule:
    torch.manual_seed(0)
    return few_scenes()


@pytest.mark.filterwarnings("ignore:.*does not have many workers.*")
@pytest.mark.filterwarnings("ignore:.*in eval mode at the start of training.*")  # what is frozen
@pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning")  # between Lightning and torch
class TestRun:
    @pytest.mark.parametrize("head", ["fcos", "mask_rcnn", "deformable_detr"])
    def test_a_run_leaves_model_results_and_pictures_that_agree(self, data, head, tmp_path):
        task = detection(data, head=head)
        run = trainer(tmp_path, epochs=1)
        run.fit(task, datamodule=data)
        kinds = ("bbox", "segm") if head == "mask_rcnn" else ("bbox",)
        prefixes = {"bbox": "", "segm": "mask_"}
        assert {f"val/{prefixes[kind]}{name}" for kind in kinds for name in ("AP", "AP50", "AP75")} <= set(
            run.callback_metrics
        )
        assert len(task.results) == 5
        (tmp_path / "detections.png").unlink()  # that of the validation
        run.test(task, datamodule=data, verbose=False)
        task.save_results(tmp_path, data)

        results = json.loads((tmp_path / "results.json").read_text())
        assert {entry["image_id"] for entry in results} <= {0, 1, 2, 3}
        scores = evaluate_detections(data.ground_truth("test"), results, kinds)
        for kind in kinds:
            numbers = getattr(scores, kind)
            assert len(numbers.numbers) == 12
            for name, value in numbers.numbers.items():
                assert float(run.callback_metrics[f"test/{prefixes[kind]}{name}"]) == pytest.approx(value, abs=1e-6)
            for one in numbers.per_class:
                assert float(run.callback_metrics[f"test/{prefixes[kind]}AP/{one.name}"]) == pytest.approx(one.AP)
                assert float(run.callback_metrics[f"test/{prefixes[kind]}AP50/{one.name}"]) == pytest.approx(one.AP50)

        model = visattn.load_pretrained(tmp_path / "model")
        assert model.classes == data.classes
        assert model.category_ids == data.category_ids
        images, _, index = data.examples(4)
        with torch.no_grad():
            again = dict(zip(index.tolist(), model.predict(images), strict=True))
        for place, one in again.items():
            mine = [entry["score"] for entry in results if entry["image_id"] == place]
            assert mine == pytest.approx(one.scores.tolist(), abs=1e-5)
        pictures = ["detections.png", "precision_recall.png"]
        pictures += ["mask_precision_recall.png"] if head == "mask_rcnn" else []
        for name in pictures:
            with Image.open(tmp_path / name) as picture:
                assert min(picture.size) > 150

    def test_a_frozen_backbone_stays_as_it_is(self, data, tmp_path):
        backbone = local_hybrid_tiny(32, dims=(8, 16), depths=(1, 1), num_heads=(1, 2), stem_dim=8)
        before = {name: tensor.clone() for name, tensor in backbone.state_dict().items()}
        task = detection(data, backbone, backbone_learning_rate=0)
        trainer(tmp_path, limit_val_batches=0).fit(task, datamodule=data)
        for name, tensor in task.model.backbone.state_dict().items():
            assert torch.equal(tensor, before[name]), name

    @pytest.mark.parametrize("frozen", [False, True])
    def test_frozen_batch_norms_keep_their_statistics_and_learn(self, data, frozen, tmp_path):
        backbone = local_hybrid_tiny(32, dims=(8, 16), depths=(1, 1), num_heads=(1, 2), stem_dim=8)
        before = {name: tensor.clone() for name, tensor in backbone.state_dict().items()}
        task = detection(data, backbone, freeze_batch_norm=frozen)
        trainer(tmp_path, limit_val_batches=0).fit(task, datamodule=data)
        after = task.model.backbone.state_dict()
        for name in before:
            if name.endswith(("running_mean", "running_var")):
                assert torch.equal(after[name], before[name]) == frozen, name
        assert not torch.equal(after["stem.0.0.weight"], before["stem.0.0.weight"])
        assert not torch.equal(after["stem.0.1.weight"], before["stem.0.1.weight"])

    def test_limited_validation_is_scored_by_the_images_that_were_seen(self, data, tmp_path):
        task = detection(data)
        run = trainer(tmp_path, limit_val_batches=1)
        run.fit(task, datamodule=data)
        assert len(task.results) == 4
        entries = [entry for found in task.results.values() for entry in found]
        scores = evaluate_detections(task.truth, entries, image_ids=list(task.results))
        assert float(run.callback_metrics["val/AP"]) == pytest.approx(scores.bbox.AP, abs=1e-6)


@pytest.mark.parametrize("head", heads)
@pytest.mark.parametrize("objects", [True, False])
def test_every_trainable_weight_gets_a_gradient_in_every_step(data, head, objects):
    """Several processes wait for each other's gradients of each weight."""
    torch.manual_seed(0)
    backbone = TimmBackbone("test_efficientnet", 32)
    task = detection(data, backbone, head=head)
    images, targets, index = batch_of(data)
    if not objects:
        targets = [{**target, **{name: target[name][:0] for name in ("boxes", "labels", "masks", "area", "iscrowd")}}
                   for target in targets]  # fmt: skip
    task.log = lambda *_, **__: None
    loss = task.training_step((images, targets, index), 0)
    assert loss.isfinite()
    loss.backward()
    trainable = {name: parameter for name, parameter in task.model.named_parameters() if parameter.requires_grad}
    assert [name for name, parameter in trainable.items() if parameter.grad is None] == []
    assert all(parameter.grad.isfinite().all() for parameter in trainable.values())
    assert len(trainable) > 0.7 * len(list(task.model.parameters()))


def test_what_no_map_rests_on_is_not_trained(data):
    torch.manual_seed(0)
    backbone = TimmBackbone("test_efficientnet", 32)
    statistics = {name: buffer.clone() for name, buffer in backbone.named_buffers()}
    task = detection(data, backbone)
    idle = {name for name, parameter in task.model.named_parameters() if not parameter.requires_grad}
    assert "backbone.network.conv_head.weight" in idle
    assert "backbone.network.conv_stem.weight" not in idle
    assert all(name.startswith("backbone.network.") for name in idle)
    for name, buffer in backbone.named_buffers():
        assert torch.equal(buffer, statistics[name]), name
    assert all(parameter.grad is None for parameter in task.parameters())


def test_finding_out_draws_no_random_numbers(data):
    torch.manual_seed(0)
    detection(data, small_backbone(), head="faster_rcnn")
    drawn = torch.rand(1)
    torch.manual_seed(0)
    backbone = small_backbone()
    heads["faster_rcnn"](backbone.channels, backbone.strides, data.num_classes)
    assert torch.equal(torch.rand(1), drawn)


def test_images_that_fill_up_a_batch_teach_nothing(data):
    task = detection(data)
    task.log = lambda *_, **__: None
    images, targets, index = batch_of(data)
    filled = index.clone()
    filled[2:] = -1
    expected = task.training_step((type(images)(*(part[:2] for part in images)), targets[:2], index[:2]), 0)
    torch.testing.assert_close(task.training_step((images, targets, filled), 0), expected)
    nothing = task.training_step((images, targets, torch.full_like(index, -1)), 0)
    assert float(nothing.detach()) == 0
    nothing.backward()
    assert all(parameter.grad is not None for parameter in task.parameters() if parameter.requires_grad)


def test_a_classifiers_backbone_gets_a_head_and_its_colours(data, tmp_path):
    classifier = ImageClassifier(small_backbone(), 3)
    classifier.preprocess = Preprocess(16, mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7))
    save_pretrained(classifier, tmp_path / "classifier")
    task = detection(data, pretrained=str(tmp_path / "classifier"))
    for name, tensor in classifier.backbone.state_dict().items():
        if not name.startswith("position"):  # which is fitted to the size of the images
            torch.testing.assert_close(task.model.backbone.state_dict()[name], tensor, msg=name)
    assert task.model.backbone.image_size == (32, 32)
    assert data.preprocess.mean == (0.1, 0.2, 0.3)
    assert task.model.preprocess is data.preprocess
    with pytest.raises(ValueError, match="is no detector but a ImageClassifier; there is nothing to test"):
        detection(data, pretrained=str(tmp_path / "classifier"), new_head=False)


def test_a_detector_goes_on_with_all_its_weights_and_its_preprocessing(data, tmp_path):
    first = detection(few_scenes(mean=(0.2, 0.3, 0.4)), head="retinanet")
    save_pretrained(first.model, tmp_path / "model")
    task = detection(data, pretrained=str(tmp_path / "model"), new_head=False)
    torch.testing.assert_close(task.model.state_dict(), first.model.state_dict())
    assert isinstance(task.model.head, RetinaNetHead)
    assert data.preprocess.mean == (0.2, 0.3, 0.4)


@pytest.mark.parametrize("head", ["fcos", "mask_rcnn", "deformable_detr", "rt_detr"])
def test_a_detector_of_other_classes_keeps_what_doesnt_depend_on_them(data, head, tmp_path):
    backbone = small_backbone()
    other = ObjectDetector(backbone, heads[head](backbone.channels, backbone.strides, 9))
    save_pretrained(other, tmp_path / "model")
    with pytest.raises(ValueError, match=r"finds 9 classes, without names, and the data have 4, .*; there is nothing"):
        detection(data, pretrained=str(tmp_path / "model"), new_head=False)
    task = detection(data, pretrained=str(tmp_path / "model"))
    assert task.model.num_classes == 4
    assert task.model.classes == data.classes
    before, after = other.state_dict(), task.model.state_dict()
    changed = {name for name in after if before[name].shape != after[name].shape}
    assert 0 < len(changed) < 0.3 * len(after)
    for name in after.keys() - changed:
        torch.testing.assert_close(after[name], before[name], msg=name)


def test_a_detector_whose_classes_have_other_names_is_not_taken_for_these(data, tmp_path):
    first = detection(data)
    first.model.classes = ("cat", "dog", "cow", "emu")
    save_pretrained(first.model, tmp_path / "model")
    with pytest.raises(ValueError, match="'cat'"):
        detection(data, pretrained=str(tmp_path / "model"), new_head=False)


@pytest.mark.filterwarnings("ignore:.*does not have many workers.*")
def test_a_detector_of_more_classes_is_tested_by_the_names_of_the_datas(data, tmp_path):
    backbone = small_backbone()
    names = ("N/A", "cross", "dog", "triangle", "square", "circle")
    model = ObjectDetector(backbone, heads["fcos"](backbone.channels, backbone.strides, 6, min_score=0.0), names)
    model.preprocess = data.preprocess
    save_pretrained(model, tmp_path / "model")
    task = detection(data, pretrained=str(tmp_path / "model"), new_head=False)
    assert task.model.classes == names
    trainer(tmp_path).test(task, datamodule=data, verbose=False)
    images, targets, _ = data.examples(4)
    with torch.no_grad():
        found = model.eval().predict(images)
    for one, target in zip(found, targets, strict=True):
        expected = [names[label] for label in one.labels.tolist() if names[label] in data.classes]
        results = task.results[int(target["image_id"])]
        assert [data.classes[data.category_ids.index(entry["category_id"])] for entry in results] == expected
        assert 0 < len(expected) < len(one.labels)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"monitor": "val/ap"}, "monitor 'val/ap' is none of val/AP, val/AP50, val/AP75$"),
        ({"monitor": "val/mask_AP"}, "monitor 'val/mask_AP' is none of"),
        ({"pretrained": "somewhere", "backbone": small_backbone()}, "give one of backbone"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_runs(data, options, message):
    with pytest.raises(ValueError, match=message):
        detection(data, **options)


def test_masks_are_not_learnt_from_data_without_them():
    with pytest.raises(ValueError, match="the head learns masks and the data have none"):
        detection(few_scenes(masks=False), head="mask_rcnn")


def test_a_run_is_not_continued_with_another_head(data):
    checkpoint = {}
    task = detection(data)
    task.on_save_checkpoint(checkpoint)
    task.on_load_checkpoint(checkpoint)
    with pytest.raises(ValueError, match=r"differing in .*head"):
        detection(data, head="retinanet").on_load_checkpoint(checkpoint)


def test_examples_are_spread_evenly():
    assert example_index(3) == [0, 1, 2]
    assert example_index(100)[0] == 0
    assert example_index(100)[-1] == 99
    assert len(set(example_index(100))) == 12
