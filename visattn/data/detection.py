"""What the data modules of object detection share: batches of images of any size, with boxes and masks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from visattn.data.annotated_pictures import AnnotatedPicture, AnnotatedPictures
from visattn.data.detection_augmentation import DetectionAugmentation
from visattn.data.detection_files import Instances
from visattn.data.detection_preprocess import DetectionPreprocess
from visattn.data.image_batch import ImageBatch, pad_images
from visattn.data.images import open_image
from visattn.data.loader import ResumableData, ResumableLoader
from visattn.data.preprocess import imagenet_mean, imagenet_std

Targets = list[dict[str, Any]]  # of each image, see `DetectionData`


class DetectionSplit(NamedTuple):
    """N pictures and the objects in them.

    Attributes:
        pictures: N of (3, h, w) uint8 in memory, in their own aspect ratios; None: files, decoded when asked for.
        instances: the objects.
    """

    pictures: Sequence[Tensor] | None
    instances: Instances


class DetectionData(ResumableData):
    """Loaders over pictures with objects in three splits, which `read_splits` of each data set gives.

    A batch, of training and of evaluation, is (`ImageBatch`, targets, index (B,)). The targets are as torchvision's
    detectors want them, a dictionary for each image with

        boxes     (n, 4) float, left, top, right and bottom in pixels of the image as it is in the batch
        labels    (n,) long, 0 to C - 1 in the order of ascending category ids
        image_id  its number in the annotations
        orig_size (2,) long, height and width of the picture itself
        area      (n,) float, in pixels of the image in the batch
        iscrowd   (n,) long; in training there are none
        masks     (n, height, width) uint8, of the image without padding, if the data has masks

    Boxes are clipped to the image, and none is empty. The index is a place in the split, or -1 for what only fills up a
    batch of several processes.

    Args:
        shortest, longest, fit, divisor: size of the images and their batches, see `DetectionPreprocess`.
        batch_size: images per process and step.
        num_workers: processes that make batches.
        seed: of order and augmentation.
        masks: read masks too.
        augmentation: keywords of `visattn.data.DetectionAugmentation`.
        mean, std: of the colours, as the model expects them.

    Attributes:
        task: "detection".
        classes: their names, by label.
        category_ids: their numbers in the annotations, by label.
        image_size: pixels of the longest side, which backbones are made for.
        has_masks: whether targets and ground truth have masks.
        preprocess: what the model must do to a picture before it sees it; may be replaced before the loaders are asked
            for.
        splits: name to pictures and objects, the names being train, validation and test.
    """

    task = "detection"
    classes: tuple[str, ...]
    category_ids: tuple[int, ...]

    def __init__(
        self,
        shortest: int,
        longest: int,
        *,
        fit: str = "within",
        batch_size: int = 8,
        num_workers: int = 0,
        seed: int = 0,
        divisor: int = 32,
        masks: bool = False,
        augmentation: dict | None = None,
        mean: Sequence[float] = imagenet_mean,
        std: Sequence[float] = imagenet_std,
    ) -> None:
        super().__init__(batch_size, num_workers, seed)
        self.image_size, self.has_masks = max(shortest, longest), masks
        self.preprocess = DetectionPreprocess(shortest, longest, fit=fit, mean=mean, std=std, divisor=divisor)
        self.augmentation = DetectionAugmentation(seed, **(augmentation or {}))
        self.splits: dict[str, DetectionSplit] = {}
        if self.augmentation.copy_paste and not masks:
            raise ValueError("copy_paste needs masks: set dataset.masks=true, or augmentation.copy_paste=0")

    @property
    def num_classes(self) -> int:
        return len(self.classes)

    def read_splits(self) -> dict[str, DetectionSplit]:
        """Pictures and objects of train, validation and test, which each data set has of its own; it also sets
        `classes` and `category_ids`."""
        raise NotImplementedError

    def setup(self, stage: str | None = None) -> None:
        if not self.splits:
            self.splits = self.read_splits()

    def train_dataloader(self) -> ResumableLoader:
        return self.shuffled(self.batches("train", self.augmentation))

    def val_dataloader(self) -> DataLoader:
        return self.in_order(self.batches("validation"))

    def test_dataloader(self) -> DataLoader:
        return self.in_order(self.batches("test"))

    def batches(self, split: str, augmentation: DetectionAugmentation | None = None) -> DetectionBatches:
        """The batches of a split, whole pictures with crowds where there is no augmentation."""
        pictures, instances = self.splits[split]
        shown = AnnotatedPictures(pictures, instances, self.preprocess, crowds=augmentation is None)
        return DetectionBatches(shown, augmentation)

    def examples(self, count: int, split: str = "test") -> tuple[ImageBatch, Targets, Tensor]:
        """A batch of pictures spread evenly over a split, to look at."""
        batches = self.batches(split)
        places = torch.linspace(0, len(batches) - 1, min(count, len(batches))).long().tolist()
        return batches.__getitems__([(0, place) for place in places])

    def open(self, split: str, index: int) -> Image.Image:
        """A picture of a split as it is, of its own size."""
        pictures, instances = self.splits[split]
        if instances.paths or pictures is None:
            return open_image(instances.paths[index])
        return Image.fromarray(pictures[index].permute(1, 2, 0).numpy())

    def ground_truth(self, split: str) -> dict[str, Any]:
        """The objects of a split as COCO's evaluation wants them: the contents of an `instances_*.json`.

        Boxes and areas are those of the file, crowds and empty boxes among them. Where an annotation has the id 0,
        which COCO's evaluation takes for none, all are numbered anew from 1 on.

        Source: https://cocodataset.org/#format-data, "Object Detection".
        """
        instances = self.splits[split].instances
        sizes = instances.sizes.tolist()
        files = [path.name for path in instances.paths] or [f"{number:06}.png" for number in instances.image_ids]
        images = [
            {"id": number, "file_name": file, "height": height, "width": width}
            for number, file, (height, width) in zip(instances.image_ids.tolist(), files, sizes, strict=True)
        ]
        owners = torch.arange(len(images)).repeat_interleave(torch.from_numpy(instances.first).diff()).tolist()
        numbers = instances.ids.tolist()
        if 0 in numbers:
            numbers = list(range(1, len(numbers) + 1))
        annotations = []
        for place, owner in enumerate(owners):
            annotation = {
                "id": numbers[place],
                "image_id": images[owner]["id"],
                "category_id": self.category_ids[instances.labels[place]],
                "bbox": instances.boxes[place].tolist(),
                "area": float(instances.areas[place]),
                "iscrowd": int(instances.crowd[place]),
            }
            if instances.masks is not None:
                annotation["segmentation"] = {"size": sizes[owner], "counts": instances.masks[place].decode("ascii")}
            annotations.append(annotation)
        categories = [
            {"id": number, "name": name} for number, name in zip(self.category_ids, self.classes, strict=True)
        ]
        return {"images": images, "annotations": annotations, "categories": categories}


class DetectionBatches(Dataset):
    """Batches (`ImageBatch`, targets, index (B,)), see `DetectionData`.

    Args:
        pictures: with objects.
        augmentation: None shows whole pictures.
    """

    def __init__(self, pictures: AnnotatedPictures, augmentation: DetectionAugmentation | None = None) -> None:
        self.pictures, self.augmentation = pictures, augmentation

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitems__(self, pairs: Sequence[tuple[int, int]]) -> tuple[ImageBatch, Targets, Tensor]:
        """A batch of some (epoch, index) pairs; index -1 shows the first picture, to be ignored."""
        images, targets = [], []
        for epoch, index in pairs:
            place = max(index, 0)
            if self.augmentation is None:
                shown = self.pictures.whole(place)
            else:
                shown = self.augmentation(self.pictures, epoch, place)
            images.append(self.pictures.preprocess.normalize(shown.pixels))
            targets.append(target(shown, self.pictures.instances, place))
        indices = torch.tensor([index for _, index in pairs])  # (B,)
        return pad_images(images, self.pictures.preprocess.divisor), targets, indices


def target(shown: AnnotatedPicture, instances: Instances, index: int) -> dict[str, Any]:
    """What is to be found in a picture, as torchvision's detectors are told."""
    objects = shown.objects.numpy()
    described = {
        "boxes": shown.boxes.as_subclass(Tensor),
        "labels": torch.from_numpy(instances.labels[objects]),
        "image_id": int(instances.image_ids[index]),
        "orig_size": torch.tensor(instances.sizes[index]),
        "area": shown.areas,
        "iscrowd": torch.from_numpy(instances.crowd[objects]).long(),
    }
    return described if shown.masks is None else described | {"masks": shown.masks}
