"""Captions as text: tokenizers, and decoding."""

from visattn.text.tokenizer import CaptionTokenizer

__all__ = ["CaptionTokenizer"]
