"""Detection heads that judge every place of the maps: FCOS, RetinaNet, Faster R-CNN and Mask R-CNN of torchvision."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection import FCOS, FasterRCNN, RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.fcos import FCOSHead
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.retinanet import RetinaNetHead as RetinaNetTowers
from torchvision.models.detection.roi_heads import paste_masks_in_image
from torchvision.ops import MultiScaleRoIAlign
from torchvision.ops.poolers import initLevelMapper

from visattn.backbones.features import constructor_arguments
from visattn.heads.detections import Detections
from visattn.heads.feature_pyramid import FeaturePyramid


class DenseHead(nn.Module):
    """What the four heads share: one of torchvision's networks, whose backbone is a `FeaturePyramid` over our maps.

    Boxes are in pixels of the batch's images, and don't reach into their padding.

    Args:
        network: torchvision's; only its parts are called.
        num_classes: labels are 0 to num_classes - 1.
        arguments: keywords of the head as plain data.
    """

    def __init__(self, network: nn.Module, num_classes: int, arguments: dict[str, Any]) -> None:
        super().__init__()
        self.network: Any = network
        self.num_classes = num_classes
        self.arguments = arguments

    def forward(self, maps: tuple[Tensor, ...], padding: Tensor, sizes: Tensor) -> list[Detections]:
        """As `predict`, since these heads have no raw predictions that mean something by themselves."""
        return self.predict(maps, padding, sizes)

    def loss(
        self, maps: tuple[Tensor, ...], padding: Tensor, sizes: Tensor, targets: Sequence[Mapping[str, Any]]
    ) -> dict[str, Tensor]:
        """The parts of the loss, scalars whose sum is trained; objects whose boxes have no area are left out.

        Args:
            maps: of the backbone.
            padding: (B, H, W), bool, True where there is no image.
            sizes: (B, 2), height and width of each image in pixels.
            targets: of each image "boxes" (n, 4), left, top, right and bottom in pixels, "labels" (n,), and "masks"
                (n, height, width) where the head learns masks.
        """
        cells = self.pyramid_maps(maps)
        if not targets:
            return {"classification": torch.stack([level.sum() for level in cells.values()]).sum() * 0.0}
        return self.losses(image_list(padding, sizes), cells, [with_area(target) for target in targets])

    @torch.no_grad()
    def predict(
        self, maps: tuple[Tensor, ...], padding: Tensor, sizes: Tensor, *, max_detections: int = 100
    ) -> list[Detections]:
        """The surest objects of each image; maps, padding and sizes as in `loss`."""
        if not len(sizes):
            return []
        return self.detections(image_list(padding, sizes), self.pyramid_maps(maps), max_detections)

    def pyramid_maps(self, maps: tuple[Tensor, ...]) -> OrderedDict[str, Tensor]:
        """The maps of the pyramid by the names that torchvision gives them, "0" the finest."""
        cells = self.network.backbone(maps)
        return OrderedDict((str(level), one.float()) for level, one in enumerate(cells))

    def losses(
        self, images: ImageList, cells: OrderedDict[str, Tensor], targets: list[dict[str, Tensor]]
    ) -> dict[str, Tensor]:
        raise NotImplementedError

    def detections(self, images: ImageList, cells: OrderedDict[str, Tensor], limit: int) -> list[Detections]:
        raise NotImplementedError


class OneStageHead(DenseHead):
    """FCOS and RetinaNet: classes and boxes from two towers of convolutions, which all levels share."""

    def losses(
        self, images: ImageList, cells: OrderedDict[str, Tensor], targets: list[dict[str, Tensor]]
    ) -> dict[str, Tensor]:
        levels = list(cells.values())
        outputs, anchors = self.network.head(levels), self.network.anchor_generator(images, levels)
        return self.network.compute_loss(targets, outputs, anchors, *self.places(levels))

    def places(self, levels: list[Tensor]) -> tuple[list[int], ...]:
        """What else torchvision's loss needs to know of the maps."""
        return ()

    def detections(self, images: ImageList, cells: OrderedDict[str, Tensor], limit: int) -> list[Detections]:
        levels = list(cells.values())
        outputs, anchors = self.network.head(levels), self.network.anchor_generator(images, levels)
        per_place = self.network.anchor_generator.num_anchors_per_location()
        counts = [level[0, 0].numel() * number for level, number in zip(levels, per_place, strict=True)]
        split = {name: list(output.split(counts, dim=1)) for name, output in outputs.items()}
        self.network.detections_per_img = limit
        found = self.network.postprocess_detections(
            split, [list(one.split(counts)) for one in anchors], images.image_sizes
        )
        found = [with_area(one) for one in found]  # in the padding nothing is left of a box
        return [Detections(one["boxes"], one["scores"], one["labels"]) for one in found]


