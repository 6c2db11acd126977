"""What MaxViT and CoAtNet have in common: a stem of convolutions, stages that halve the map, a norm and pooling."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from visattn.backbones.features import Backbone, Features, as_pair
from visattn.backbones.layers import make_norm
from visattn.backbones.mobile_convolution import ConvolutionalStem, MobileDesign, as_map, as_tokens, channels_last


class MobileNetwork(Backbone):
    """Images (B, in_channels, H, W) to `Features` with one map per stage, of stride `patch_size` * 2**stage.

    A kind of it fills `stages`, whose blocks take maps (B, C, H, W) to maps.

    Args:
        arguments: of the kind's constructor, of which image_size, patch_size, dims, depths, stem_dims, stem_bias,
            in_channels, head_dim, norm, norm_eps and pooled_dim are read here.
        design: of the inverted bottlenecks.

    Raises:
        ValueError: dims and depths differ in length, head_dim doesn't divide dims, or patch_size is none of 2, 4, 8.
    """

    def __init__(self, arguments: dict[str, Any], design: MobileDesign) -> None:
        super().__init__()
        self.arguments = arguments
        dims, depths, patch_size = arguments["dims"], arguments["depths"], arguments["patch_size"]
        if len(dims) != len(depths):
            raise ValueError(f"dims {dims} and depths {depths} differ in stages")
        if any(dim % arguments["head_dim"] for dim in dims):
            raise ValueError(f"head_dim {arguments['head_dim']} doesn't divide all of dims {dims}")
        if patch_size not in (2, 4, 8):
            raise ValueError(f"patch_size {patch_size} doesn't fit a stem of two convolutions; choose 2, 4 or 8")
        self.image_size = as_pair(arguments["image_size"])
        self.channels = dims
        self.strides = tuple(patch_size * 2**stage for stage in range(len(dims)))
        self.depths = depths
        self.num_prefix_tokens = 0
        self.num_layers = sum(depths) + 1
        self.num_features = arguments["pooled_dim"] or dims[-1]

        self.stem = ConvolutionalStem(
            arguments["in_channels"], arguments["stem_dims"], patch_size // 2, design, bias=arguments["stem_bias"]
        )
        self.stages = nn.ModuleList()
        self.norm = make_norm(arguments["norm"], dims[-1], arguments["norm_eps"])
        self.pooler = nn.Linear(dims[-1], self.num_features) if arguments["pooled_dim"] else None

    def grid_of(self, stage: int) -> tuple[int, int]:
        """(height, width) of a stage's map of images of the size that the network is made for."""
        stride = self.strides[stage]
        return -(-self.image_size[0] // stride), -(-self.image_size[1] // stride)

    def forward(self, images: Tensor) -> Features:
        """Images (B, in_channels, H, W) of any size to `Features`.

        The last map is normalised as `tokens` are; not where a linear layer follows the pooling: then the norm does.
        """
        features = self.stem(channels_last(images))
        maps = []
        for stage in self.stages:
            for block in stage.children():
                features = block(features)  # (B, C_i, height, width)
            maps.append(features)
        tokens = as_tokens(features)  # (B, height * width, C)
        if self.pooler is not None:
            return Features(tuple(maps), tokens, torch.tanh(self.pooler(self.norm(tokens.mean(dim=1)))))
        tokens = self.norm(tokens)
        maps[-1] = as_map(tokens, (features.shape[-2], features.shape[-1]))
        return Features(tuple(maps), tokens, tokens.mean(dim=1))

    def layer_of(self, parameter_name: str) -> int:
        """0 for the stem, i for the i-th block (from 1) over all stages; what follows them goes with the last."""
        part, *rest = parameter_name.split(".")
        if part == "stages":
            return sum(self.depths[: int(rest[0])]) + int(rest[1]) + 1
        return 0 if part == "stem" else self.num_layers - 1
