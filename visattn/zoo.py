"""The zoo: models by name."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from fnmatch import fnmatch
from typing import Any, Literal

from visattn import backbones
from visattn.backbones import Backbone
from visattn.checkpoints import load_pretrained, shipped_weights
from visattn.heads import ImageClassifier

_presets: dict[str, Callable[..., Backbone]] = {
    name: getattr(backbones, name) for name in backbones.__all__ if name.islower()
}


def list_models(pattern: str = "*", pretrained: bool = False) -> list[str]:
    """The names that `create_model` knows, sorted.

    Args:
        pattern: shell wildcards, such as "vit_*tiny".
        pretrained: list the names of the shipped weights instead, which `load_pretrained` knows too; those of
            classifiers are fit for `create_model(..., pretrained=NAME)`.
    """
    names = shipped_weights() if pretrained else _presets
    return sorted(name for name in names if fnmatch(name, pattern))


def create_model(
    name: str,
    num_classes: int | Literal["auto"] | None = "auto",
    image_size: int | Sequence[int] | None = None,
    patch_size: int | None = None,
    pretrained: bool | str = False,
    **overrides: Any,
) -> ImageClassifier | Backbone:
    """Builds a model: images (B, 3, H, W) to logits, or to `Features` if `num_classes` is None.

    Args:
        name: one of `list_models()`.
        num_classes: number of logits; None gives the backbone alone. "auto" is 1000, or as many as the pretrained
            weights have.
        image_size: height and width in pixels, or one number; None is 224, or the pretrained weights' own.
        patch_size: side of a patch in pixels; None is the preset's choice for the image size.
        pretrained: True loads the weights shipped for this model, a string those of this name.
        **overrides: further constructor arguments of the backbone.

    Raises:
        ValueError: there is no such model or there are no such weights (the message names the nearest ones), or
            pretrained weights meet arguments that would change their architecture.
    """
    if name not in _presets:
        raise ValueError(f"no model is called {name!r}{_nearest(name, list_models())}")
    if pretrained:
        if patch_size is not None or overrides:
            changed = ", ".join([*(["patch_size"] if patch_size is not None else []), *overrides])
            raise ValueError(f"pretrained weights fix the architecture; leave out {changed}")
        return _load_shipped(name, pretrained, num_classes, image_size)
    backbone = _presets[name](224 if image_size is None else image_size, patch_size, **overrides)
    if num_classes is None:
        return backbone
    return ImageClassifier(backbone, 1000 if num_classes == "auto" else num_classes)


def _load_shipped(
    name: str, pretrained: bool | str, num_classes: int | Literal["auto"] | None, image_size: int | Sequence[int] | None
) -> ImageClassifier | Backbone:
    weights = shipped_weights("classification")
    if isinstance(pretrained, str):
        fitting = [pretrained] if pretrained in weights else []
    else:
        fitting = [shipped for shipped in weights if shipped == name or shipped.startswith(f"{name}_")]
    if len(fitting) != 1:
        wanted = pretrained if isinstance(pretrained, str) else name
        problem = f"several weights are shipped for {wanted!r}" if fitting else f"no weights are shipped for {wanted!r}"
        raise ValueError(f"{problem}; there are: {', '.join(fitting or sorted(weights)) or 'none'}")
    model = load_pretrained(
        weights[fitting[0]], num_classes=num_classes if isinstance(num_classes, int) else None, image_size=image_size
    )
    return model.backbone if num_classes is None else model


def _nearest(name: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.4)
    return f"; did you mean {' or '.join(near)}?" if near else f"; there are {', '.join(known)}"
