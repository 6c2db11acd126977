"""Where a network looks: attention followed from its output back to the image."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional

from visattn.heads import ImageClassifier
from visattn.interpret.record import record_attention


def attention_heatmap(model: ImageClassifier, images: Tensor, classes: Tensor | None = None) -> Tensor:
    """How much each place counts for a class.

    The final tokens count by gradient times activation; from them relevance flows back through the attention of the
    last stage, each weight counted by its own gradient where that is positive.

    Args:
        model: any classifier of the zoo.
        images: (B, 3, H, W), preprocessed.
        classes: (B,) of the class to explain; None takes the predicted one.

    Returns:
        (B, H, W) in [0, 1], each map from its least to its most relevant place.

    Source: Chefer et al. 2021, https://arxiv.org/abs/2103.15679, equations 5 and 6, started from gradient times
        activation (Selvaraju et al. 2017, https://arxiv.org/abs/1610.02391) so that averaged tokens count apart.
    """
    with evaluating(model), torch.enable_grad(), record_attention(model, full=True) as maps:
        tokens: list[Tensor] = []
        handle = model.backbone.register_forward_hook(lambda _, inputs, features: tokens.append(features))
        try:
            logits = model(images.detach().requires_grad_())  # (B, classes)
        finally:
            handle.remove()
        features = tokens[0]
        chosen = logits.argmax(dim=1) if classes is None else classes
        score = logits.gather(1, chosen[:, None]).sum()
        weights = last_stage(maps.values(), features.tokens.shape[1])
        gradients = torch.autograd.grad(score, [features.pooled, *weights], retain_graph=True, allow_unused=True)
        token_gradient = torch.autograd.grad(score, features.tokens, allow_unused=True)[0]
    final = features.tokens.detach()  # (B, N, C)
    if token_gradient is None:
        token_gradient = gradients[0][:, None] / final.shape[1]
    relevance = (final * token_gradient).sum(dim=2)  # (B, N)
    relevance = torch.where((relevance > 0).any(dim=1, keepdim=True), relevance.clamp(min=0), relevance.abs())
    for weight, gradient in reversed(list(zip(weights, gradients[1:], strict=True))):
        if gradient is not None:
            flow = (weight.detach() * gradient).clamp(min=0).mean(dim=1)  # (B, N, N)
            flow = flow / flow.sum(dim=2, keepdim=True).clamp(min=1e-12)
            relevance = relevance + torch.einsum("bi,bij->bj", relevance, flow)
    return to_image(relevance, features.maps[-1].shape[-2:], images.shape[-2:])


def attention_rollout(model: ImageClassifier, images: Tensor) -> Tensor:
    """Where the attention of all blocks of the last stage leads, whatever the class: (B, H, W) in [0, 1].

    Source: Abnar & Zuidema 2020, https://arxiv.org/abs/2005.00928.
    """
    with evaluating(model), torch.no_grad(), record_attention(model, full=True) as maps:
        features = model.features(images)
        count = features.tokens.shape[1]
        prefix = model.backbone.num_prefix_tokens
        flow = torch.full((len(images), count), 1 / count, device=images.device)
        if prefix:  # the class token alone is read
            flow = torch.zeros_like(flow)
            flow[:, 0] = 1
        for weight in reversed(last_stage(maps.values(), count)):
            flow = 0.5 * flow + 0.5 * torch.einsum("bi,bij->bj", flow, weight.mean(dim=1).to(flow.dtype))
    return to_image(flow, features.maps[-1].shape[-2:], images.shape[-2:])


def last_stage(weights: Iterable[Tensor], tokens: int) -> list[Tensor]:
    """Those maps whose queries and keys are the final tokens; earlier stages have other grids."""
    return [weight for weight in weights if weight.shape[-2:] == (tokens, tokens)]


def to_image(relevance: Tensor, grid: Iterable[int], size: Iterable[int]) -> Tensor:
    """Relevance (B, N) of tokens, prefix first, to maps (B, H, W) from 0 to 1."""
    height, width = grid
    places = relevance[:, -height * width :].view(-1, 1, height, width)
    maps = functional.interpolate(places, tuple(size), mode="bilinear", align_corners=False)[:, 0]  # (B, H, W)
    lowest, highest = maps.amin((1, 2), keepdim=True), maps.amax((1, 2), keepdim=True)
    return (maps - lowest) / (highest - lowest).clamp(min=1e-12)


class evaluating:
    """The module in eval mode within the block, and as it was behind it."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    def __enter__(self) -> None:
        self.was_training = self.module.training
        self.module.eval()

    def __exit__(self, *_: object) -> None:
        self.module.train(self.was_training)
