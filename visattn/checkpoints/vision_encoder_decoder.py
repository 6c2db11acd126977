"""The layout of transformers' VisionEncoderDecoder: a vision backbone and GPT-2 with cross-attention.

This is how nlpconnect/vit-gpt2-image-captioning and many captioners like it are published.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from visattn.checkpoints import transformers
from visattn.checkpoints.native import CheckpointError
from visattn.checkpoints.published_captioner import assemble, prefixed, split, tie, token_id
from visattn.heads import CaptionDecoder, ImageCaptioner

_names = (
    (r"^transformer\.wte\.", "embedding."),
    (r"^transformer\.wpe\.", "position_embedding."),
    (r"^transformer\.ln_f\.", "norm."),
    (r"^transformer\.h\.", "blocks."),
    (r"^lm_head\.", "head."),
    (r"\.ln_1\.", ".norm1."),
    (r"\.ln_cross_attn\.", ".norm2."),
    (r"\.ln_2\.", ".norm3."),
    (r"\.attn\.c_attn\.", ".attention.qkv."),
    (r"\.crossattention\.q_attn\.", ".cross_attention.query."),
    (r"\.crossattention\.c_attn\.", ".cross_attention.key_value."),
    (r"\.attn\.c_proj\.", ".attention.projection."),
    (r"\.crossattention\.c_proj\.", ".cross_attention.projection."),
    (r"\.mlp\.c_fc\.", ".mlp.fc1."),
    (r"\.mlp\.c_proj\.", ".mlp.fc2."),
)
# Causal masks, which older versions wrote among the weights.
_unused = re.compile(r"\.(attn|crossattention)\.(masked_)?bias$")
# Linear layers that are stored as (inputs, outputs).
_transposed = re.compile(r"\.(attention|cross_attention|mlp)\.\w+\.weight$")

# Versions of transformers wrote them only where they differ.
_usual_ids = {"bos_token_id": 50256, "eos_token_id": 50256}


def build(config: Mapping[str, Any], weights: Mapping[str, Tensor], folder: Path) -> ImageCaptioner:
    """The captioner that a VisionEncoderDecoder's `config.json` describes, with these weights.

    Args:
        config: `config.json`; the contents of `generation_config.json` and `preprocessor_config.json`, if they exist,
            under "generation" and "preprocessor".
        weights: transformers' names and shapes.
        folder: where the tokenizer's files lie; names the source in errors.

    Raises:
        CheckpointError: the encoder is none of those of `transformers`, the decoder is no GPT-2, or the weights don't
            fit.
        FileNotFoundError: the tokenizer's files are missing.
    """
    text = config["decoder"]
    if text.get("model_type") != "gpt2":
        raise CheckpointError(f"{folder}: a decoder of type {text.get('model_type')!r} is not read; known is gpt2")
    image_weights, text_weights, projection, rest = split(weights, "encoder.", "decoder.", "enc_to_dec_proj.")
    backbone, image_weights = transformers.read_backbone(config["encoder"], image_weights, str(folder))
    text_weights = decoder_weights(text_weights, text)
    tied = tie(text_weights, wanted=text.get("tie_word_embeddings", True))
    dim = text["n_embd"]
    decoder = CaptionDecoder(
        text["vocab_size"],
        backbone.channels[-1],
        dim,
        text["n_layer"],
        text["n_head"],
        mlp_ratio=(text.get("n_inner") or 4 * dim) / dim,
        max_length=text["n_positions"],
        dropout=text.get("resid_pdrop", 0.1),
        attention_dropout=text.get("attn_pdrop", 0.1),
        activation=transformers.activation_of(text.get("activation_function", "gelu_new"), str(folder)),
        norm_eps=text.get("layer_norm_epsilon", 1e-5),
        tie_embeddings=tied,
        project_memory=backbone.channels[-1] != dim,
    )
    text_weights |= prefixed("memory_projection.", projection)
    sources = (config.get("generation", {}), config, text, _usual_ids)
    return assemble(
        backbone,
        decoder,
        rest | prefixed("backbone.", image_weights) | prefixed("decoder.", text_weights),
        config,
        folder,
        start_id=token_id(sources, ("decoder_start_token_id", "bos_token_id"), folder),
        end_id=token_id(sources, ("eos_token_id",), folder),
        padding_id=token_id(sources, ("pad_token_id", "eos_token_id"), folder),
    )


def decoder_weights(weights: Mapping[str, Tensor], config: Mapping[str, Any]) -> dict[str, Tensor]:
    """GPT-2's weights under our names; where it scales its scores otherwise, the queries' weights take that in."""
    renamed = transformers.rename(weights, _names, _unused)
    dim, head_dim = config["n_embd"], config["n_embd"] // config["n_head"]
    for name, tensor in renamed.items():
        if _transposed.search(name):
            renamed[name] = tensor = tensor.T
        query = re.match(r"blocks\.(\d+)\.(attention\.qkv|cross_attention\.query)\.", name)
        factor = 1.0 if config.get("scale_attn_weights", True) else head_dim**0.5
        if query and config.get("scale_attn_by_inverse_layer_idx"):
            factor /= int(query[1]) + 1
        if query and factor != 1.0:
            renamed[name] = torch.cat([tensor[:dim] * factor, tensor[dim:]])
    return renamed
