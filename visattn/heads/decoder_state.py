"""What a caption decoder remembers while it writes."""

from __future__ import annotations

import torch
from torch import Tensor

from visattn.attention import KeyValueCache


class DecoderState:
    """What a decoder remembers of images and words while it writes captions; made by `CaptionDecoder.begin`.

    Args:
        depth: blocks of the decoder.
        memory: (B, N, dim), the image tokens, embedded.
        memory_mask: (B, N), bool, or None.
        num_beams: captions per image.
        capacity: words that a caption may have.
        is_prefix: whether the image tokens stand in front of the words.

    Attributes:
        length: words so far.
        caches: of the self-attention, one for each block.
        contexts: keys and values of the image tokens for the cross-attention, one pair for each block.
        context_mask: (B, 1, 1, N), bool, which of them exist; or None.
    """

    def __init__(
        self,
        depth: int,
        memory: Tensor,
        memory_mask: Tensor | None,
        *,
        num_beams: int,
        capacity: int,
        is_prefix: bool,
    ) -> None:
        batch, self.num_prefix = memory.shape[0], memory.shape[1] if is_prefix else 0
        self.num_beams, self.capacity, self.length = num_beams, capacity, 0
        self.caches = [KeyValueCache(batch, num_beams, capacity, self.num_prefix) for _ in range(depth)]
        self.contexts: list[tuple[Tensor, Tensor] | None] = [None] * depth
        self.context_mask = None if memory_mask is None or is_prefix else memory_mask[:, None, None]
        # What each caption sees of the keys that those of an image share: of each position its own, as a bias.
        own = torch.zeros(num_beams, num_beams, dtype=memory.dtype, device=memory.device)
        own = own.masked_fill(~torch.eye(num_beams, dtype=torch.bool, device=memory.device), float("-inf"))
        prefix = memory.new_zeros(batch, num_beams, self.num_prefix)
        if memory_mask is not None and is_prefix:
            prefix = prefix.masked_fill(~memory_mask[:, None], float("-inf"))
        self.bias = torch.cat([prefix, own.repeat(1, capacity).expand(batch, -1, -1)], dim=2)
        self.sees_all = num_beams == 1 and (memory_mask is None or not is_prefix)

    def take(self, count: int) -> Tensor | None:
        """Counts new words in.

        Returns:
            The bias of their self-attention, (B, 1, num_beams * count, keys so far); None if it is 0 everywhere.

        Raises:
            ValueError: there is no room for them.
        """
        before, self.length = self.length, self.length + count
        if self.length > self.capacity:
            raise ValueError(f"{self.length} words are more than the {self.capacity} that this state was made for")
        if count == 1 and self.sees_all:
            return None
        bias = self.bias[:, None, :, : self.used]
        if count == 1:
            return bias
        key = (torch.arange(self.used, device=bias.device) - self.num_prefix) // self.num_beams  # their positions
        future = key > torch.arange(before, self.length, device=bias.device)[:, None]  # (count, keys so far)
        return bias[:, 0, :, None].masked_fill(future, float("-inf")).flatten(1, 2)[:, None]

    @property
    def used(self) -> int:
        """Keys so far in the cache of an image."""
        return self.num_prefix + self.length * self.num_beams

    @torch.no_grad()
    def reorder(self, indices: Tensor) -> None:
        """Lets each caption go on from the words of another one of the same image.

        Args:
            indices: (B * num_beams,), long: the row whose words each row continues.
        """
        if self.num_beams > 1:
            seen = self.bias.flatten(0, 1)[:, : self.used]  # (B * num_beams, keys so far)
            seen.copy_(seen.index_select(0, indices))

    @torch.no_grad()
    def keep(self, images: Tensor) -> None:
        """Forgets all images but these, whose captions alone are to be continued.

        Args:
            images: (n,), long, ascending.
        """
        self.bias = self.bias[images]
        for cache in self.caches:
            cache.keep(images)
        self.contexts = [
            context if context is None else (context[0][images], context[1][images]) for context in self.contexts
        ]
        if self.context_mask is not None:
            self.context_mask = self.context_mask[images]
