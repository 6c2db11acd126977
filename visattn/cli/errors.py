"""How commands end where they cannot go on: a sentence on stderr and exit code 1, never a traceback."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import typer


def report_error(message: object) -> None:
    """One line on stderr."""
    from rich.console import Console
    from rich.text import Text

    Console(stderr=True).print(Text.assemble(("error: ", "red"), str(message)), soft_wrap=True)


@contextmanager
def errors_as_messages() -> Iterator[None]:
    """Turns what a user can mend (a missing file, a checkpoint that doesn't fit) into its message and exit code 1."""
    try:
        yield
    except (ValueError, OSError, ImportError) as error:
        report_error(error)
        raise typer.Exit(1) from None


def report_warning(message: object) -> None:
    """One line on stderr; the command goes on."""
    from rich.console import Console
    from rich.text import Text

    Console(stderr=True).print(Text.assemble(("warning: ", "yellow"), str(message)), soft_wrap=True)
