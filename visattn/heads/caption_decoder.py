"""The caption decoder: image tokens in, one word after the other out."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from visattn.attention import KeyValueCache, MultiHeadAttention
from visattn.backbones.embedding import sinusoids
from visattn.backbones.features import constructor_arguments
from visattn.backbones.layers import Mlp, initialize, make_activation
from visattn.heads.decoder_state import DecoderState


class CaptionDecoder(nn.Module):
    """Image tokens and the words so far to the logits of the next word: a causal transformer.

    With style "cross" each block attends to the words, then to the image tokens, as GPT-2 with cross-attention and the
    decoder of BLIP do. With style "prefix" the image tokens, projected, stand in front of the words: they see each
    other, and a word sees them and the words before it, as in GIT.

    Args:
        vocabulary_size: number of words.
        memory_dim: channels of the image tokens.
        dim: channels of a word.
        depth: number of blocks.
        num_heads: attention heads.
        mlp_ratio: hidden channels of the MLP / `dim`.
        max_length: positions, the start among them.
        dropout: probability on embeddings and residual branches, in training.
        attention_dropout: probability that an attention weight is dropped, in training.
        style: "cross" or "prefix".
        norm_first: normalise the input of each branch, and the last block's output (GPT-2); or else the sums (BERT).
        activation: of the MLP and the head's transform: gelu, gelu_tanh, quick_gelu, silu or relu.
        norm_eps: epsilon of the norms.
        tie_embeddings: the head's weights are those of the word embedding.
        embedding_norm: normalise the sum of word and position embedding (BERT).
        head_transform: a linear layer, the activation and a norm before the logits (BERT).
        head_bias: a bias for each word's logit.
        position: "learned" or "sinusoidal".
        project_memory: with style "cross", map the image tokens linearly to `dim` first; "prefix" always does, and
            normalises them.
        memory_norm_eps: epsilon of the norm of projected image tokens.

    Attributes:
        arguments: all constructor arguments as plain data.

    Raises:
        ValueError: style or position is unknown, or num_heads doesn't divide dim.

    Source: Vaswani et al. 2017, https://arxiv.org/abs/1706.03762, section 3; GIT (Wang et al. 2022,
        https://arxiv.org/abs/2205.14100), section 3.1, for the prefix.
    """

    position_waves: Tensor

    def __init__(
        self,
        vocabulary_size: int,
        memory_dim: int,
        dim: int = 512,
        depth: int = 6,
        num_heads: int = 8,
        *,
        mlp_ratio: float = 4.0,
        max_length: int = 64,
        dropout: float = 0.1,
        attention_dropout: float = 0.0,
        style: str = "cross",
        norm_first: bool = True,
        activation: str = "gelu",
        norm_eps: float = 1e-5,
        tie_embeddings: bool = True,
        embedding_norm: bool = False,
        head_transform: bool = False,
        head_bias: bool = False,
        position: str = "learned",
        project_memory: bool = False,
        memory_norm_eps: float = 1e-5,
    ) -> None:
        arguments = constructor_arguments(locals())
        super().__init__()
        self.arguments = arguments
        for name, choices in (("style", ("cross", "prefix")), ("position", ("learned", "sinusoidal"))):
            if arguments[name] not in choices:
                raise ValueError(f"{name} {arguments[name]!r} is unknown; choose {' or '.join(choices)}")
        self.vocabulary_size, self.max_length, self.dropout = vocabulary_size, max_length, dropout
        self.is_prefix = style == "prefix"

        self.embedding = nn.Embedding(vocabulary_size, dim)
        self.position_embedding = nn.Embedding(max_length, dim) if position == "learned" else None
        if self.position_embedding is None:
            waves = sinusoids((max_length, 1), 2 * dim)[:, :dim]  # the half that tells rows apart
            self.register_buffer("position_waves", waves, persistent=False)
        self.embedding_norm = nn.LayerNorm(dim, norm_eps) if embedding_norm else None
        projects = self.is_prefix or project_memory
        self.memory_projection = nn.Linear(memory_dim, dim) if projects else None
        self.memory_norm = nn.LayerNorm(dim, memory_norm_eps) if self.is_prefix else None
        self.blocks = nn.ModuleList(
            DecoderBlock(
                dim,
                num_heads,
                None if self.is_prefix else (dim if projects else memory_dim),
                hidden_dim=int(dim * mlp_ratio + 1e-6),
                norm_first=norm_first,
                norm_eps=norm_eps,
                activation=activation,
                dropout=dropout,
                attention_dropout=attention_dropout,
            )
            for _ in range(depth)
        )
        self.norm = nn.LayerNorm(dim, norm_eps) if norm_first else None
        self.head = WordHead(
            dim,
            vocabulary_size,
            tied=tie_embeddings,
            transform=head_transform,
            activation=activation,
            norm_eps=norm_eps,
            bias=head_bias,
        )
        self.initialize()
        lay_out_for_few_rows(self)

    def initialize(self) -> None:
        """Draws new weights, normal with standard deviation 0.02; what ends on the residual path smaller, as in GPT-2.

        Source: Radford et al. 2019 (GPT-2), section 2.3.
        """
        self.apply(initialize)
        nn.init.normal_(self.embedding.weight, std=0.02)
        if self.position_embedding is not None:
            nn.init.normal_(self.position_embedding.weight, std=0.02)
        if self.norm is None:
            return
        for name, parameter in self.blocks.named_parameters():
            if name.endswith(("projection.weight", "fc2.weight")):
                parameter.data /= (2 * len(self.blocks)) ** 0.5

    def forward(self, memory: Tensor, token_ids: Tensor, memory_mask: Tensor | None = None) -> Tensor:
        """The logits of the next word at every place, each place seeing only itself and what is before it.

        Padding behind a caption needs no mask: no word before it sees it.

        Args:
            memory: (B, N, memory_dim) image tokens.
            token_ids: (B, T), long, beginning with the start; or (B * n, T) with the n captions of each image behind
                each other, which then share its keys and values.
            memory_mask: (B, N), bool, True for image tokens that exist; None: all.

        Returns:
            (B or B * n, T, vocabulary_size).

        Raises:
            ValueError: T exceeds max_length.
        """
        words, memory = self.embed(token_ids), self.embed_memory(memory)  # (B * n, T, dim), (B, N, dim)
        if self.is_prefix:
            return self.logits(self.after_prefix(memory, words, memory_mask))
        mask = None if memory_mask is None else memory_mask[:, None, None]  # (B, 1, 1, N)
        for block in self.blocks:
            words = block(words, memory, memory_mask=mask, is_causal=True)
        return self.logits(words)

    def after_prefix(self, memory: Tensor, words: Tensor, memory_mask: Tensor | None) -> Tensor:
        """Image tokens (B, N, dim) and words (B * n, T, dim) through all blocks: the words (B * n, T, dim)."""
        captions = words.shape[0] // memory.shape[0]
        if captions > 1:
            memory = memory.repeat_interleave(captions, dim=0)
            memory_mask = None if memory_mask is None else memory_mask.repeat_interleave(captions, dim=0)
        tokens = torch.cat([memory, words], dim=1)  # (B * n, N + T, dim)
        prefix, place = memory.shape[1], torch.arange(tokens.shape[1], device=tokens.device)
        mask = (place <= place.clamp(min=prefix - 1)[:, None])[None, None]  # (1, 1, N + T, N + T)
        if memory_mask is not None:
            mask = mask & functional.pad(memory_mask, (0, words.shape[1]), value=True)[:, None, None]
        for block in self.blocks:
            tokens = block(tokens, mask=mask)
        return tokens[:, prefix:]

    @torch.no_grad()
    def begin(
        self, memory: Tensor, memory_mask: Tensor | None = None, *, num_beams: int = 1, max_length: int
    ) -> DecoderState:
        """What `step` needs to know of the images; computed once for each, whatever the number of beams.

        Args:
            memory: (B, N, memory_dim) image tokens.
            memory_mask: (B, N), bool, True for image tokens that exist; None: all.
            num_beams: captions per image that are written side by side.
            max_length: words that a caption may have, the start among them.

        Raises:
            ValueError: max_length exceeds the decoder's.
        """
        self.check_length(max_length)
        memory = self.embed_memory(memory)  # (B, N, dim)
        state = DecoderState(
            len(self.blocks),
            memory,
            memory_mask,
            num_beams=num_beams,
            capacity=max_length,
            is_prefix=self.is_prefix,
        )
        mask = None if memory_mask is None else memory_mask[:, None, None]  # (B, 1, 1, N)
        block: Any
        for index, block in enumerate(self.blocks):
            if not self.is_prefix:
                key, value = block.cross_attention.keys_and_values(memory)
                state.contexts[index] = (key.contiguous(), value.contiguous())
            elif index < len(self.blocks) - 1:
                memory = block(memory, mask=mask, cache=state.caches[index])
            else:  # what comes out of the last block nobody reads
                block.remember(memory, state.caches[index])
        return state

    @torch.no_grad()
    def step(self, token_ids: Tensor, state: DecoderState) -> Tensor:
        """The logits of the word behind the last one.

        Args:
            token_ids: (B * num_beams, n), long: the words that are new since the last call; at the first the start and,
                if the captions shall begin so, more. The beams of an image stand behind each other.
            state: of `begin`; takes the words in.

        Returns:
            (B * num_beams, vocabulary_size).

        Raises:
            ValueError: the captions grow beyond the max_length given to `begin`.
        """
        words = self.embed(token_ids, state.length)  # (B * num_beams, n, dim)
        bias = state.take(token_ids.shape[1])
        for block, cache, context in zip(self.blocks, state.caches, state.contexts, strict=True):
            words = block(words, context, bias=bias, memory_mask=state.context_mask, cache=cache)
        return self.logits(words[:, -1])

    def embed(self, token_ids: Tensor, start: int = 0) -> Tensor:
        """Words (B, T), of which the first is at position `start`, to (B, T, dim)."""
        self.check_length(start + token_ids.shape[1])
        table = self.position_waves if self.position_embedding is None else self.position_embedding.weight
        words = self.embedding(token_ids) + table[start : start + token_ids.shape[1]]
        words = words if self.embedding_norm is None else self.embedding_norm(words)
        return functional.dropout(words, self.dropout) if self.training and self.dropout else words

    def embed_memory(self, memory: Tensor) -> Tensor:
        memory = memory if self.memory_projection is None else self.memory_projection(memory)
        return memory if self.memory_norm is None else self.memory_norm(memory)

    def logits(self, words: Tensor) -> Tensor:
        """(..., dim) behind the last block to (..., vocabulary_size)."""
        words = words if self.norm is None else self.norm(words)
        return self.head(words, self.embedding.weight)

    def check_length(self, length: int) -> None:
        if length > self.max_length:
            raise ValueError(
                f"{length} words, start included, exceed the {self.max_length} positions of this decoder: shorten the "
                "captions, or build it with a greater max_length"
            )


class DecoderBlock(nn.Module):
    """Attention to the words, to the image where there is a context, and an MLP: words (B, T, dim) in and out.

    Args:
        dim: channels of a word.
        num_heads: attention heads.
        context_dim: channels of what the cross-attention looks at; None leaves it out.
        hidden_dim: channels within the MLP.
        norm_first, norm_eps, activation, dropout, attention_dropout: see `CaptionDecoder`.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        context_dim: int | None,
        *,
        hidden_dim: int,
        norm_first: bool,
        norm_eps: float,
        activation: str,
        dropout: float,
        attention_dropout: float,
    ) -> None:
        super().__init__()
        self.norm_first = norm_first
        rates: dict[str, Any] = {"dropout": attention_dropout, "projection_dropout": dropout}
        self.norm1 = nn.LayerNorm(dim, norm_eps)
        self.attention = MultiHeadAttention(dim, num_heads, **rates)
        self.norm2: nn.Module | None = None
        self.cross_attention: MultiHeadAttention | None = None
        if context_dim is not None:
            self.norm2 = nn.LayerNorm(dim, norm_eps)
            self.cross_attention = MultiHeadAttention(dim, num_heads, context_dim=context_dim, **rates)
        self.norm3 = nn.LayerNorm(dim, norm_eps)
        self.mlp = Mlp(dim, hidden_dim, activation=activation, dropout=dropout)

    def forward(
        self,
        words: Tensor,
        context: Tensor | tuple[Tensor, Tensor] | None = None,
        *,
        mask: Tensor | None = None,
        bias: Tensor | None = None,
        is_causal: bool = False,
        memory_mask: Tensor | None = None,
        cache: KeyValueCache | None = None,
    ) -> Tensor:
        """Args: context, cache and the rest as in `MultiHeadAttention`; memory_mask is that of the context."""
        seen: dict[str, Any] = {"mask": mask, "bias": bias, "is_causal": is_causal, "cache": cache}
        if self.norm_first:
            words = words + self.attention(self.norm1(words), **seen)
            if self.cross_attention is not None and self.norm2 is not None:
                words = words + self.cross_attention(self.norm2(words), context=context, mask=memory_mask)
            return words + self.mlp(self.norm3(words))
        words = self.norm1(words + self.attention(words, **seen))
        if self.cross_attention is not None and self.norm2 is not None:
            words = self.norm2(words + self.cross_attention(words, context=context, mask=memory_mask))
        return self.norm3(words + self.mlp(words))

    def remember(self, words: Tensor, cache: KeyValueCache) -> None:
        """Puts the words' keys and values into the cache, as `forward` does, and nothing else."""
        _, key, value = self.attention.heads(self.norm1(words) if self.norm_first else words, None)
        cache.extend(key, value)


