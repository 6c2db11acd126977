"""visattn: vision models whose attention can be read, swapped, measured and looked at."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from visattn.checkpoints import load_pretrained
    from visattn.zoo import create_model, list_models

__all__ = ["create_model", "list_models", "load_pretrained"]
__version__ = "0.1.0"

_homes = {
    "create_model": "visattn.zoo",
    "list_models": "visattn.zoo",
    "load_pretrained": "visattn.checkpoints",
}


def __getattr__(name: str):
    # Imported on first use, so that torch-free parts (caption evaluation) start fast.
    if name in _homes:
        return getattr(import_module(_homes[name]), name)
    raise AttributeError(f"module 'visattn' has no attribute {name!r}")
