"""The one door through which visattn writes files, and where it keeps what can be computed again."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def atomic_path(destination: str | os.PathLike[str]) -> Iterator[Path]:
    """Yields a temporary path beside `destination`, which it becomes in one step if the block succeeds.

    A reader sees the old file or the whole new one, never a part; a failed or killed writer leaves the old file as it
    was. Parent folders are created. The temporary name keeps the destination's suffix, which some writers go by.

    Raises:
        OSError: the folder cannot be written.
    """
    destination = Path(destination)
    destination.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=destination.parent, prefix=f".{destination.stem}-", suffix=destination.suffix)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        mask = os.umask(0)
        os.umask(mask)
        temporary.chmod(0o666 & ~mask)  # mkstemp makes files private; a result is as readable as any other file
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        os.replace(temporary, destination)
    finally:
        temporary.unlink(missing_ok=True)


def cache_folder() -> Path:
    """The folder in the user's cache for what takes long to compute; everything in it may be deleted."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "visattn"
