"""Keys and values kept while a text is written token by token."""

from __future__ import annotations

import torch
from torch import Tensor


class KeyValueCache:
    """The keys and values of one attention module for texts that grow, several of them to one image.

    The texts of an image (its beams) share one store, and each query meets the keys of all of them; a bias tells which
    entries are its own past. A text that goes on from another one's past then changes its row of the bias, while no key
    or value is copied. The scores of a few queries with a few hundred keys are one matrix product for each head, about
    as fast as the same for each text by itself.

    Memory: 2 * batch * heads * (num_shared + capacity * num_texts) * head_dim numbers, allocated at the first `extend`.

    Args:
        batch: number of images.
        num_texts: texts per image.
        capacity: tokens that a text may have.
        num_shared: keys that come first, one row of them per image, seen by all its texts: a prefix of image tokens.

    Attributes:
        used: entries filled so far along the keys' axis.
    """

    def __init__(self, batch: int, num_texts: int, capacity: int, num_shared: int = 0) -> None:
        self.batch, self.num_texts, self.num_shared = batch, num_texts, num_shared
        self.capacity = num_shared + capacity * num_texts
        self.used = 0
        self.store: Tensor | None = None

    def extend(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Keeps the keys and values of new tokens; returns all so far.

        Args:
            key, value: (batch * num_texts, heads, n, head_dim), the texts of an image behind each other; at the first
                call, if there is a shared prefix, (batch, heads, num_shared, head_dim).

        Returns:
            Keys and values (batch, heads, used, head_dim), views of the store: the shared ones, then for each position
            that of all texts in turn.
        """
        if self.store is None:
            self.store = key.new_empty(2, self.batch, key.shape[1], self.capacity, key.shape[3])
        texts = 1 if self.used < self.num_shared else self.num_texts
        end = self.used + texts * key.shape[2]
        for kept, new in ((self.store[0], key), (self.store[1], value)):
            places = kept[:, :, self.used : end].unflatten(2, (-1, texts))  # (batch, heads, n, texts, head_dim)
            places.copy_(new.unflatten(0, (-1, texts)).permute(0, 2, 3, 1, 4))
        self.used = end
        return self.store[0, :, :, :end], self.store[1, :, :, :end]

    def keep(self, images: Tensor) -> None:
        """Forgets all images but these, (n,) long, ascending."""
        self.batch = len(images)
        if self.store is not None:
            kept = self.store[:, :, :, : self.used].index_select(1, images)  # (2, n, heads, used, head_dim)
            self.store = kept.new_empty(*kept.shape[:3], self.capacity, kept.shape[4])
            self.store[:, :, :, : self.used] = kept

    def by_position(self, weights: Tensor) -> Tensor:
        """Attention weights (..., used) of one text to (..., num_shared + positions): each text has one own entry."""
        positions = (weights.shape[-1] - self.num_shared) // self.num_texts
        own = weights[..., self.num_shared :].unflatten(-1, (positions, self.num_texts)).sum(dim=-1)
        return torch.cat([weights[..., : self.num_shared], own], dim=-1)
