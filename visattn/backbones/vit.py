"""The Vision Transformer: patches of an image as tokens, and blocks whose attention kind may change with depth."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from visattn.attention import RingAttention, gather_tokens, tokens_here
from visattn.backbones.attention_kinds import check_pattern, choose_attention
from visattn.backbones.blocks import BlockDesign, blocks
from visattn.backbones.embedding import ConvolutionalEmbedding, PatchEmbedding, resample_positions, sinusoids
from visattn.backbones.features import Backbone, Features, as_pair, constructor_arguments
from visattn.backbones.layers import drop_path_rates, initialize, make_norm
from visattn.backbones.pooling import AttentionPooling, pool_tokens, poolings


class VisionTransformer(Backbone):
    """Images (B, channels, H, W) to `Features` with one map of stride `patch_size`.

    Args:
        image_size: height and width in pixels, or one number, that the position embeddings are made for.
        patch_size: side of a patch in pixels.
        dim: channels of a token.
        depth: number of blocks.
        num_heads: attention heads in every block.
        attention: the kind of each block, repeated over the depth: ("local", "local", "local", "global"). Kinds are
            "global", "local" (neighborhood attention), "window", "cosine_window", "grid", "relative_bias",
            "relative_position", "axial", "pooled", "focal", "graph", "linear", "performer", "linformer" and "nystrom",
            see `visattn.attention`; "local+linear" gives half of the heads to each.
        attention_options: keywords of kinds by their name: {"window": {"window_size": 4}}.
        kernel_size: side in tokens of the neighborhood of local blocks; a sequence is repeated over the depth.
        dilation: of the neighborhood; a sequence is repeated over the depth.
        qkv_bias, projection_bias: biases in the attention.
        attention_dropout: probability that an attention weight is dropped in training.
        in_channels: of the images.
        stem: "patch" (linear) or "convolution" (3x3 convolutions of stride 2).
        patch_bias: bias of the patch projection.
        patch_norm: normalise the embedded patches.
        pre_norm: normalise all tokens before the first block (CLIP).
        class_token, distillation_token, num_registers: the tokens put before those of the image, in this order.
        position: "learned"; "sinusoidal", which is learned too, but begins as waves along both axes, so that distances
            need not be found out from few data (2-D form of Vaswani et al. 2017, 3.5, as in MoCo v3,
            https://arxiv.org/abs/2104.02057); or "none".
        prefix_positions: the prefix tokens have position embeddings too.
        position_antialias: low-pass filter when position embeddings shrink (timm does, transformers doesn't).
        pooling: "token", "average", "average_max", "max", "token_and_average", "attention" or "none".
        pooling_prefix: pool the prefix tokens together with those of the image.
        final_norm: "before_pooling", "after_pooling" or "none".
        block: "transformer", "post_norm", "parallel" or "twin": a class in blocks.py.
        drop_path: probability that a sample skips a branch of the last block in training; rises linearly from 0.
        token_parallel: for images of very many tokens: of the processes of `torch.distributed`, which all are given the
            same images, each works on a part of the tokens, and all attention is global ring attention. The weights
            are those of the same model without it, and so are the outputs; under DistributedDataParallel also the
            gradients, where all processes compute the same loss.
        **design: what all blocks share, see `BlockDesign`: mlp_ratio, mlp, activation, mlp_bias, norm, norm_eps,
            qk_norm, sub_norm, layer_scale, dropout.

    Raises:
        ValueError: a name is unknown, blocks on maps meet prefix tokens, which have no place there, or token_parallel
            meets other kinds than global attention or drop_path.

    Source: Dosovitskiy et al. 2021, https://arxiv.org/abs/2010.11929.
    """

    def __init__(
        self,
        image_size: int | Sequence[int] = 224,
        patch_size: int = 16,
        dim: int = 768,
        depth: int = 12,
        num_heads: int = 12,
        *,
        attention: Sequence[str] = ("global",),
        attention_options: Mapping[str, Mapping[str, Any]] | None = None,
        kernel_size: int | Sequence[int] = 7,
        dilation: int | Sequence[int] = 1,
        qkv_bias: bool = True,
        projection_bias: bool = True,
        attention_dropout: float = 0.0,
        in_channels: int = 3,
        stem: str = "patch",
        patch_bias: bool = True,
        patch_norm: bool = False,
        pre_norm: bool = False,
        class_token: bool = True,
        distillation_token: bool = False,
        num_registers: int = 0,
        position: str = "learned",
        prefix_positions: bool = True,
        position_antialias: bool = True,
        pooling: str = "token",
        pooling_prefix: bool = False,
        final_norm: str = "before_pooling",
        block: str = "transformer",
        drop_path: float = 0.0,
        token_parallel: bool = False,
        **design: Any,
    ) -> None:
        arguments = constructor_arguments(locals(), extra="design")
        super().__init__()
        self.arguments = arguments
        self.num_prefix_tokens = int(class_token) + int(distillation_token) + num_registers
        check_choices(arguments, self.num_prefix_tokens)
        parts = BlockDesign(dim, **design)
        self.image_size = as_pair(image_size)
        self.channels, self.strides = (dim,), (patch_size,)
        self.num_features = 2 * dim if pooling == "token_and_average" else dim
        self.num_layers = depth + 1
        self.pooling, self.pooling_prefix, self.token_parallel = pooling, pooling_prefix, token_parallel
        self.prefix_positions, self.position_antialias = prefix_positions, position_antialias

        if stem == "patch":
            patch_norm_module = parts.new_norm() if patch_norm else None
            self.patch_embedding: nn.Module = PatchEmbedding(
                in_channels, dim, patch_size, bias=patch_bias, norm=patch_norm_module
            )
        else:
            self.patch_embedding = ConvolutionalEmbedding(in_channels, dim, patch_size)
        self.grid = (-(-self.image_size[0] // patch_size), -(-self.image_size[1] // patch_size))
        self.class_token = nn.Parameter(torch.empty(1, 1, dim)) if class_token else None
        self.distillation_token = nn.Parameter(torch.empty(1, 1, dim)) if distillation_token else None
        self.register_tokens = nn.Parameter(torch.empty(1, num_registers, dim)) if num_registers else None
        num_positions = self.grid[0] * self.grid[1] + (self.num_prefix_tokens if prefix_positions else 0)
        self.position_embedding = nn.Parameter(torch.empty(1, num_positions, dim)) if position != "none" else None
        self.pre_norm = parts.new_norm() if pre_norm else None

        def attention_of(index: int) -> Callable[[], nn.Module]:
            options: dict[str, Any] = {
                "qkv_bias": qkv_bias,
                "projection_bias": projection_bias,
                "dropout": attention_dropout,
            }
            if token_parallel:
                return partial(RingAttention, dim, num_heads, **options)
            options |= {"kernel_size": repeated(kernel_size, index), "dilation": repeated(dilation, index)}
            kind = attention[index % len(attention)]
            return choose_attention(kind, dim, num_heads, self.grid, attention_options, **options)

        self.blocks = nn.ModuleList(
            blocks[block](parts, attention_of(index), rate)
            for index, rate in enumerate(drop_path_rates(drop_path, depth))
        )
        self.norm = make_norm("none" if final_norm == "none" else parts.norm, dim, parts.norm_eps)
        self.norm_after_pooling = final_norm == "after_pooling"
        self.attention_pooling = AttentionPooling(parts, num_heads) if pooling == "attention" else None
        self.initialize()

    def initialize(self) -> None:
        """Draws new weights, normal with standard deviation 0.02 as in DeiT."""
        self.apply(initialize)
        for table in (self.class_token, self.distillation_token, self.register_tokens, self.position_embedding):
            if table is not None:
                nn.init.trunc_normal_(table, std=0.02)
        if self.arguments["position"] == "sinusoidal" and self.position_embedding is not None:
            waves = sinusoids(self.grid, self.position_embedding.shape[-1])
            self.position_embedding.data[:, -len(waves) :] = waves

    def forward(self, images: Tensor) -> Features:
        """Images (B, channels, H, W) of any size to `Features`."""
        tokens, grid = self.patch_embedding(images)  # (B, height * width, dim)
        tokens = self.embed_positions(tokens, grid)  # (B, N, dim), N = prefix + height * width
        if self.pre_norm is not None:
            tokens = self.pre_norm(tokens)
        if self.token_parallel:
            tokens = tokens_here(tokens)
        for block in self.blocks:
            tokens = block(tokens, grid)
        if self.token_parallel:
            tokens = gather_tokens(tokens)
        if not self.norm_after_pooling:
            tokens = self.norm(tokens)
        image_tokens = tokens[:, self.num_prefix_tokens :]
        feature_map = image_tokens.transpose(1, 2).unflatten(2, grid)  # (B, dim, height, width)
        return Features((feature_map,), tokens, self.pool(tokens))

    def embed_positions(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        """Image tokens (B, height * width, dim) to all tokens (B, prefix + height * width, dim) with positions."""
        positions: Tensor | None = self.position_embedding
        if positions is not None:
            positions = resample_positions(positions, self.grid, grid, self.position_antialias)
            if not self.prefix_positions:
                tokens = tokens + positions
        prefix = (self.class_token, self.distillation_token, self.register_tokens)
        rows = [token.expand(tokens.shape[0], -1, -1) for token in prefix if token is not None]
        if rows:
            tokens = torch.cat([*rows, tokens], dim=1)
        return tokens + positions if positions is not None and self.prefix_positions else tokens

    def pool(self, tokens: Tensor) -> Tensor:
        """Tokens (B, N, dim) to (B, num_features)."""
        if self.attention_pooling is not None:
            start = 0 if self.pooling_prefix else self.num_prefix_tokens
            pooled = self.attention_pooling(tokens[:, start:])
        else:
            pooled = pool_tokens(tokens, self.pooling, self.num_prefix_tokens, self.pooling_prefix)
        return self.norm(pooled) if self.norm_after_pooling else pooled

    def layer_of(self, parameter_name: str) -> int:
        """0 for the embeddings, i for the i-th block (from 1); the final norm and the pooling go with the last."""
        if parameter_name.startswith("blocks."):
            return int(parameter_name.split(".")[1]) + 1
        return self.num_layers - 1 if parameter_name.startswith(("norm.", "attention_pooling.")) else 0


def check_choices(arguments: dict[str, Any], num_prefix_tokens: int) -> None:
    """Refuses unknown names and combinations that cannot work, in the words of the arguments."""
    allowed = {
        "stem": ("patch", "convolution"),
        "position": ("learned", "sinusoidal", "none"),
        "pooling": poolings,
        "final_norm": ("before_pooling", "after_pooling", "none"),
        "block": tuple(blocks),
    }
    for name, choices in allowed.items():
        if arguments[name] not in choices:
            raise ValueError(f"{name} {arguments[name]!r} is unknown; choose one of {', '.join(choices)}")
    check_pattern(arguments["attention"], arguments["attention_options"], num_prefix_tokens=num_prefix_tokens)
    if arguments["token_parallel"] and set(arguments["attention"]) != {"global"}:
        raise ValueError("token_parallel spreads the tokens of global attention; set attention=('global',)")
    if arguments["token_parallel"] and arguments["drop_path"]:
        raise ValueError("token_parallel goes without drop_path, whose draws would differ between processes")
    if arguments["pooling"] in ("token", "token_and_average") and not arguments["class_token"]:
        raise ValueError(f"pooling {arguments['pooling']!r} needs class_token=True; or pool by 'average'")
    if arguments["dim"] % arguments["num_heads"]:
        raise ValueError(f"dim {arguments['dim']} is not divisible by num_heads {arguments['num_heads']}")


def repeated(pattern: int | Sequence[int], index: int) -> int:
    """The entry of a pattern at a depth; a number is a pattern of one."""
    return pattern if isinstance(pattern, int) else pattern[index % len(pattern)]


def patch_size_for(image_size: int | Sequence[int]) -> int:
    """The patch size by which a preset serves small and large images: 16 from 64 pixels on, 4 below."""
    return 16 if min(as_pair(image_size)) >= 64 else 4


def vit_tiny(
    image_size: int | Sequence[int] = 224, patch_size: int | None = None, **overrides: Any
) -> VisionTransformer:
    """ViT-Ti, 5.5 M parameters. Source: DeiT (Touvron et al. 2021, https://arxiv.org/abs/2012.12877), table 1."""
    arguments: dict[str, Any] = {"dim": 192, "depth": 12, "num_heads": 3} | overrides
    return VisionTransformer(image_size, patch_size or patch_size_for(image_size), **arguments)


def vit_small(
    image_size: int | Sequence[int] = 224, patch_size: int | None = None, **overrides: Any
) -> VisionTransformer:
    """ViT-S, 21.7 M parameters. Source: DeiT (Touvron et al. 2021, https://arxiv.org/abs/2012.12877), table 1."""
    return vit_tiny(image_size, patch_size, **{"dim": 384, "num_heads": 6} | overrides)


def vit_base(
    image_size: int | Sequence[int] = 224, patch_size: int | None = None, **overrides: Any
) -> VisionTransformer:
    """ViT-B, 85.8 M parameters. Source: Dosovitskiy et al. 2021, https://arxiv.org/abs/2010.11929, table 1."""
    return vit_tiny(image_size, patch_size, **{"dim": 768, "num_heads": 12} | overrides)


def vit_local_tiny(
    image_size: int | Sequence[int] = 224, patch_size: int | None = None, **overrides: Any
) -> VisionTransformer:
    """Three blocks of neighborhood attention to each global one, behind convolutions; 128 channels, 1.7 M weights."""
    arguments: dict[str, Any] = {
        "dim": 128,
        "depth": 8,
        "num_heads": 4,
        "attention": ("local", "local", "local", "global"),
        "stem": "convolution",
        "position": "sinusoidal",
        "class_token": False,
        "pooling": "average",
    } | overrides
    return VisionTransformer(image_size, patch_size or patch_size_for(image_size), **arguments)


def vit_local_small(
    image_size: int | Sequence[int] = 224, patch_size: int | None = None, **overrides: Any
) -> VisionTransformer:
    """`vit_local_tiny` with 12 blocks of 256 channels, 10.0 M parameters."""
    return vit_local_tiny(image_size, patch_size, **{"dim": 256, "depth": 12, "num_heads": 8} | overrides)


def vit_local_base(
    image_size: int | Sequence[int] = 224, patch_size: int | None = None, **overrides: Any
) -> VisionTransformer:
    """`vit_local_tiny` with 12 blocks of 512 channels, 39.8 M parameters."""
    return vit_local_tiny(image_size, patch_size, **{"dim": 512, "depth": 12, "num_heads": 16} | overrides)