class FcosHead(OneStageHead):
    """FCOS: each place within the middle of an object tells its class, its box, and how central it is.

    Args:
        channels, strides: of the backbone's maps, finest first.
        num_classes: labels are 0 to num_classes - 1.
        out_channels: of the pyramid and the towers, a multiple of 32.
        levels: of the pyramid, see `FeaturePyramid`. The finest learns objects of up to 8 of its strides.
        convolutions: of each tower.
        min_score: detections below it are not given.
        nms_threshold: of two boxes of a class that overlap more than this (IoU) the surer one stays.

    Source: Tian et al. 2019 (https://arxiv.org/abs/1904.01355), with the center sampling of its second version
        (https://arxiv.org/abs/2006.09214), by torchvision.
    """

    def __init__(
        self,
        channels: Sequence[int],
        strides: Sequence[int],
        num_classes: int,
        *,
        out_channels: int = 256,
        levels: Sequence[int] = (3, 4, 5, 6, 7),
        convolutions: int = 4,
        min_score: float = 0.01,
        nms_threshold: float = 0.6,
    ) -> None:
        arguments = head_arguments(locals())
        pyramid = FeaturePyramid(channels, strides, out_channels, levels)
        towers = FcosTowers(out_channels, 1, num_classes, convolutions)
        towers.register_forward_hook(as_float32)
        network = FCOS(
            pyramid,
            num_classes,
            anchor_generator=CenteredAnchors([(stride,) for stride in pyramid.strides], (1.0,), pyramid.strides),
            head=towers,
            score_thresh=min_score,
            nms_thresh=nms_threshold,
        )
        super().__init__(network, num_classes, arguments)

    def places(self, levels: list[Tensor]) -> tuple[list[int], ...]:
        return ([level[0, 0].numel() for level in levels],)


class FcosTowers(FCOSHead):
    """torchvision's towers, whose loss is the mean over the positive places of all processes of a run."""

    def compute_loss(
        self,
        targets: list[dict[str, Tensor]],
        head_outputs: dict[str, Tensor],
        anchors: list[Tensor],
        matched_idxs: list[Tensor],
    ) -> dict[str, Tensor]:
        losses = super().compute_loss(targets, head_outputs, anchors, matched_idxs)
        own = torch.stack([(matched >= 0).sum() for matched in matched_idxs]).sum().float()
        share = own.clamp(min=1) / mean_over_processes(own).clamp(min=1)
        return {name: part * share for name, part in losses.items()}


class RetinaNetHead(OneStageHead):
    """RetinaNet: each place judges anchors of several sizes and shapes, by the focal loss.

    Args:
        channels, strides, num_classes, out_channels, levels, min_score, nms_threshold: as in `FcosHead`.
        anchor_size: side of the smallest anchors of a level in its strides; two more are 2^(1/3) and 2^(2/3) as large.
        aspect_ratios: height to width of anchors.

    Source: Lin et al. 2017 (https://arxiv.org/abs/1708.02002), by torchvision, with group norm as in its second
        version.
    """

    def __init__(
        self,
        channels: Sequence[int],
        strides: Sequence[int],
        num_classes: int,
        *,
        out_channels: int = 256,
        levels: Sequence[int] = (3, 4, 5, 6, 7),
        anchor_size: float = 4.0,
        aspect_ratios: Sequence[float] = (0.5, 1.0, 2.0),
        min_score: float = 0.01,
        nms_threshold: float = 0.5,
    ) -> None:
        arguments = head_arguments(locals())
        pyramid = FeaturePyramid(channels, strides, out_channels, levels)
        sizes = [tuple(anchor_size * stride * 2 ** (third / 3) for third in range(3)) for stride in pyramid.strides]
        anchors = CenteredAnchors(sizes, aspect_ratios, pyramid.strides)
        norm = partial(nn.GroupNorm, 32)
        towers = RetinaNetTowers(out_channels, anchors.num_anchors_per_location()[0], num_classes, norm_layer=norm)
        towers.register_forward_hook(as_float32)
        network = RetinaNet(
            pyramid,
            num_classes,
            anchor_generator=anchors,
            head=towers,
            score_thresh=min_score,
            nms_thresh=nms_threshold,
        )
        super().__init__(network, num_classes, arguments)


