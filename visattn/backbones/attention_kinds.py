"""The kinds of self-attention that blocks choose from by name, all called as `module(tokens, grid)`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from torch import nn

from visattn.attention import (
    AxialAttention,
    CosineWindowAttention,
    FocalAttention,
    GridAttention,
    LinearAttention,
    LinformerAttention,
    MapGraphAttention,
    MixedAttention,
    MultiHeadAttention,
    NeighborhoodAttention,
    NystromAttention,
    PerformerAttention,
    PooledAttention,
    RelativeBiasAttention,
    RelativePositionAttention,
    WindowAttention,
)

attention_kinds: dict[str, type[nn.Module]] = {
    "global": MultiHeadAttention,
    "local": NeighborhoodAttention,
    "window": WindowAttention,
    "cosine_window": CosineWindowAttention,
    "grid": GridAttention,
    "relative_bias": RelativeBiasAttention,
    "relative_position": RelativePositionAttention,
    "axial": AxialAttention,
    "pooled": PooledAttention,
    "focal": FocalAttention,
    "graph": MapGraphAttention,
    "linear": LinearAttention,
    "performer": PerformerAttention,
    "linformer": LinformerAttention,
    "nystrom": NystromAttention,
}
# Those that take height * width tokens and have no place for class tokens or registers.
kinds_of_maps = (
    "window",
    "cosine_window",
    "grid",
    "relative_bias",
    "relative_position",
    "axial",
    "pooled",
    "focal",
    "graph",
    "linformer",
)
# Those that have no weights one by one that could be dropped.
kinds_without_weights = ("axial", "linear", "performer", "linformer", "nystrom")


def choose_attention(
    kind: str,
    dim: int,
    num_heads: int,
    grid: tuple[int, int],
    chosen: Mapping[str, Mapping[str, Any]] | None,
    *,
    dropout: float = 0.0,
    kernel_size: int = 7,
    dilation: int = 1,
    **options: Any,
) -> Callable[[], nn.Module]:
    """What makes an attention module.

    Args:
        kind: one of `attention_kinds`, or several joined by "+", which share the heads evenly, see `MixedAttention`.
        grid: (height, width) of the map that the network is made for.
        chosen: keywords of kinds by their name.
        kernel_size, dilation: of "local".
        dropout: of all kinds whose weights can be dropped.
        **options: of all kinds.

    Raises:
        ValueError: several kinds can't share the heads evenly.
    """
    if "+" in kind:
        names = kind.split("+")
        if num_heads % len(names):
            raise ValueError(f"{num_heads} heads can't be shared evenly by {len(names)} kinds of attention, {kind}")
        options |= {"dropout": dropout, "kernel_size": kernel_size, "dilation": dilation}
        options.setdefault("head_dim", dim // num_heads)
        parts = [choose_attention(name, dim, num_heads // len(names), grid, chosen, **options) for name in names]
        mixing = dict((chosen or {}).get(kind, {}))
        return lambda: MixedAttention(dim, [make() for make in parts], **mixing)
    if kind == "local":
        options |= {"kernel_size": kernel_size, "dilation": dilation}
    if kind in ("linformer", "relative_bias", "relative_position"):
        options["grid"] = grid
    if kind not in kinds_without_weights:
        options["dropout"] = dropout
    return partial(attention_kinds[kind], dim, num_heads, **options | dict((chosen or {}).get(kind, {})))


def check_pattern(
    pattern: Sequence[str], chosen: Mapping[str, Mapping[str, Any]] | None, *, num_prefix_tokens: int = 0
) -> None:
    """Refuses what is no pattern of kinds over the depth of a network.

    Raises:
        ValueError: it is empty, names an unknown kind, meets prefix tokens that a kind has no place for, or there are
            options of a kind that isn't in it.
    """
    single = [name for kind in pattern for name in kind.split("+")]
    unknown = sorted(set(single) - attention_kinds.keys())
    if unknown or not pattern:
        raise ValueError(f"attention {tuple(pattern)} is no pattern of {', '.join(attention_kinds)}")
    unused = sorted(set(chosen or ()) - {*single, *pattern})
    if unused:
        raise ValueError(f"attention_options of {', '.join(unused)}, which is not in attention {tuple(pattern)}")
    of_maps = [kind for kind in single if kind in kinds_of_maps]
    if of_maps and num_prefix_tokens:
        raise ValueError(
            f"{of_maps[0]} attention has no place for {num_prefix_tokens} class, distillation or register tokens: set "
            "class_token=False, distillation_token=False and num_registers=0, and pool by 'average'"
        )
