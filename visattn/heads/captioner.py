"""Captioning: a backbone, a decoder that reads its tokens, and the tokenizer that turns ids into text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from visattn.backbones import Backbone, Features
from visattn.data import Preprocess
from visattn.data.preprocess import Picture, picture_batch
from visattn.heads.caption_decoder import CaptionDecoder
from visattn.heads.image_encoder import ImageEncoder
from visattn.text import CaptionTokenizer
from visattn.text.decoding import generate


class Caption(NamedTuple):
    """One caption of an image.

    Attributes:
        text: as people write it.
        token_ids: its words, without start, prompt and end.
        log_probability: log p(words and end | image).
    """

    text: str
    token_ids: list[int]
    log_probability: float


class ImageCaptioner(nn.Module):
    """Images (B, channels, H, W) and the words so far to the logits of the next word; `caption` writes whole captions.

    Args:
        backbone: gives the image tokens.
        decoder: reads them.
        tokenizer: of the decoder's words.
        encoder_depth: blocks of self-attention between backbone and decoder, whose tokens are projected to the
            decoder's `memory_dim`, normalised and given positions; 0 does this without blocks. None: the decoder reads
            the backbone's tokens as they are.
        encoder_heads: attention heads of these blocks.
        dropout: probability within this part, in training.

    Attributes:
        arguments: the last three as plain data.
        preprocess: turns a picture into what `forward` expects, or None if unknown.

    Raises:
        ValueError: the decoder has fewer words than the tokenizer, or doesn't fit the backbone's tokens.
    """

    def __init__(
        self,
        backbone: Backbone,
        decoder: CaptionDecoder,
        tokenizer: CaptionTokenizer,
        *,
        encoder_depth: int | None = None,
        encoder_heads: int = 8,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.arguments: dict[str, Any] = {
            "encoder_depth": encoder_depth,
            "encoder_heads": encoder_heads,
            "dropout": dropout,
        }
        if decoder.vocabulary_size < tokenizer.vocabulary_size:
            raise ValueError(
                f"the decoder knows {decoder.vocabulary_size} words and the tokenizer {tokenizer.vocabulary_size}: "
                "set the decoder's vocabulary_size to tokenizer.vocabulary_size"
            )
        token_dim, memory_dim = backbone.channels[-1], decoder.arguments["memory_dim"]
        if encoder_depth is None and token_dim != memory_dim:
            raise ValueError(
                f"the decoder reads image tokens of {memory_dim} channels and the backbone gives {token_dim}: set the "
                "decoder's memory_dim, or encoder_depth=0 to project them"
            )
        self.backbone = backbone
        self.encoder: ImageEncoder | None = None
        if encoder_depth is not None:
            self.encoder = ImageEncoder(
                token_dim, memory_dim, grid_of(backbone), depth=encoder_depth, num_heads=encoder_heads, dropout=dropout
            )
        self.decoder = decoder
        self.tokenizer = tokenizer
        self.preprocess: Preprocess | None = None

    def features(self, images: Tensor) -> Features:
        """Images (B, channels, H, W) to what the backbone sees in them."""
        return self.backbone(images)

    def memory(
        self,
        images: Tensor | None = None,
        *,
        features: Features | Tensor | None = None,
        grid: Sequence[int] | None = None,
    ) -> Tensor:
        """The image tokens that the decoder reads, in reading order behind the backbone's prefix tokens.

        Args:
            images: (B, channels, H, W), preprocessed.
            features: instead of images, what the backbone saw in them: `Features`, or their tokens (B, N, C).
            grid: (height, width) of the places among such tokens (B, N, C); None is that of the backbone's image_size.

        Returns:
            (B, N, memory_dim).

        Raises:
            ValueError: not exactly one of images and features is given, or the tokens don't fill the grid.
        """
        if (images is None) == (features is None):
            raise ValueError("give one of images (B, channels, H, W) and features (what the backbone saw in them)")
        if images is not None:
            features = self.features(images)
        if isinstance(features, Features):
            tokens, grid = features.tokens, features.maps[-1].shape[-2:]
        else:
            assert features is not None
            tokens, grid = features, grid or grid_of(self.backbone)
        if self.encoder is None:
            return tokens
        height, width = grid
        prefix = self.backbone.num_prefix_tokens
        if tokens.shape[1] != prefix + height * width:
            raise ValueError(
                f"{tokens.shape[1]} image tokens are not {prefix} and a map of {height}x{width}; "
                "say grid=(height, width) for features of another image size"
            )
        return self.encoder(tokens, (int(height), int(width)))

    def forward(self, images: Tensor, token_ids: Tensor) -> Tensor:
        """Images (B, channels, H, W) and captions (B, T) that begin with the start, to logits (B, T, vocabulary_size).

        At each place they are those of the word behind it. With captions (B * n, T) the n of each image stand behind
        each other.
        """
        return self.decoder(self.memory(images), token_ids)

    @torch.inference_mode()
    def caption(
        self,
        images: Tensor | Picture | Sequence[Picture],
        num_beams: int = 5,
        max_new_tokens: int = 20,
        num_return: int = 1,
        *,
        prompt: str = "",
        forced_words: Sequence[str | Sequence[int]] = (),
        **options: Any,
    ) -> list[list[Caption]]:
        """Captions of pictures, those of each best first, without gradients. Dropout is off in eval mode only.

        Args:
            images: paths, PIL images, or one of them; or a preprocessed tensor (B, channels, H, W).
            num_beams, max_new_tokens, num_return, **options: see `visattn.text.decoding.generate`.
            prompt: how all captions begin; it isn't part of the result.
            forced_words: words or phrases that each caption must contain, as text within a sentence or as ids.

        Returns:
            For each picture `num_return` captions.

        Raises:
            FileNotFoundError, ImageFileError: a file is missing, or no picture that can be read.
            ValueError: pictures are given and the model doesn't know how they are prepared, an option is unfit, or a
                forced word isn't in the vocabulary.
        """
        pixels = picture_batch(images, self.preprocess, next(self.parameters()))
        options |= {"prompt": prompt, "forced_words": forced_words}
        return self.write(self.memory(pixels), num_beams, max_new_tokens, num_return, **options)

    @torch.inference_mode()
    def write(
        self,
        memory: Tensor,
        num_beams: int = 5,
        max_new_tokens: int = 20,
        num_return: int = 1,
        *,
        prompt: str = "",
        forced_words: Sequence[str | Sequence[int]] = (),
        **options: Any,
    ) -> list[list[Caption]]:
        """As `caption`, for the image tokens (B, N, memory_dim) that `memory` gives."""
        captions = generate(
            self.decoder,
            memory,
            start_ids=[self.tokenizer.start_id, *self.tokenizer.encode(prompt)],
            end_id=self.tokenizer.end_id,
            padding_id=self.tokenizer.padding_id,
            num_beams=num_beams,
            max_new_tokens=max_new_tokens,
            num_return=num_return,
            forced_words=[self.forced_ids(words) if isinstance(words, str) else words for words in forced_words],
            **options,
        )
        return [[Caption(self.tokenizer.decode(one.token_ids), *one) for one in group] for group in captions]

    def forced_ids(self, words: str) -> list[int]:
        """The ids of words within a sentence.

        Raises:
            ValueError: the vocabulary lacks one of them.
        """
        token_ids = self.tokenizer.encode(f" {words.strip()}")
        if not token_ids or self.tokenizer.unknown_id in token_ids:
            raise ValueError(f"{words!r} can't be forced: the model's vocabulary lacks it")
        return token_ids


def grid_of(backbone: Backbone) -> tuple[int, int]:
    """(height, width) of the last map of an image of the backbone's image_size."""
    height, width = (-(-side // backbone.strides[-1]) for side in backbone.image_size)
    return height, width
