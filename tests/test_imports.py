"""Imports go one way: data -> backbones -> heads -> tasks; attention imports nothing of ours; one door each."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

package = Path(__file__).parent.parent / "visattn"
files = sorted(package.rglob("*.py"))
allowed = {
    "files": set(),
    "attention": set(),
    "data": {"files", "text"},
    "text": {"files"},
    "evaluation": {"files", "text"},
    "backbones": {"attention", "data"},
    "heads": {"attention", "backbones", "data", "text"},
    "checkpoints": {"attention", "backbones", "data", "files", "heads", "text"},
    "interpret": {"attention", "backbones", "data", "files", "heads"},
    "tasks": {"attention", "backbones", "checkpoints", "data", "evaluation", "files", "heads", "interpret", "text"},
    "zoo": {"backbones", "checkpoints", "heads"},
    "benchmark": {
        "attention",
        "backbones",
        "checkpoints",
        "data",
        "evaluation",
        "files",
        "heads",
        "tasks",
        "text",
        "zoo",
    },
    "cli": {"__init__", "backbones", "checkpoints", "data", "evaluation", "files", "heads", "interpret", "zoo"},
    "__init__": {"checkpoints", "zoo"},
    "__main__": {"cli"},
}


def imported(file: Path) -> set[str]:
    """The rooms of visattn that a file imports from, wherever in the file."""
    rooms = set()
    for node in ast.walk(ast.parse(file.read_text())):
        names = []
        if isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{file}: imports are absolute here"
            names = [node.module]
            if node.module == "visattn":  # a room, or a name that the package itself gives
                names = [f"visattn.{alias.name if alias.name in allowed else '__init__'}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        rooms |= {name.split(".")[1] for name in names if name.startswith("visattn.")}
    return rooms


@pytest.mark.parametrize("file", files, ids=lambda file: str(file.relative_to(package)))
def test_imports_go_one_way(file):
    room = file.relative_to(package).parts[0].removesuffix(".py")
    others = imported(file) - {room}
    assert others <= allowed[room], f"{room} must not import {', '.join(sorted(others - allowed[room]))}"


@pytest.mark.parametrize(
    ("call", "home"),
    [("torch.load(", "checkpoints/native.py"), ("Image.open(path", "data/images.py"), ("mkstemp(", "files.py")],
)
def test_there_is_one_door(call, home):
    doors = {file.relative_to(package).as_posix() for file in files if call in file.read_text()}
    assert doors == {home}
