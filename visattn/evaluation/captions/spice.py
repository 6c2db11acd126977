"""SPICE by the official Java program: one virtual machine for all captions, with a time limit and its own cache.

Source: Anderson et al., "SPICE: Semantic propositional image caption evaluation", ECCV 2016.
"""

from __future__ import annotations

import importlib.util
import json
import math
import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path


class SpiceUnavailable(RuntimeError):
    """Something that SPICE needs is missing; the message says what, and where it is looked for."""


_MODELS = ("stanford-corenlp-3.6.0.jar", "stanford-corenlp-3.6.0-models.jar")


def spice(
    references: Sequence[Sequence[str]], candidates: Sequence[str], *, timeout: float = 3600.0, memory: str = "4G"
) -> list[float]:
    """The SPICE F-score of each tokenized candidate, in [0, 1]; NaN where the program gives none.

    Args:
        references: for each image its reference captions.
        candidates: for each image its candidate caption.
        timeout: seconds until the program is stopped.
        memory: the largest heap of the virtual machine.
    Raises:
        SpiceUnavailable: Java, the program or its models are missing.
        TimeoutError: it took longer than `timeout`.
        RuntimeError: the program failed; the message ends with what it printed.
    """
    java, folder = _find()
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "visattn" / "spice"
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="visattn-spice-") as name:
        source, result = Path(name, "captions.json"), Path(name, "scores.json")
        items = [
            {"image_id": index, "test": candidate, "refs": list(captions)}
            for index, (captions, candidate) in enumerate(zip(references, candidates, strict=True))
        ]
        source.write_text(json.dumps(items), encoding="utf-8")
        jar = str(folder / "spice-1.0.jar")
        command = [java, f"-Xmx{memory}", "-jar", jar, str(source), "-cache", str(cache), "-out", str(result)]
        _run([*command, "-subset", "-silent"], folder, timeout)
        scores = {item["image_id"]: item["scores"]["All"]["f"] for item in json.loads(result.read_text("utf-8"))}
    return [_number(scores.get(index)) for index in range(len(items))]


def _find() -> tuple[str, Path]:
    """The Java program and the folder of pycocoevalcap's SPICE."""
    java = shutil.which("java")
    if java is None:
        raise SpiceUnavailable("SPICE needs Java: no `java` is on the PATH")
    package = importlib.util.find_spec("pycocoevalcap")
    if package is None or not package.submodule_search_locations:
        raise SpiceUnavailable("SPICE needs the program in the package pycocoevalcap: pip install visattn[meteor]")
    folder = Path(next(iter(package.submodule_search_locations)), "spice")
    missing = [name for name in ("spice-1.0.jar",) if not (folder / name).is_file()]
    missing += [name for name in _MODELS if not (folder / "lib" / name).is_file()]
    if missing:
        raise SpiceUnavailable(
            f"SPICE needs {', '.join(missing)}; the models are part of Stanford CoreNLP 3.6.0 (2015-12-09) and "
            f"belong in {folder / 'lib'}"
        )
    return java, folder


def _run(command: list[str], folder: Path, timeout: float) -> None:
    process = subprocess.Popen(
        command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, encoding="utf-8", errors="replace"
    )
    try:
        printed, _ = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        raise TimeoutError(f"SPICE took longer than {timeout:g} seconds and was stopped") from None
    finally:
        if process.poll() is None:
            process.kill()
            process.communicate()
    if process.returncode != 0:
        raise RuntimeError(f"SPICE ended with status {process.returncode}: {printed[-2000:].strip()}")


def _number(value: object) -> float:
    try:
        return float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return math.nan