class TwoStageHead(DenseHead):
    """Faster and Mask R-CNN: a first network proposes boxes, a second one classifies and corrects what is in them."""

    def losses(
        self, images: ImageList, cells: OrderedDict[str, Tensor], targets: list[dict[str, Tensor]]
    ) -> dict[str, Tensor]:
        # torchvision's label 0 is the background.
        shifted = [target | {"labels": target["labels"] + 1} for target in targets]
        self.network.train()  # its parts give a loss in training only; none of them has another state
        proposals, of_proposals = self.network.rpn(images, cells, shifted)
        _, of_boxes = self.network.roi_heads(cells, proposals, images.image_sizes, shifted)
        return of_proposals | of_boxes

    def detections(self, images: ImageList, cells: OrderedDict[str, Tensor], limit: int) -> list[Detections]:
        self.network.eval()
        self.network.roi_heads.detections_per_img = limit
        proposals, _ = self.network.rpn(images, cells)
        found, _ = self.network.roi_heads(cells, proposals, images.image_sizes)
        return [
            Detections(one["boxes"], one["scores"], one["labels"] - 1, pasted(one, size))
            for one, size in zip(found, images.image_sizes, strict=True)
        ]


class FasterRcnnHead(TwoStageHead):
    """Faster R-CNN on a feature pyramid.

    Args:
        channels, strides, num_classes, out_channels, min_score, nms_threshold: as in `FcosHead`.
        levels: of the pyramid, see `FeaturePyramid`. The coarsest, if there are several, only makes proposals.
        hidden: width of the two layers that judge a box.
        samples: proposals of each image that the second network learns from.
        proposals: at most so many of each image are judged.
        anchor_size: side of a level's anchors in its strides.
        aspect_ratios: height to width of anchors.

    Source: Ren et al. 2015 (https://arxiv.org/abs/1506.01497) and Lin et al. 2017 (https://arxiv.org/abs/1612.03144),
        by torchvision.
    """

    def __init__(
        self,
        channels: Sequence[int],
        strides: Sequence[int],
        num_classes: int,
        *,
        out_channels: int = 256,
        levels: Sequence[int] = (2, 3, 4, 5, 6),
        hidden: int = 1024,
        samples: int = 512,
        proposals: int = 1000,
        anchor_size: float = 8.0,
        aspect_ratios: Sequence[float] = (0.5, 1.0, 2.0),
        min_score: float = 0.01,
        nms_threshold: float = 0.5,
    ) -> None:
        arguments = head_arguments(locals())
        pyramid = FeaturePyramid(channels, strides, out_channels, levels)
        sizes = [(anchor_size * stride,) for stride in pyramid.strides]
        predictor = FastRCNNPredictor(hidden, num_classes + 1)
        network = FasterRCNN(
            pyramid,
            rpn_anchor_generator=CenteredAnchors(sizes, aspect_ratios, pyramid.strides),
            rpn_pre_nms_top_n_train=2 * proposals,
            rpn_pre_nms_top_n_test=proposals,
            rpn_post_nms_top_n_train=2 * proposals,
            rpn_post_nms_top_n_test=proposals,
            box_roi_pool=region_pool(pyramid.strides, levels, 7),
            box_head=TwoMLPHead(out_channels * 7**2, hidden),
            box_predictor=predictor,
            box_batch_size_per_image=samples,
            box_score_thresh=min_score,
            box_nms_thresh=nms_threshold,
        )
        for part in (network.rpn.head, predictor):
            part.register_forward_hook(as_float32)
        super().__init__(network, num_classes, arguments)


class MaskRcnnHead(FasterRcnnHead):
    """Mask R-CNN: Faster R-CNN with a third network, which gives each box its mask of 28 x 28 cells.

    Args:
        mask_channels, mask_convolutions: of that network.
        The others are those of `FasterRcnnHead`.

    Source: He et al. 2017 (https://arxiv.org/abs/1703.06870), by torchvision.
    """

    def __init__(
        self,
        channels: Sequence[int],
        strides: Sequence[int],
        num_classes: int,
        *,
        out_channels: int = 256,
        levels: Sequence[int] = (2, 3, 4, 5, 6),
        mask_channels: int = 256,
        mask_convolutions: int = 4,
        **options: Any,
    ) -> None:
        arguments = head_arguments(locals(), extra="options")
        super().__init__(channels, strides, num_classes, out_channels=out_channels, levels=levels, **options)
        self.arguments = arguments
        regions = self.network.roi_heads
        regions.mask_roi_pool = region_pool(self.network.backbone.strides, levels, 14)
        regions.mask_head = MaskRCNNHeads(out_channels, (mask_channels,) * mask_convolutions, 1)
        regions.mask_predictor = MaskRCNNPredictor(mask_channels, mask_channels, num_classes + 1)
        regions.mask_predictor.register_forward_hook(as_float32)


