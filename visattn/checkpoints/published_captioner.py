"""What all published captioners need: weights by part, a tied word table, special ids, a tokenizer, a transform."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from visattn.backbones import Backbone
from visattn.checkpoints import transformers
from visattn.checkpoints.native import CheckpointError, load_strictly
from visattn.heads import CaptionDecoder, ImageCaptioner
from visattn.text.published_tokenizer import load_published_tokenizer


def assemble(
    backbone: Backbone,
    decoder: CaptionDecoder,
    weights: Mapping[str, Tensor],
    config: Mapping[str, Any],
    folder: Path,
    **special_ids: int,
) -> ImageCaptioner:
    """Backbone and decoder with these weights, and the tokenizer and the transform that lie beside them.

    Args:
        weights: of backbone and decoder, under our names.
        config: the content of `preprocessor_config.json`, if there is one, under "preprocessor".
        folder: where the tokenizer's files lie; names the source in errors.
        **special_ids: start_id, end_id and padding_id.

    Raises:
        CheckpointError: the weights or the tokenizer don't fit.
        FileNotFoundError: the tokenizer's files are missing.
    """
    try:
        tokenizer = load_published_tokenizer(folder, vocabulary_size=decoder.vocabulary_size, **special_ids)
    except ValueError as error:
        raise CheckpointError(str(error)) from error
    model = ImageCaptioner(backbone, decoder, tokenizer)
    load_strictly(model, weights, str(folder))
    if "preprocessor" in config:
        model.preprocess = transformers.preprocess_of(config["preprocessor"], backbone.image_size)
    return model


def split(weights: Mapping[str, Tensor], *prefixes: str) -> list[dict[str, Tensor]]:
    """The weights whose names begin with each prefix, without it, and the others at last; the first fit counts."""
    groups: list[dict[str, Tensor]] = [{} for _ in range(len(prefixes) + 1)]
    for name, tensor in weights.items():
        index = next((index for index, prefix in enumerate(prefixes) if name.startswith(prefix)), len(prefixes))
        groups[index][name.removeprefix(prefixes[index]) if index < len(prefixes) else name] = tensor
    return groups


def prefixed(prefix: str, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights with the prefix before their names."""
    return {f"{prefix}{name}": tensor for name, tensor in weights.items()}


def tie(weights: dict[str, Tensor], wanted: bool) -> bool:
    """Whether the decoder's head reads the word embedding; in place, one of two equal tables is taken away.

    Args:
        weights: the decoder's, under our names.
        wanted: what the configuration says; where only one of the two tables is stored, this decides.
    """
    table, head = weights.get("embedding.weight"), weights.get("head.weight")
    if table is None or head is None:
        if wanted and head is not None:
            weights["embedding.weight"] = weights.pop("head.weight")
        return wanted
    tied = table.shape == head.shape and torch.equal(table, head)
    if tied:
        del weights["head.weight"]
    return tied


def token_id(sources: Sequence[Mapping[str, Any]], names: Sequence[str], folder: Path) -> int:
    """The first of these names that one of the configurations has a number for.

    Raises:
        CheckpointError: none has, or it is a list of several numbers.
    """
    for name in names:
        for source in sources:
            value = source.get(name)
            if isinstance(value, list) and len(set(value)) == 1:
                value = value[0]
            if isinstance(value, list):
                raise CheckpointError(f"{folder}: {name} {value} are several; a caption has one end")
            if value is not None:
                return int(value)
    raise CheckpointError(f"{folder}: no configuration says {' or '.join(names)}")
