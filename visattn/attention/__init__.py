"""Every kind of attention, one file each: a pure function of query, key and value, and the module that uses it."""

from visattn.attention.axial import AxialAttention, axial_attention
from visattn.attention.chunked import chunked_attention
from visattn.attention.deformable import (
    DeformableAttention,
    deformable_attention,
    deformable_attention_weights,
)
from visattn.attention.dot_product import MultiHeadAttention, attention_weights, dot_product_attention
from visattn.attention.key_value_cache import KeyValueCache
from visattn.attention.linear import (
    LinearAttention,
    PerformerAttention,
    linear_attention,
    orthogonal_projection,
    performer_attention,
)
from visattn.attention.low_rank import (
    LinformerAttention,
    NystromAttention,
    linformer_attention,
    nystrom_attention,
)
from visattn.attention.neighborhood import (
    NeighborhoodAttention,
    neighborhood_attention,
    neighborhood_attention_weights,
    neighborhood_keys,
)
from visattn.attention.ring import RingAttention, gather_tokens, ring_attention, tokens_here
from visattn.attention.window import WindowAttention, window_attention, window_attention_weights, window_keys

__all__ = [
    "AxialAttention",
    "DeformableAttention",
    "KeyValueCache",
    "LinearAttention",
    "LinformerAttention",
    "MultiHeadAttention",
    "NeighborhoodAttention",
    "NystromAttention",
    "PerformerAttention",
    "RingAttention",
    "WindowAttention",
    "attention_weights",
    "axial_attention",
    "chunked_attention",
    "deformable_attention",
    "deformable_attention_weights",
    "dot_product_attention",
    "gather_tokens",
    "linear_attention",
    "linformer_attention",
    "neighborhood_attention",
    "neighborhood_attention_weights",
    "neighborhood_keys",
    "nystrom_attention",
    "orthogonal_projection",
    "performer_attention",
    "ring_attention",
    "tokens_here",
    "window_attention",
    "window_attention_weights",
    "window_keys",
]
