"""Every kind of attention, one file each: a pure function of query, key and value, and the module that uses it."""

from visattn.attention.deformable import (
    DeformableAttention,
    deformable_attention,
    deformable_attention_weights,
)
from visattn.attention.dot_product import MultiHeadAttention, attention_weights, dot_product_attention
from visattn.attention.key_value_cache import KeyValueCache
from visattn.attention.neighborhood import (
    NeighborhoodAttention,
    neighborhood_attention,
    neighborhood_attention_weights,
    neighborhood_keys,
)
from visattn.attention.window import WindowAttention, window_attention, window_attention_weights, window_keys

__all__ = [
    "DeformableAttention",
    "KeyValueCache",
    "MultiHeadAttention",
    "NeighborhoodAttention",
    "WindowAttention",
    "attention_weights",
    "deformable_attention",
    "deformable_attention_weights",
    "dot_product_attention",
    "neighborhood_attention",
    "neighborhood_attention_weights",
    "neighborhood_keys",
    "window_attention",
    "window_attention_weights",
    "window_keys",
]
