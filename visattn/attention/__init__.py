"""Every kind of attention, one file each: a pure function of query, key and value, and the module that uses it."""

from visattn.attention.axial import AxialAttention, axial_attention
from visattn.attention.chunked import chunked_attention
from visattn.attention.cosine_window import CosineWindowAttention, cosine_window_attention
from visattn.attention.deformable import (
    DeformableAttention,
    deformable_attention,
    deformable_attention_weights,
)
from visattn.attention.dot_product import MultiHeadAttention, attention_weights, dot_product_attention
from visattn.attention.focal import FocalAttention, focal_attention
from visattn.attention.graph import (
    GraphAttention,
    GraphAttentionV2,
    box_edges,
    graph_attention,
    grid_edges,
    nearest_neighbor_edges,
)
from visattn.attention.grid import GridAttention, grid_attention, grid_keys
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
from visattn.attention.map_graph import MapGraphAttention, map_graph_attention
from visattn.attention.mask_unit import (
    MaskUnitAttention,
    mask_unit_attention,
    mask_unit_attention_weights,
    mask_unit_keys,
)
from visattn.attention.mixed import MixedAttention
from visattn.attention.neighborhood import (
    NeighborhoodAttention,
    neighborhood_attention,
    neighborhood_attention_weights,
    neighborhood_keys,
)
from visattn.attention.neighborhood_axes import neighborhood_attention_1d, neighborhood_attention_3d
from visattn.attention.pooled import PooledAttention, pooled_attention
from visattn.attention.pooling import AdditiveAttentionPooling, HierarchicalAttentionPooling, SequencePooling
from visattn.attention.relative_bias import RelativeBiasAttention, relative_bias_attention
from visattn.attention.relative_position import (
    RelativePositionAttention,
    relative_position_attention,
    relative_position_attention_weights,
)
from visattn.attention.ring import RingAttention, gather_tokens, ring_attention, tokens_here
from visattn.attention.window import WindowAttention, window_attention, window_attention_weights, window_keys

__all__ = [
    "AdditiveAttentionPooling",
    "AxialAttention",
    "CosineWindowAttention",
    "DeformableAttention",
    "FocalAttention",
    "GraphAttention",
    "GraphAttentionV2",
    "GridAttention",
    "HierarchicalAttentionPooling",
    "KeyValueCache",
    "LinearAttention",
    "LinformerAttention",
    "MapGraphAttention",
    "MaskUnitAttention",
    "MixedAttention",
    "MultiHeadAttention",
    "NeighborhoodAttention",
    "NystromAttention",
    "PerformerAttention",
    "PooledAttention",
    "RelativeBiasAttention",
    "RelativePositionAttention",
    "RingAttention",
    "SequencePooling",
    "WindowAttention",
    "attention_weights",
    "axial_attention",
    "box_edges",
    "chunked_attention",
    "cosine_window_attention",
    "deformable_attention",
    "deformable_attention_weights",
    "dot_product_attention",
    "focal_attention",
    "gather_tokens",
    "graph_attention",
    "grid_attention",
    "grid_edges",
    "grid_keys",
    "linear_attention",
    "linformer_attention",
    "map_graph_attention",
    "mask_unit_attention",
    "mask_unit_attention_weights",
    "mask_unit_keys",
    "nearest_neighbor_edges",
    "neighborhood_attention",
    "neighborhood_attention_1d",
    "neighborhood_attention_3d",
    "neighborhood_attention_weights",
    "neighborhood_keys",
    "nystrom_attention",
    "orthogonal_projection",
    "performer_attention",
    "pooled_attention",
    "relative_bias_attention",
    "relative_position_attention",
    "relative_position_attention_weights",
    "ring_attention",
    "tokens_here",
    "window_attention",
    "window_attention_weights",
    "window_keys",
]
