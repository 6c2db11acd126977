"""The layout of GIT (microsoft/git-base-coco): CLIP's image encoder, and a BERT whose words stand behind the image.

Source: Wang et al. 2022, https://arxiv.org/abs/2205.14100.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from visattn.checkpoints import bert_captioner
from visattn.checkpoints.native import CheckpointError
from visattn.checkpoints.published_captioner import assemble, prefixed, split, tie, token_id
from visattn.heads import ImageCaptioner

# Versions of transformers wrote them only where they differ.
_usual_ids = {"bos_token_id": 101, "eos_token_id": 102, "pad_token_id": 0}


def build(config: Mapping[str, Any], weights: Mapping[str, Tensor], folder: Path) -> ImageCaptioner:
    """The captioner that GIT's `config.json` describes, with these weights.

    Args:
        config: `config.json`; the contents of `generation_config.json` and `preprocessor_config.json`, if they exist,
            under "generation" and "preprocessor".
        weights: transformers' names and shapes.
        folder: where the tokenizer's files lie; names the source in errors.

    Raises:
        CheckpointError: it is a model of videos, or the weights don't fit.
        FileNotFoundError: the tokenizer's files are missing.
    """
    if config.get("num_image_with_embedding") is not None:
        raise CheckpointError(
            f"{folder}: is a GIT of {config['num_image_with_embedding']} pictures at once; one is read"
        )
    vision = config["vision_config"]
    image_weights, projection, head, text_weights, rest = split(
        weights, "git.image_encoder.vision_model.", "git.visual_projection.visual_projection.", "output.", "git."
    )
    backbone = bert_captioner.vision_transformer(vision, str(folder), pre_norm=True, patch_bias=False)
    text_weights = bert_captioner.decoder_weights(text_weights) | prefixed("head.", head)
    for name, tensor in projection.items():
        text_weights[name.replace("0.", "memory_projection.").replace("1.", "memory_norm.")] = tensor
    decoder = bert_captioner.decoder(
        config,
        vision["hidden_size"],
        str(folder),
        style="prefix",
        tie_embeddings=tie(text_weights, wanted=config.get("tie_word_embeddings", False)),
        memory_norm_eps=vision.get("layer_norm_eps", 1e-5),
    )
    sources = (config.get("generation", {}), config, _usual_ids)
    return assemble(
        backbone,
        decoder,
        rest | prefixed("backbone.", bert_captioner.image_weights(image_weights)) | prefixed("decoder.", text_weights),
        config,
        folder,
        start_id=token_id(sources, ("bos_token_id",), folder),
        end_id=token_id(sources, ("eos_token_id",), folder),
        padding_id=token_id(sources, ("pad_token_id",), folder),
    )
