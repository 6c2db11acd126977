"""The weights that come with visattn."""

from __future__ import annotations

import json
from pathlib import Path

_package = Path(__file__).parent.parent
# In the repository and in an editable install the weights lie beside the package, in a wheel within it.
_asset_folders = (_package / "assets", _package.parent / "assets")


def shipped_weights(kind: str | None = None) -> dict[str, Path]:
    """The folders of the shipped weights by name.

    Args:
        kind: "classification", "captioning" or "detection"; None: all.
    """
    paths = [path for folder in _asset_folders for path in folder.glob("*/config.json")]
    kinds = {path: json.loads(path.read_text(encoding="utf-8")).get("kind", "classification") for path in paths}
    return {path.parent.name: path.parent for path in paths if kind in (None, kinds[path])}
