"""An object detector takes pictures of any size and says where objects are in their own pixels."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from visattn.backbones import TimmBackbone
from visattn.data.detection_preprocess import DetectionPreprocess
from visattn.data.image_batch import pad_images
from visattn.data.images import ImageFileError
from visattn.heads import DeformableDetrHead, Detections, ObjectDetector

size = {"dim": 16, "num_heads": 2, "hidden_dim": 20, "decoder_depth": 2, "num_queries": 7, "denoising": 10}


class WholeImage(nn.Module):
    """A head that finds one object: the whole image, and within the mask what is brighter than zero."""

    num_classes = 2

    def predict(self, maps, padding, sizes, *, max_detections):
        self.seen = padding, sizes, max_detections
        height, width = sizes[:, 0].tolist(), sizes[:, 1].tolist()
        return [
            Detections(
                torch.tensor([[0.0, 0.0, w, h]]), torch.tensor([0.7]), torch.tensor([1]), torch.ones(1, h, w) > 0
            )
            for h, w in zip(height, width, strict=True)
        ]


def picture(width, height):
    return Image.fromarray(np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8))


def detector(head=None, classes=("cat", "dog")):
    torch.manual_seed(0)
    backbone = TimmBackbone("test_resnet", 64)
    model = ObjectDetector(
        backbone, head or DeformableDetrHead(backbone.channels, backbone.strides, 2, **size), classes
    )
    model.preprocess = DetectionPreprocess(48, 80)
    return model.eval()


def test_boxes_and_masks_are_in_pixels_of_the_pictures_themselves(tmp_path):
    model = detector(WholeImage())
    picture(31, 60).save(tmp_path / "a.png")
    found = model.detect([tmp_path / "a.png", picture(200, 90), str(tmp_path / "a.png")])
    for one, (width, height) in zip(found, ((31, 60), (200, 90), (31, 60)), strict=True):
        assert one.boxes.tolist() == [[0.0, 0.0, width, height]]
        assert one.masks.shape == (1, height, width)
        assert one.masks.all()
    padding, sizes, _ = model.head.seen
    assert sizes.tolist() == [[80, 41], [36, 80], [80, 41]]
    assert (~padding).flatten(1).sum(1).tolist() == [80 * 41, 36 * 80, 80 * 41]


def test_one_picture_may_stand_alone_and_a_tensor_counts_its_own_pixels():
    model = detector(WholeImage())
    assert model.detect(picture(50, 40))[0].boxes.tolist() == [[0.0, 0.0, 50.0, 40.0]]
    found = model.detect(torch.zeros(2, 3, 32, 64))
    assert [one.boxes.tolist() for one in found] == [[[0.0, 0.0, 64.0, 32.0]]] * 2


def test_what_is_not_surer_than_the_threshold_is_left_out():
    model = detector(WholeImage())
    assert len(model.detect(picture(50, 40), threshold=0.7)[0].boxes) == 0
    model.detect(picture(50, 40), max_detections=5)
    assert model.head.seen[2] == 5


def test_forward_gives_the_heads_raw_predictions():
    model = detector()
    batch = pad_images([torch.randn(3, 61, 33), torch.randn(3, 40, 64)])
    output = model(batch.images, batch.padding)
    assert output.logits.shape == (2, 7, 2)
    assert output.boxes.shape == (2, 7, 4)
    assert output.auxiliary == ()
    whole = model(batch.images)
    torch.testing.assert_close(model(batch.images, torch.zeros_like(batch.padding)).boxes, whole.boxes)
    assert not torch.allclose(whole.boxes, output.boxes)


def test_detections_are_sorted_within_the_image_and_without_gradients():
    model = detector()
    found = model.detect([picture(50, 40), picture(33, 71)], threshold=0.0)
    for one, (width, height) in zip(found, ((50, 40), (33, 71)), strict=True):
        assert len(one.boxes) == 14
        assert (one.scores.diff() <= 0).all()
        assert (one.boxes >= 0).all()
        assert (one.boxes <= torch.tensor([width, height, width, height])).all()
        assert not one.boxes.requires_grad
        assert one.masks is None


@pytest.mark.parametrize("count", [2, 0])
def test_losses_are_finite_without_objects_and_for_an_empty_batch(count):
    model = detector().train()
    batch = pad_images([torch.randn(3, 64, 64)] * 2)
    batch = type(batch)(*(part[:count] for part in batch))
    targets = [{"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.long)}] * count
    if count == 0:
        model.backbone.eval()  # batch norms of no image have no statistics
    loss = sum(model.loss(batch, targets).values())
    loss.backward()
    assert loss.isfinite()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters() if parameter.grad is not None)


def test_what_does_not_fit_is_refused(tmp_path):
    model = detector()
    with pytest.raises(ValueError, match="3 names of classes don't fit a head of 2 classes"):
        detector(classes=("a", "b", "c"))
    with pytest.raises(ValueError, match=r"\(3, 8, 8\) are no batch"):
        model.detect(torch.zeros(3, 8, 8))
    with pytest.raises(ValueError, match="there are no images"):
        model.detect([])
    (tmp_path / "a.png").write_bytes(b"no picture")
    with pytest.raises(ImageFileError, match=r"a\.png"):
        model.detect(tmp_path / "a.png")
    model.preprocess = None
    with pytest.raises(ValueError, match=r"set model\.preprocess"):
        model.detect(picture(8, 8))
