"""Which words of a question, and which places of the image, an answer rests on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from visattn.heads import VisualQuestionAnswerer
from visattn.interpret.record import record_attention
from visattn.interpret.relevance import evaluating, grid_of, to_image


class QuestionWord(NamedTuple):
    """A word of a question.

    Attributes:
        word: as it is printed.
        share: of the answer that rests on it; those of all words sum to 1.
        attention: (H, W) in [0, 1], from the least to the most attended place of the image, as the word saw it: the
            mean over heads and blocks.
    """

    word: str
    share: float
    attention: Tensor


class AnswerExplanation(NamedTuple):
    """What an answer rests on.

    Attributes:
        answer: that is explained.
        probability: as in `visattn.heads.Answer`.
        attention: (H, W) in [0, 1], how much each place of the image counts for the answer.
        words: of the question that the model knows, in their order.
    """

    answer: str
    probability: float
    attention: Tensor
    words: list[QuestionWord]


def explain_answer(
    model: VisualQuestionAnswerer, image: Tensor, question: str | Sequence[int] | Tensor, answer: str | None = None
) -> AnswerExplanation:
    """How much words and places count for an answer.

    Relevance starts where the answer is read and flows back through the attention of every block, each weight counted
    by its own gradient where that is positive: at a cross-attention to the places of the image, at a self-attention to
    the other words. Self-attention layers between backbone and question encoder, which mix the image tokens, are
    followed back to the places that the tokens come from.

    Args:
        model: any that answers questions.
        image: (1, 3, H, W), preprocessed.
        question: its text, or its token ids (T,) with start and end.
        answer: of the model's vocabulary; None takes the most probable.

    Raises:
        ValueError: there are several images, or the model doesn't know the answer.

    Source: Chefer et al. 2021, https://arxiv.org/abs/2103.15679, equations 5, 6 and 10.
    """
    if image.ndim != 4 or len(image) != 1:
        raise ValueError(f"one image (1, 3, H, W) is explained at a time, not {tuple(image.shape)}")
    if answer is not None and answer not in model.answers:
        raise ValueError(f"{answer!r} is none of the {len(model.answers)} answers of this model")
    token_ids = model.tokenizer.batch([question])[0] if isinstance(question, str) else torch.as_tensor(question)
    token_ids = token_ids[: model.questions.max_length].to(image.device)  # (T,)
    depth = range(len(model.questions.blocks))
    asking = [f"questions.blocks.{number}.attention" for number in depth]
    looking = [f"questions.blocks.{number}.cross_attention" for number in depth]
    mixing = [f"encoder.blocks.{number}.attention" for number in range(len(model.encoder.blocks))]
    with (
        evaluating(model),
        torch.inference_mode(False),  # whose tensors no gradient can use; hence the copies
        torch.enable_grad(),
        record_attention(model, modules=asking + looking + mixing) as maps,
    ):
        features = model.features(image.detach().clone().requires_grad_())
        memory = model.memory(features)  # (1, N, C)
        logits = model.judge(memory, token_ids.clone()[None, None])[0, 0].float()  # (answers,)
        chosen = int(logits.argmax()) if answer is None else model.answers.index(answer)
        names = [name for name in maps if maps[name].requires_grad]
        gradients = torch.autograd.grad(logits[chosen], [maps[name] for name in names], allow_unused=True)
    flows = {
        name: flow_of(maps[name], gradient)
        for name, gradient in zip(names, gradients, strict=True)
        if gradient is not None
    }
    words, places = torch.zeros(len(token_ids), device=image.device), torch.zeros(memory.shape[1], device=image.device)
    words[0] = 1.0  # the start, at which the answer is read
    for number in reversed(depth):
        if looking[number] in flows:
            places = places + words @ flows[looking[number]]
        if asking[number] in flows:
            words = words + words @ flows[asking[number]]
    for name in reversed(mixing):
        if name in flows:
            places = places + places @ flows[name]

    ids = token_ids[1:][model.questions.words_of(token_ids[None])[0, 1:]].tolist()
    known = [(word, [1 + position for position in positions]) for word, positions in model.tokenizer.words(ids)]
    shares = torch.tensor([float(words[positions].sum()) for _, positions in known])
    shares = shares / shares.sum().clamp(min=1e-12)
    seen = torch.stack([maps[name][0].detach().float().mean(dim=0) for name in looking]).mean(dim=0)  # (T, N)
    rows = torch.stack([places, *(seen[positions].mean(dim=0) for _, positions in known)])  # (1 + words, N)
    attention = to_image(rows, grid_of(features.maps[-1]), image.shape[-2:])  # (1 + words, H, W)
    return AnswerExplanation(
        model.answers[chosen],
        float(logits[chosen].detach().sigmoid()),
        attention[0],
        [
            QuestionWord(word, float(share), looked)
            for (word, _), share, looked in zip(known, shares, attention[1:], strict=True)
        ],
    )


def flow_of(weights: Tensor, gradient: Tensor) -> Tensor:
    """What each query hands on to each key, from attention (1, heads, queries, keys) and its gradient: (queries, keys).

    The queries that count most pass on all they have.
    """
    flow = (weights.detach() * gradient)[0].float().clamp(min=0).mean(dim=0)
    return flow / flow.sum(dim=1).amax().clamp(min=1e-30)
