"""What the layouts of GIT and BLIP share: BERT as the decoder, and a Vision Transformer with the names of CLIP."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from visattn.backbones import VisionTransformer
from visattn.backbones.features import as_pair
from visattn.checkpoints import transformers
from visattn.checkpoints.native import CheckpointError
from visattn.heads import CaptionDecoder

_text_names = (
    (r"^embeddings\.word_embeddings\.", "embedding."),
    (r"^embeddings\.position_embeddings\.", "position_embedding."),
    (r"^embeddings\.LayerNorm\.", "embedding_norm."),
    (r"^encoder\.layer\.", "blocks."),
    (r"\.crossattention\.", ".cross_attention."),
    (r"attention\.self\.", "attention."),
    (r"attention\.output\.dense\.", "attention.projection."),
    (r"\.attention\.output\.LayerNorm\.", ".norm1."),
    (r"\.cross_attention\.output\.LayerNorm\.", ".norm2."),
    (r"\.intermediate\.dense\.", ".mlp.fc1."),
    (r"\.output\.dense\.", ".mlp.fc2."),
    (r"\.output\.LayerNorm\.", ".norm3."),
)
_image_names = (
    (r"^embeddings\.class_embedding$", "class_token"),
    (r"^embeddings\.position_embedding(\.weight)?$", "position_embedding"),
    (r"^embeddings\.patch_embedding\.", "patch_embedding.projection."),
    (r"^pre_layrnorm\.", "pre_norm."),
    (r"^post_layernorm\.", "norm."),
    (r"^encoder\.layers\.", "blocks."),
    (r"\.self_attn\.out_proj\.", ".attention.projection."),
    (r"\.self_attn\.", ".attention."),
    (r"\.layer_norm([12])\.", r".norm\1."),
)
# Counters that older versions wrote among the weights.
_unused = re.compile(r"(^|\.)position_ids$")


def decoder(config: Mapping[str, Any], memory_dim: int, origin: str, **options: Any) -> CaptionDecoder:
    """BERT's text part with new weights: norms behind the sums, one also behind the embeddings, a bias for each word.

    Args:
        config: as transformers writes it for BERT.
        memory_dim: channels of the image tokens.
        origin: names the source in errors.
        **options: further arguments of `CaptionDecoder`.
    """
    dim = config["hidden_size"]
    return CaptionDecoder(
        config["vocab_size"],
        memory_dim,
        dim,
        config["num_hidden_layers"],
        config["num_attention_heads"],
        mlp_ratio=config["intermediate_size"] / dim,
        max_length=config["max_position_embeddings"],
        dropout=config.get("hidden_dropout_prob", 0.1),
        attention_dropout=config.get("attention_probs_dropout_prob", 0.1),
        norm_first=False,
        activation=transformers.activation_of(config.get("hidden_act", "gelu"), origin),
        norm_eps=config.get("layer_norm_eps", 1e-12),
        embedding_norm=True,
        head_bias=True,
        **options,
    )


def decoder_weights(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights of BERT's embeddings and blocks under our names."""
    renamed = transformers.rename(weights, _text_names, _unused)
    transformers.join(renamed, (".cross_attention.key.", ".cross_attention.value."), ".cross_attention.key_value.")
    transformers.join(renamed, (".attention.query.", ".attention.key.", ".attention.value."), ".attention.qkv.")
    return renamed


def vision_transformer(config: Mapping[str, Any], origin: str, **options: Any) -> VisionTransformer:
    """The image encoder with new weights.

    Args:
        config: as transformers writes it for CLIP's vision part.
        origin: names the source in errors.
        **options: further arguments of `VisionTransformer`.

    Raises:
        CheckpointError: patches are not square.
    """
    height, width = as_pair(config["patch_size"])
    if height != width:
        raise CheckpointError(f"{origin}: patches of {height}x{width} pixels are not square")
    dim = config["hidden_size"]
    return VisionTransformer(
        as_pair(config["image_size"]),
        height,
        dim,
        config["num_hidden_layers"],
        config["num_attention_heads"],
        attention_dropout=config.get("attention_dropout", 0.0),
        in_channels=config.get("num_channels", 3),
        mlp_ratio=config["intermediate_size"] / dim,
        activation=transformers.activation_of(config["hidden_act"], origin),
        norm_eps=config.get("layer_norm_eps", 1e-5),
        position_antialias=False,
        **options,
    )


def image_weights(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights of the image encoder under our names."""
    renamed = transformers.rename(weights, _image_names, _unused)
    parts = (".attention.q_proj.", ".attention.k_proj.", ".attention.v_proj.")
    transformers.join(renamed, parts, ".attention.qkv.")
    for name in ("class_token", "position_embedding"):
        if name in renamed:
            renamed[name] = renamed[name].reshape(1, -1, renamed[name].shape[-1])
    return renamed