class CenteredAnchors(AnchorGenerator):
    """Anchors in the middle of the cells, wherever images end within their padding.

    Args:
        sizes: sides in pixels, those of each level.
        aspect_ratios: height to width, of all levels.
        strides: pixels per cell of each level.
    """

    def __init__(
        self, sizes: Sequence[Sequence[float]], aspect_ratios: Sequence[float], strides: Sequence[int]
    ) -> None:
        super().__init__(
            tuple(tuple(size) for size in sizes), (tuple(float(ratio) for ratio in aspect_ratios),) * len(sizes)
        )
        self.strides = tuple(strides)

    def forward(self, image_list: ImageList, feature_maps: list[Tensor]) -> list[Tensor]:
        """For each image the same anchors (n, 4), float32 also where maps have a lower precision."""
        self.set_cell_anchors(torch.float32, feature_maps[0].device)
        grids = [level.shape[-2:] for level in feature_maps]
        corners = self.grid_anchors(grids, [(stride, stride) for stride in self.strides])
        anchors = torch.cat([level + stride / 2 for level, stride in zip(corners, self.strides, strict=True)])
        return [anchors] * len(image_list.image_sizes)


def region_pool(strides: Sequence[int], levels: Sequence[int], side: int) -> MultiScaleRoIAlign:
    """Cuts boxes out of all maps but the coarsest, each out of the map that suits its size, to side x side cells."""
    used = max(len(levels) - 1, 1)
    pool = MultiScaleRoIAlign([str(level) for level in range(used)], side, sampling_ratio=2)
    # It would guess these from the sizes of maps and images, which disagree where images are padded.
    pool.scales = [1 / stride for stride in strides[:used]]
    pool.map_levels = initLevelMapper(levels[0], levels[used - 1])
    return pool


def pasted(found: Mapping[str, Tensor], size: tuple[int, int]) -> Tensor | None:
    """The masks (n, height, width), bool, in an image of this size; None if none were predicted."""
    if "masks" not in found:
        return None
    # In parts, since soft masks of whole images take much memory.
    parts = zip(found["masks"].split(16), found["boxes"].split(16), strict=True)
    masks = [paste_masks_in_image(masks, boxes, size)[:, 0] > 0.5 for masks, boxes in parts]
    return torch.cat(masks) if masks else found["masks"].new_zeros((0, *size), dtype=torch.bool)


def image_list(padding: Tensor, sizes: Tensor) -> ImageList:
    """What torchvision's parts read of a batch: how large each image is within its padding (B, H, W)."""
    return ImageList(padding, [(int(height), int(width)) for height, width in sizes.tolist()])


def with_area(objects: Mapping[str, Any]) -> dict[str, Tensor]:
    """The objects of an image whose boxes have an area; a box without one has no logarithm of its sides."""
    boxes = objects["boxes"]
    kept = (boxes[:, 2:] > boxes[:, :2]).all(dim=1)
    return {name: objects[name][kept] for name in ("boxes", "labels", "scores", "masks") if name in objects}


def mean_over_processes(number: Tensor) -> Tensor:
    """The mean of a scalar over all processes of a run."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return number
    total = number.clone()
    torch.distributed.all_reduce(total)
    return total / torch.distributed.get_world_size()


def as_float32(module: nn.Module, inputs: Any, output: Any) -> Any:
    """A forward hook: boxes and losses need more than the 16 bits that towers may compute in."""
    if isinstance(output, Mapping):
        return {name: as_float32(module, inputs, part) for name, part in output.items()}
    if isinstance(output, tuple | list):
        return type(output)(as_float32(module, inputs, part) for part in output)
    return output.float()


def head_arguments(values: Mapping[str, Any], extra: str = "") -> dict[str, Any]:
    """The keywords of a head's constructor as plain data, from the `locals()` of its first line."""
    arguments = constructor_arguments(values, extra)
    return {name: value for name, value in arguments.items() if name not in ("channels", "strides", "num_classes")}
