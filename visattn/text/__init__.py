"""Captions as text: tokenizers, and decoding."""

from visattn.text.beam_search import beam_search
from visattn.text.constrained_beam_search import constrained_beam_search
from visattn.text.decoding import generate
from visattn.text.sampling import greedy, sample
from visattn.text.tokenizer import CaptionTokenizer
from visattn.text.word_scores import Decoder, DecoderState, Generated

__all__ = [
    "CaptionTokenizer",
    "Decoder",
    "DecoderState",
    "Generated",
    "beam_search",
    "constrained_beam_search",
    "generate",
    "greedy",
    "sample",
]
