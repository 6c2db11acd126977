"""Position tables fitted to another image size, once, so that the model is made for it."""

from __future__ import annotations

import torch

from visattn.attention.low_rank import mixture_on
from visattn.attention.relative_position import resample_distances
from visattn.backbones import CompactConvolutionalTransformer, Hiera, VisionGNN, VisionTransformer
from visattn.backbones.embedding import resample_positions
from visattn.checkpoints.native import load_strictly
from visattn.heads import ImageCaptioner, ImageClassifier, VisualQuestionAnswerer
from visattn.heads.captioner import grid_of


@torch.no_grad()
def fit_image_size(
    model: ImageClassifier | ImageCaptioner | VisualQuestionAnswerer, image_size: tuple[int, int]
) -> None:
    """Makes the model one for `image_size` (height, width) in pixels, with the same weights.

    Learned position embeddings are resampled bicubically. Windows that grow or shrink with the image, and attention
    over the whole map, have their tables of relative positions resampled likewise; Linformer's mixtures are those of
    the larger map, as are the vectors by distance of attention with relative positions. All other weights stay. The
    positions that an encoder behind the backbone adds to its tokens are resampled bicubically, too.
    """
    backbone = model.backbone
    resized = type(backbone)(**backbone.arguments | {"image_size": image_size})
    weights = backbone.state_dict()
    positioned = VisionTransformer | CompactConvolutionalTransformer | Hiera | VisionGNN
    if isinstance(backbone, positioned) and isinstance(resized, positioned):
        table = backbone.position_embedding
        if table is not None:
            antialias = backbone.position_antialias
            weights["position_embedding"] = resample_positions(table, backbone.grid, resized.grid, antialias)
    for name, expected in resized.state_dict().items():
        if name.endswith("relative_position_bias") and weights[name].shape != expected.shape:
            weights[name] = torch.nn.functional.interpolate(
                weights[name][None].float(), expected.shape[1:], mode="bicubic", align_corners=False
            )[0].to(weights[name].dtype)
        if name.endswith(("key_mixture", "value_mixture")) and weights[name].shape != expected.shape:
            grid = (expected.shape[1], expected.shape[2])
            weights[name] = mixture_on(weights[name], grid).unflatten(1, grid)
        if name.endswith(("row_positions", "column_positions")) and weights[name].shape != expected.shape:
            weights[name] = resample_distances(weights[name], (expected.shape[0] + 1) // 2)
    load_strictly(resized, weights, f"fitting the positions to {image_size[0]}x{image_size[1]} pixels")
    model.backbone = resized
    if not isinstance(model, ImageClassifier) and model.encoder is not None:
        model.encoder.fit_grid(grid_of(resized))
    if model.preprocess is not None:
        model.preprocess = model.preprocess.at(image_size)
