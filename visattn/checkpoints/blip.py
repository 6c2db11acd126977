"""The layout of BLIP (Salesforce/blip-image-captioning-base): a Vision Transformer, and a BERT with cross-attention.

Source: Li et al. 2022, https://arxiv.org/abs/2201.12086.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from visattn.checkpoints import bert_captioner
from visattn.checkpoints.published_captioner import assemble, prefixed, split, tie, token_id
from visattn.heads import ImageCaptioner

# Versions of transformers wrote them only where they differ.
_usual_ids = {"bos_token_id": 30522, "sep_token_id": 102, "pad_token_id": 0}


def build(config: Mapping[str, Any], weights: Mapping[str, Tensor], folder: Path) -> ImageCaptioner:
    """The captioner that BLIP's `config.json` describes, with these weights.

    Its captions end with the separator; what the configuration calls their end is never said.

    Args:
        config: `config.json`; the content of `preprocessor_config.json`, if there is one, under "preprocessor".
        weights: transformers' names and shapes.
        folder: where the tokenizer's files lie; names the source in errors.

    Raises:
        CheckpointError: the weights don't fit, such as those of a BLIP that answers questions.
        FileNotFoundError: the tokenizer's files are missing.
    """
    text, vision = _usual_ids | config["text_config"], config["vision_config"]
    image_weights, head, text_weights, rest = split(
        weights, "vision_model.", "text_decoder.cls.predictions.", "text_decoder.bert."
    )
    backbone = bert_captioner.vision_transformer(vision, str(folder))
    text_weights = bert_captioner.decoder_weights(text_weights) | prefixed("head.", head_weights(head))
    decoder = bert_captioner.decoder(
        text,
        vision["hidden_size"],
        str(folder),
        tie_embeddings=tie(text_weights, wanted=text.get("tie_word_embeddings", True)),
        head_transform=True,
    )
    return assemble(
        backbone,
        decoder,
        rest | prefixed("backbone.", bert_captioner.image_weights(image_weights)) | prefixed("decoder.", text_weights),
        config,
        folder,
        start_id=token_id((text,), ("bos_token_id",), folder),
        end_id=token_id((text,), ("sep_token_id",), folder),
        padding_id=token_id((text,), ("pad_token_id",), folder),
    )


def head_weights(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """BERT's head under our names; its bias may be stored under two names, or under either."""
    renamed = {}
    for name, tensor in weights.items():
        name = name.removeprefix("decoder.")
        renamed[name.replace("transform.dense.", "transform.").replace("transform.LayerNorm.", "norm.")] = tensor
    return renamed
