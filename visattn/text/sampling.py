"""One word after the other: the likeliest, or one drawn from the model's distribution."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from visattn.text.word_scores import Bans, Decoder, Generated, best_words, log_normalizer, start_rows, worth_dropping


def greedy(
    decoder: Decoder,
    memory: Tensor,
    *,
    start_ids: Sequence[int] | Tensor,
    end_id: int,
    padding_id: int,
    max_new_tokens: int = 20,
    no_repeat_ngram: int = 0,
    min_new_tokens: int = 0,
    memory_mask: Tensor | None = None,
) -> list[list[Generated]]:
    """The likeliest next word, again and again. Args and Returns as `generate`; one caption for each image."""

    def likeliest(logits: Tensor) -> Tensor:
        return best_words(logits, 1)[1][:, 0]

    bans = Bans(end_id, min_new_tokens, no_repeat_ngram)
    return write(decoder, memory, memory_mask, likeliest, bans, start_ids, padding_id, max_new_tokens, 1)


def sample(
    decoder: Decoder,
    memory: Tensor,
    *,
    start_ids: Sequence[int] | Tensor,
    end_id: int,
    padding_id: int,
    num_return: int = 1,
    max_new_tokens: int = 20,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    generator: torch.Generator | None = None,
    no_repeat_ngram: int = 0,
    min_new_tokens: int = 0,
    memory_mask: Tensor | None = None,
) -> list[list[Generated]]:
    """Words drawn from the model's distribution, sharpened by the temperature and cut to its top.

    Args and Returns as `generate`; num_return captions for each image, drawn independently, the likeliest first.

    Source: top-k: Fan et al. 2018, https://arxiv.org/abs/1805.04833, section 5.4; nucleus (top_p): Holtzman et al.
        2020, https://arxiv.org/abs/1904.09751, section 3.1.
    """

    def draw(logits: Tensor) -> Tensor:
        probabilities, words = word_probabilities(logits, temperature, top_k, top_p)
        places = torch.multinomial(probabilities, 1, generator=generator)  # (rows, 1)
        return (places if words is None else words.gather(1, places))[:, 0]

    bans = Bans(end_id, min_new_tokens, no_repeat_ngram)
    captions = write(decoder, memory, memory_mask, draw, bans, start_ids, padding_id, max_new_tokens, num_return)
    return [sorted(group, key=lambda caption: -caption.log_probability) for group in captions]


def word_probabilities(
    logits: Tensor, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0
) -> tuple[Tensor, Tensor | None]:
    """The distribution that `sample` draws from.

    Args:
        logits: (rows, vocabulary).
        temperature: divides the logits.
        top_k: keep the k likeliest words; 0 keeps all.
        top_p: of those keep the fewest likeliest words whose probability is at least top_p together.

    Returns:
        Probabilities (rows, n), and the words (rows, n) that they belong to, likeliest first, or None if n is the
        vocabulary in order.
    """
    logits = logits / temperature
    words = None
    if 0 < top_k < logits.shape[1]:
        logits, words = best_words(logits, top_k)
    elif top_p < 1:
        logits, words = logits.sort(dim=1, descending=True)
    probabilities = logits.softmax(dim=1)
    if top_p < 1:
        likelier = probabilities.cumsum(dim=1) - probabilities  # how probable all words are that come before
        probabilities = probabilities.masked_fill(likelier >= top_p, 0.0)
        probabilities /= probabilities.sum(dim=1, keepdim=True)
    return probabilities, words


def write(
    decoder: Decoder,
    memory: Tensor,
    memory_mask: Tensor | None,
    choose: Callable[[Tensor], Tensor],
    bans: Bans,
    start_ids: Sequence[int] | Tensor,
    padding_id: int,
    max_new_tokens: int,
    copies: int,
) -> list[list[Generated]]:
    """`copies` captions for each image, whose next words (rows,) `choose` takes by their logits (rows, vocabulary).

    Raises:
        ValueError: no word may come next.
    """
    images, end_id = memory.shape[0], bans.end_id
    token_ids = start_rows(start_ids, memory, copies)  # (images * copies, n)
    captions: list[list[int]] = token_ids.tolist()
    num_start = token_ids.shape[1]
    totals = [0.0] * len(captions)
    ended = [False] * len(captions)
    state = decoder.begin(memory, memory_mask, num_beams=copies, max_length=num_start + max_new_tokens - 1)
    held = list(range(images))  # those that the state knows of

    for num_new in range(max_new_tokens):
        rows = [image * copies + copy for image in held for copy in range(copies)]
        logits = decoder.step(token_ids, state).float()  # (rows, vocabulary)
        normalizer = log_normalizer(logits)
        bans.apply(logits, [[] if ended[row] else captions[row] for row in rows], num_new)
        if bans.no_repeat_ngram and logits.amax(dim=1).isneginf().any():
            raise ValueError("every next word is banned: choose a larger no_repeat_ngram or lower min_new_tokens")
        words = choose(logits)  # (rows,)
        log_probabilities = logits.gather(1, words[:, None])[:, 0] - normalizer
        following = []
        for row, word, log_probability in zip(rows, words.tolist(), log_probabilities.tolist(), strict=True):
            if not ended[row]:
                totals[row] += log_probability
                ended[row] = word == end_id
                if not ended[row]:
                    captions[row].append(word)
            following.append(padding_id if ended[row] else word)
        token_ids = torch.tensor(following, device=memory.device)[:, None]

        places = [i for i, image in enumerate(held) if not all(ended[image * copies : (image + 1) * copies])]
        if not places:
            break
        if worth_dropping(len(places), len(held)):
            kept = torch.tensor(places, device=memory.device)
            state.keep(kept)
            token_ids = token_ids.view(len(held), copies)[kept].view(-1, 1)
            held = [held[i] for i in places]

    written = [Generated(caption[num_start:], total) for caption, total in zip(captions, totals, strict=True)]
    return [written[first : first + copies] for first in range(0, len(written), copies)]