class WordHead(nn.Module):
    """(..., dim) to logits (..., vocabulary_size).

    Args:
        dim: channels of a word.
        vocabulary_size: number of words.
        tied: use the embedding's weights, instead of own ones.
        transform: a linear layer, an activation and a norm first.
        activation, norm_eps: of the transform.
        bias: of the logits.
    """

    def __init__(
        self,
        dim: int,
        vocabulary_size: int,
        *,
        tied: bool,
        transform: bool,
        activation: str,
        norm_eps: float,
        bias: bool,
    ) -> None:
        super().__init__()
        self.transform = nn.Linear(dim, dim) if transform else None
        self.activation = make_activation(activation) if transform else None
        self.norm = nn.LayerNorm(dim, norm_eps) if transform else None
        self.weight = None if tied else nn.Parameter(torch.empty(vocabulary_size, dim))
        self.bias = nn.Parameter(torch.zeros(vocabulary_size)) if bias else None
        if self.weight is not None:
            nn.init.normal_(self.weight, std=0.02)

    def forward(self, words: Tensor, embedding: Tensor) -> Tensor:
        if self.transform is not None and self.activation is not None and self.norm is not None:
            words = self.norm(self.activation(self.transform(words)))
        return functional.linear(words, embedding if self.weight is None else self.weight, self.bias)


def lay_out_for_few_rows(module: nn.Module) -> None:
    """Lets the weights of all linear layers lie in memory by input, not by output, with shapes and values as before.

    The products of a step have few rows. On CPUs those with up to a hundred take 0.5 to 0.9 of the time then, and those
    of training as long as ever. As with channels-last kernels all that copies weights keeps the order.
    """
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            layer.weight.data = layer.weight.data.t().contiguous().t()
