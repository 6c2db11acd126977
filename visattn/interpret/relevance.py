"""Where a network looks: attention followed from its output back to the image."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from visattn.backbones import Backbone, Features
from visattn.heads import ImageClassifier
from visattn.interpret.record import observe_attention

_pooling_module = "attention_pooling.attention"


def attention_heatmap(model: ImageClassifier, images: Tensor, classes: Tensor | None = None) -> Tensor:
    """How much each place counts for a class.

    The final tokens count by gradient times activation; from them relevance flows back through the attention of every
    block, each weight counted by its own gradient where that is positive.

    Args:
        model: any classifier of the zoo.
        images: (B, 3, H, W), preprocessed.
        classes: (B,) of the class to explain; None takes the predicted one.

    Returns:
        (B, H, W) in [0, 1], each map from its least to its most relevant place.

    Raises:
        ValueError: the model has no classifier.

    Source: Chefer et al. 2021, https://arxiv.org/abs/2103.15679, equations 5 and 6, started from gradient times
        activation (Selvaraju et al. 2017, https://arxiv.org/abs/1610.02391) so that averaged tokens count apart.
    """
    with evaluating(model), torch.enable_grad():
        features, steps, logits = look(model, images.detach().requires_grad_())
        if logits is None:
            raise ValueError("this model has no classifier, and so no class to explain; attention_rollout needs none")
        chosen = logits.argmax(dim=1) if classes is None else classes
        score = logits.gather(1, chosen[:, None]).sum()
        steps = [step for step in steps if not step.pools]  # the gradient of the tokens tells what pooling reads
        weights = [step.weights for step in steps]
        gradients = torch.autograd.grad(score, [features.tokens, *weights], allow_unused=True)
    relevance = (features.tokens * gradients[0]).detach().sum(dim=2).float()  # (B, N)
    relevance = torch.where((relevance > 0).any(dim=1, keepdim=True), relevance.clamp(min=0), relevance.abs())
    grid = grid_of(features.maps[-1])
    for step, gradient in reversed(list(zip(steps, gradients[1:], strict=True))):
        relevance, grid = refine(relevance, grid, step.grid), step.grid
        if gradient is not None:
            flow = (step.weights.detach() * gradient).float().clamp(min=0).mean(dim=1)  # (B, N, n)
            # The queries that count most pass on all they have, and those without a gradient nothing.
            flow = flow / flow.sum(dim=2).amax(dim=1)[:, None, None].clamp(min=1e-30)
            relevance = relevance + follow(relevance, flow, step.keys)
    return to_image(relevance, grid, images.shape[-2:])


def attention_rollout(model: ImageClassifier, images: Tensor) -> Tensor:
    """Where the attention of all blocks leads, from what the classifier reads back to the image, whatever the class.

    A block counts as half attention, averaged over its heads, and half residual branch.

    Args:
        model: any classifier of the zoo.
        images: (B, 3, H, W), preprocessed.

    Returns:
        (B, H, W) in [0, 1], each map from the least to the most attended place.

    Source: Abnar & Zuidema 2020, https://arxiv.org/abs/2005.00928.
    """
    with evaluating(model), torch.no_grad():
        features, steps, _ = look(model, images)
    flow, grid = read_by_classifier(model.backbone, features, steps), grid_of(features.maps[-1])
    for step in reversed(steps):
        if step.pools:
            continue
        flow, grid = refine(flow, grid, step.grid), step.grid
        flow = 0.5 * flow + 0.5 * follow(flow, step.weights.float().mean(dim=1), step.keys)
    return to_image(flow, grid, images.shape[-2:])


class Step(NamedTuple):
    """The attention of one module.

    Attributes:
        name: of the module.
        weights: (B, heads, queries, n).
        keys: (queries, n), the token of each key, -1 for padding; None where every query sees all tokens.
        grid: (height, width) of its tokens, without the prefix tokens.
        pools: whether it is the query of attention pooling, not a block.
    """

    name: str
    weights: Tensor
    keys: Tensor | None
    grid: tuple[int, int]
    pools: bool


def look(model: ImageClassifier, images: Tensor) -> tuple[Features, list[Step], Tensor | None]:
    """One forward pass: the features, the attention of the backbone's modules in their order, and the logits."""
    seen: list[tuple[str, Tensor, Tensor | None]] = []
    kept: list[Features] = []
    hook = model.backbone.register_forward_hook(lambda module, inputs, features: kept.append(features))
    try:
        with observe_attention(model.backbone, lambda *event: seen.append(event)):
            output = model.features(images) if model.head is None else model(images)
    finally:
        hook.remove()
    features, steps = kept[0], []
    for name, weights, keys in seen:
        # Stages differ in the number of tokens; local kinds have a query for each, pooling a key for each.
        tokens = max(weights.shape[2], weights.shape[3])
        fitting = [grid for grid in map(grid_of, features.maps) if tokens - grid[0] * grid[1] >= 0]
        steps.append(Step(name, weights, keys, fitting[0], name.endswith(_pooling_module)))
    return features, steps, None if isinstance(output, Features) else output


def read_by_classifier(backbone: Backbone, features: Features, steps: Sequence[Step]) -> Tensor:
    """The share that each of the final tokens has in what the classifier reads: (B, N), of sum 1."""
    batch, count, _ = features.tokens.shape
    prefix, pooling = backbone.num_prefix_tokens, getattr(backbone, "pooling", "average")
    share = torch.zeros(batch, count, device=features.tokens.device)
    if pooling == "attention":
        weights = next(step.weights for step in steps if step.pools).mean(dim=1)[:, 0]  # (B, keys)
        share[:, count - weights.shape[1] :] = weights
        return share
    if pooling in ("token", "token_and_average"):
        share[:, 0] = 1
        if getattr(backbone, "distillation_token", None) is not None:
            share[:, :2] = 1
    if pooling != "token":
        start = 0 if getattr(backbone, "pooling_prefix", False) else prefix
        share[:, start:] += 1 / (count - start)
    return share / share.sum(dim=1, keepdim=True)


def follow(share: Tensor, weights: Tensor, keys: Tensor | None) -> Tensor:
    """The share (B, N) of each query handed on to the keys that it sees, by its weights (B, N, n): (B, N)."""
    if keys is None:
        return torch.einsum("bi,bij->bj", share, weights)
    given = torch.where(keys < 0, 0.0, share[:, :, None] * weights).flatten(1)  # (B, N * n)
    return torch.zeros_like(share).scatter_add(1, keys.clamp(min=0).flatten().expand_as(given), given)


def refine(share: Tensor, grid: tuple[int, int], finer: tuple[int, int]) -> Tensor:
    """The share (B, prefix + height * width) of each token divided among those that it was merged from."""
    if grid == finer:
        return share
    factor = (-(-finer[0] // grid[0]), -(-finer[1] // grid[1]))
    cells = share[:, -grid[0] * grid[1] :].unflatten(1, grid)  # (B, height, width)
    rows, columns = (torch.arange(side, device=share.device) // step for side, step in zip(finer, factor, strict=True))
    sizes = torch.bincount(rows, minlength=grid[0])[:, None] * torch.bincount(columns, minlength=grid[1])
    return (cells / sizes)[:, rows][:, :, columns].flatten(1)


def grid_of(feature_map: Tensor) -> tuple[int, int]:
    return feature_map.shape[-2], feature_map.shape[-1]


def to_image(share: Tensor, grid: tuple[int, int], size: Sequence[int]) -> Tensor:
    """Shares (B, N) of tokens, prefix first, to maps (B, H, W) from 0 to 1."""
    places = share[:, -grid[0] * grid[1] :].unflatten(1, grid)[:, None]  # (B, 1, height, width)
    maps = functional.interpolate(places.float(), tuple(size), mode="bilinear", align_corners=False)[:, 0]
    lowest, highest = maps.amin((1, 2), keepdim=True), maps.amax((1, 2), keepdim=True)
    return (maps - lowest) / (highest - lowest).clamp(min=1e-12)


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """The module in eval mode within the block, and each of its parts as it was behind it."""
    modes = {part: part.training for part in module.modules()}
    module.eval()
    try:
        yield
    finally:
        for part, mode in modes.items():
            part.training = mode
