"""Self-critical sequence training: a captioner learns from the scores of captions that it samples."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from visattn.evaluation.captions import Cider, bleu, tokenize
from visattn.text import CaptionTokenizer

_end = "END"  # in upper case, as no token of the evaluation is


class CaptionReward:
    """CIDEr-D of captions against the references of their images, plus BLEU-4 if it is given a weight.

    The end of a caption is scored as a word, and counts in the document frequencies as one: otherwise the reward of a
    caption that breaks off ("a dog in a") is too high, and training learns to break off.

    Args:
        references: the captions of each training image, as people wrote them. Images without any don't count.
        bleu_weight: of BLEU-4, in [0, 1], beside CIDEr-D, in [0, 10].

    Source: Hu et al. 2023, "A request for clarity over the end of sequence token in the self-critical sequence
        training", https://arxiv.org/abs/2305.12254.
    """

    def __init__(self, references: Sequence[Sequence[str]], bleu_weight: float = 0.0) -> None:
        counts = [len(captions) for captions in references]
        flat = iter(with_end(tokenize([caption for captions in references for caption in captions])))
        self.references = [[next(flat) for _ in range(count)] for count in counts if count]
        self.place = np.cumsum(np.array(counts) > 0) - 1  # of each image among those with references
        self.cider = Cider(self.references)
        self.bleu_weight = bleu_weight

    def __call__(self, captions: Sequence[str], ended: Sequence[bool], images: Sequence[int]) -> NDArray[np.float64]:
        """The reward of each caption.

        Args:
            captions: as people would write them.
            ended: whether a caption came to its end, rather than to the limit of words.
            images: for each the index of its image among all, one with references.

        Returns:
            (captions,), 0 for what has nothing in common with its references.
        """
        tokenized = tokenize([" ".join(caption.split()) for caption in captions])  # no line separators
        candidates = [f"{text} {_end}" if done else text for text, done in zip(tokenized, ended, strict=True)]
        places = self.place[np.asarray(images, np.int64)].tolist()
        rewards = self.cider.score(candidates, places)
        if self.bleu_weight:
            _, per_caption = bleu([self.references[place] for place in places], candidates)
            rewards = rewards + self.bleu_weight * per_caption[3]
        return rewards


def with_end(captions: Sequence[str]) -> list[str]:
    return [f"{caption} {_end}" for caption in captions]


def policy_gradient_loss(log_probabilities: Tensor, rewards: Tensor) -> Tensor:
    """A loss whose gradient estimates that of the expected reward, with the sign turned round.

    What a sample is worth is its reward less the mean reward of the image's other samples.

    Args:
        log_probabilities: (B, n), of n >= 2 independent samples for each image, with gradient.
        rewards: (B, n).

    Returns:
        The mean over images and samples of -(reward - baseline) * log-probability.

    Raises:
        ValueError: there are fewer than two samples of each image, so nothing to compare.

    Source: self-critical sequence training (Rennie et al. 2017, https://arxiv.org/abs/1612.00563), equations 7 to 9,
        with the baseline of Luo 2020 (https://arxiv.org/abs/2003.09971), equation 6.
    """
    samples = rewards.shape[1]
    if samples < 2:
        raise ValueError(
            "num_samples is 1, and a sample is compared with the others of its image; at least 2 are needed"
        )
    baseline = (rewards.sum(dim=1, keepdim=True) - rewards) / (samples - 1)  # (B, n)
    return -((rewards - baseline) * log_probabilities).mean()


def pad_samples(
    samples: Sequence[Sequence[int]], tokenizer: CaptionTokenizer, max_new_tokens: int
) -> tuple[Tensor, list[bool]]:
    """Sampled captions as a decoder reads them.

    Args:
        samples: n captions, token ids without start and end; one of `max_new_tokens` ids has no end.

    Returns:
        (n, T) long: start, words, end where there is one, padding; and whether each has its end.
    """
    ended = [len(ids) < max_new_tokens for ids in samples]
    token_ids = tokenizer.pad(samples)  # (n, T), which ends them all
    for row, done, ids in zip(token_ids, ended, samples, strict=True):
        if not done:
            row[len(ids) + 1] = tokenizer.padding_id
    return token_ids, ended


def sequence_log_probabilities(logits: Tensor, token_ids: Tensor, lengths: Tensor) -> Tensor:
    """The log-probability of each caption under the logits.

    Args:
        logits: (n, T - 1, V), for the word behind each place but the last.
        token_ids: (n, T), with the start.
        lengths: (n,), how many tokens behind the start belong to the caption, its end among them.

    Returns:
        (n,).
    """
    chosen = token_ids[:, 1:, None]  # (n, T - 1, 1)
    precise = torch.promote_types(logits.dtype, torch.float32)
    log_probabilities = logits.log_softmax(dim=-1, dtype=precise).gather(2, chosen)[:, :, 0]  # (n, T - 1)
    counted = torch.arange(chosen.shape[1], device=logits.device) < lengths[:, None]
    return log_probabilities.masked_fill(~counted, 0.0).sum(dim=1)
