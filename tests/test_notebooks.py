"""Every notebook runs from its first cell to its last."""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

root = Path(__file__).parent.parent
flickr8k = root.parent / "shared" / "data" / "flickr8k"
notebooks = sorted(path.name for path in (root / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("name", notebooks)
def test_a_notebook_runs(name, monkeypatch):
    if name == "captions.ipynb":
        if not flickr8k.is_dir():
            pytest.skip(f"there is no {flickr8k}, whose images the notebook shows")
        monkeypatch.setenv("FLICKR8K", str(flickr8k))
    notebook = nbformat.read(root / "notebooks" / name, as_version=4)
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(root / "notebooks")}}).execute()
    printed = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    assert any("image/png" in output.get("data", {}) for output in printed), "no picture was shown"


@pytest.mark.parametrize("name", notebooks)
def test_a_notebook_is_kept_without_its_outputs(name):
    notebook = nbformat.read(root / "notebooks" / name, as_version=4)
    assert not any(cell.outputs or cell.execution_count for cell in notebook.cells if cell.cell_type == "code")
