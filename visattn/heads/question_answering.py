"""Visual question answering: a backbone, questions whose words look at the image, and a vocabulary of answers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from visattn.backbones import Backbone, Features
from visattn.backbones.features import constructor_arguments
from visattn.backbones.layers import initialize
from visattn.data import Preprocess
from visattn.data.preprocess import Picture, picture_batch
from visattn.heads.caption_decoder import DecoderBlock
from visattn.heads.captioner import grid_of
from visattn.heads.image_encoder import ImageEncoder
from visattn.text import CaptionTokenizer


class Answer(NamedTuple):
    """One answer to a question about an image.

    Attributes:
        text: of the model's vocabulary of answers.
        probability: that it is right, or more exactly the official accuracy that the model expects of it; each answer
            is judged by itself, so that those of all answers don't sum to 1.
    """

    text: str
    probability: float


class QuestionEncoder(nn.Module):
    """The words of questions and image tokens to one vector a question.

    Each block attends to all words of the question, then to the image tokens, as a decoder of captions does, but
    without an order in which words are said. The result is read at the start that stands in front of each question.

    Args:
        vocabulary_size: number of words.
        memory_dim: channels of the image tokens.
        dim: channels of a word, and of the result.
        depth: number of blocks.
        num_heads: attention heads.
        mlp_ratio: hidden channels of the MLP / `dim`.
        max_length: words of a question, start and end among them; a longer one is cut off.
        end_id: of the word behind which a question ends.
        dropout: probability on embeddings and residual branches, in training.

    Attributes:
        arguments: all constructor arguments as plain data.

    Raises:
        ValueError: num_heads doesn't divide dim, or max_length is below 2.

    Source: the co-attention of LXMERT's cross-modality encoder (Tan & Bansal 2019, https://arxiv.org/abs/1908.07490,
        section 2.2), from the words to the image only; BERT's reading at the first token (Devlin et al. 2019,
        https://arxiv.org/abs/1810.04805, section 3).
    """

    def __init__(
        self,
        vocabulary_size: int,
        memory_dim: int,
        dim: int = 512,
        depth: int = 4,
        num_heads: int = 8,
        *,
        mlp_ratio: float = 4.0,
        max_length: int = 32,
        end_id: int,
        dropout: float = 0.1,
    ) -> None:
        arguments = constructor_arguments(locals())
        super().__init__()
        self.arguments = arguments
        if max_length < 2:
            raise ValueError(f"max_length {max_length} leaves no room for start and end")
        self.dim, self.max_length, self.end_id, self.dropout = dim, max_length, end_id, dropout
        self.embedding = nn.Embedding(vocabulary_size, dim)
        self.position_embedding = nn.Parameter(torch.empty(max_length, dim))
        self.blocks = nn.ModuleList(
            DecoderBlock(
                dim,
                num_heads,
                memory_dim,
                hidden_dim=int(dim * mlp_ratio + 1e-6),
                norm_first=True,
                norm_eps=1e-5,
                activation="gelu",
                dropout=dropout,
                attention_dropout=0.0,
            )
            for _ in range(depth)
        )
        self.norm = nn.LayerNorm(dim)
        self.apply(initialize_by_width)
        nn.init.trunc_normal_(self.embedding.weight, std=0.02)
        nn.init.trunc_normal_(self.position_embedding, std=0.02)

    def forward(self, memory: Tensor, token_ids: Tensor) -> Tensor:
        """Image tokens (B, N, memory_dim) and the questions of each image (B, Q, T) to (B, Q, dim).

        Args:
            token_ids: long, each question as `CaptionTokenizer.batch` writes it. What is behind its end isn't seen. An
                image with fewer questions than Q may have any ids in the rest, whose results mean nothing.
        """
        batch, questions, _ = token_ids.shape
        token_ids = token_ids[:, :, : self.max_length].flatten(0, 1)  # (B * Q, T)
        words = self.embedding(token_ids) + self.position_embedding[: token_ids.shape[1]]  # (B * Q, T, dim)
        if self.training and self.dropout:
            words = functional.dropout(words, self.dropout)
        mask = self.words_of(token_ids)[:, None, None]  # (B * Q, 1, 1, T)
        for block in self.blocks:
            words = block(words, memory, mask=mask)  # the questions of an image share its keys and values
        return self.norm(words[:, 0]).unflatten(0, (batch, questions))

    def words_of(self, token_ids: Tensor) -> Tensor:
        """Which of the ids (B, T) belong to a question: (B, T) bool, True up to its end, the start at least."""
        ended = (token_ids[:, 1:] == self.end_id).cumsum(1)  # the start may be the same id
        return functional.pad(ended - (token_ids[:, 1:] == self.end_id).long() == 0, (1, 0), value=True)


class VisualQuestionAnswerer(nn.Module):
    """Images and questions about them to a logit for each answer; `answer` takes pictures and text.

    Args:
        backbone: gives the image tokens.
        questions: reads them with the words of the questions.
        tokenizer: of the words.
        answers: the vocabulary of answers.
        encoder_depth: blocks of self-attention between backbone and question encoder, whose tokens are projected,
            normalised and given positions; 0 does this without blocks.
        encoder_heads: attention heads of these blocks.
        dropout: probability in these blocks and before the last layer, in training.

    Attributes:
        arguments: the last three as plain data.
        preprocess: turns a picture into what `forward` expects, or None if unknown.

    Raises:
        ValueError: there are no answers, one is there twice, or the question encoder knows fewer words than the
            tokenizer.

    Source: answers as classes judged independently, Teney et al. 2017, https://arxiv.org/abs/1708.02711.
    """

    def __init__(
        self,
        backbone: Backbone,
        questions: QuestionEncoder,
        tokenizer: CaptionTokenizer,
        answers: Sequence[str],
        *,
        encoder_depth: int = 0,
        encoder_heads: int = 8,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.arguments: dict[str, Any] = {
            "encoder_depth": encoder_depth,
            "encoder_heads": encoder_heads,
            "dropout": dropout,
        }
        if not answers or len(set(answers)) < len(answers):
            raise ValueError(f"{len(answers)} answers, {len(set(answers))} of them different, are no vocabulary")
        if questions.arguments["vocabulary_size"] < tokenizer.vocabulary_size:
            raise ValueError(
                f"the question encoder knows {questions.arguments['vocabulary_size']} words and the tokenizer "
                f"{tokenizer.vocabulary_size}: set its vocabulary_size to tokenizer.vocabulary_size"
            )
        self.backbone = backbone
        self.encoder = ImageEncoder(
            backbone.channels[-1],
            questions.arguments["memory_dim"],
            grid_of(backbone),
            depth=encoder_depth,
            num_heads=encoder_heads,
            dropout=dropout,
        )
        self.questions = questions
        self.tokenizer = tokenizer
        self.answers = tuple(answers)
        self.preprocess: Preprocess | None = None
        self.hidden = nn.Linear(questions.dim, 2 * questions.dim)
        self.head = nn.Linear(2 * questions.dim, len(self.answers))
        self.dropout = dropout
        self.hidden.apply(initialize_by_width)
        initialize(self.head)
        # As if one answer were right: else the many wrong ones make up the loss of the first steps.
        nn.init.constant_(self.head.bias, -math.log(max(len(self.answers) - 1, 1)))

    def features(self, images: Tensor) -> Features:
        """Images (B, channels, H, W) to what the backbone sees in them."""
        return self.backbone(images)

    def memory(self, features: Features) -> Tensor:
        """What the backbone saw to the tokens (B, N, memory_dim) that questions look at.

        They are in reading order behind the backbone's prefix tokens.
        """
        height, width = features.maps[-1].shape[-2:]
        return self.encoder(features.tokens, (height, width))

    def judge(self, memory: Tensor, token_ids: Tensor) -> Tensor:
        """Image tokens (B, N, memory_dim) and Q questions about each image (B, Q, T) to logits (B, Q, answers)."""
        hidden = functional.gelu(self.hidden(self.questions(memory, token_ids)))
        if self.training and self.dropout:
            hidden = functional.dropout(hidden, self.dropout)
        return self.head(hidden)

    def forward(self, images: Tensor, token_ids: Tensor) -> Tensor:
        """Images (B, channels, H, W) and Q questions about each (B, Q, T) to logits (B, Q, answers).

        Args:
            token_ids: as for `QuestionEncoder`.
        """
        return self.judge(self.memory(self.features(images)), token_ids)

    @torch.inference_mode()
    def answer(
        self, images: Tensor | Picture | Sequence[Picture], questions: str | Sequence[str], num_return: int = 1
    ) -> list[list[Answer]]:
        """Answers to questions about pictures, those of each pair best first. Dropout is off in eval mode only.

        Args:
            images: paths, PIL images, or one of them; or a preprocessed tensor (B, channels, H, W).
            questions: one for each image; or one about all of them, or several about the one image.
            num_return: answers to each, at most as many as there are.

        Raises:
            FileNotFoundError, ImageFileError: a file is missing, or no picture that can be read.
            ValueError: there are neither as many questions as images nor one of either, a question is empty or no valid
                Unicode, num_return is below 1, or pictures are given and the model doesn't know how they are prepared.
        """
        texts = [questions] if isinstance(questions, str) else list(questions)
        if num_return < 1:
            raise ValueError(f"num_return {num_return} must be at least 1")
        if empty := [text for text in texts if not text.strip()]:
            raise ValueError(f"{empty[0]!r} is no question")
        batch = picture_batch(images, self.preprocess, next(self.parameters()))  # (B, channels, H, W)
        if len(texts) != len(batch) and 1 not in (len(texts), len(batch)):
            raise ValueError(
                f"{len(texts)} questions don't fit {len(batch)} images: give one for each, or one of either"
            )
        token_ids = self.tokenizer.batch(texts).to(batch.device)  # (pairs or 1, T)
        if len(batch) == 1:
            logits = self(batch, token_ids[None])[0]  # (pairs, answers)
        else:
            logits = self(batch, token_ids.expand(len(batch), -1)[:, None])[:, 0]
        values, indices = logits.float().sigmoid().topk(min(num_return, len(self.answers)))
        return [
            [Answer(self.answers[index], value) for index, value in zip(chosen, probabilities, strict=True)]
            for chosen, probabilities in zip(indices.tolist(), values.tolist(), strict=True)
        ]


def initialize_by_width(module: nn.Module) -> None:
    """Draws linear weights from a range that depends on the width, so that narrow networks too pass on what they read.

    With the fixed deviation of 0.02 that backbones begin with, 128 channels took three times as many steps to learn
    where one thing lies of another.

    Source: Glorot & Bengio 2010, https://proceedings.mlr.press/v9/glorot10a.html, equation 16.
    """
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        nn.init.zeros_(module.bias)
