"""Fields of JSON files that others wrote, checked one by one: what is wrong names the file, the entry and the field."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

_lone_surrogate = re.compile("[\ud800-\udfff]")


class JsonFields:
    """Reads a kind of file.

    Args:
        error: is raised where a file cannot be used.
        what: the files hold, such as "captions".
    """

    def __init__(self, error: type[ValueError], what: str) -> None:
        self.error, self.what = error, what

    def read_text(self, file: Path) -> str:
        if not file.is_file():
            raise FileNotFoundError(f"{file}: there is no such file of {self.what}")
        try:
            return file.read_text(encoding="utf-8-sig")
        except UnicodeDecodeError as error:
            raise self.error(f"{file}: not UTF-8 (byte {error.start}); save the file as UTF-8") from None

    def read_json(self, file: Path) -> Any:
        content = self.read_text(file)
        try:
            return json.loads(content)
        except (ValueError, RecursionError) as error:
            raise self.error(
                f"{file}: no JSON, or cut off: {error}; the file has {len(content):,} characters, compare that with "
                "its source and fetch it again"
            ) from None

    def field(self, where: str | Path, entry: Any, name: str) -> Any:
        if not isinstance(entry, dict):
            raise self.error(f"{where}: expected an object, found {kind(entry)}")
        if name not in entry:
            raise self.error(f'{where}: "{name}" is missing')
        return entry[name]

    def list_of(self, where: str | Path, entry: Any, name: str) -> list:
        value = self.field(where, entry, name)
        if not isinstance(value, list):
            raise self.error(f'{where}: "{name}" must be a list, found {kind(value)}')
        return value

    def string(self, where: str | Path, entry: Any, name: str) -> str:
        value = self.field(where, entry, name)
        if not isinstance(value, str):
            raise self.error(f'{where}: "{name}" must be a string, found {kind(value)}')
        return value

    def text(self, where: str | Path, entry: Any, name: str) -> str:
        """A string that says something."""
        value = self.string(where, entry, name)
        if not value.strip():
            raise self.error(f'{where}: "{name}" is empty')
        return value

    def unicode(self, where: str | Path, name: str, value: str) -> str:
        """A string that can be written to a file."""
        if surrogate := _lone_surrogate.search(value):
            raise self.error(
                f'{where}: "{name}" is no valid Unicode (a lone surrogate at {surrogate.start()}): {value!r}'
            )
        return value

    def whole(self, where: str | Path, entry: Any, name: str, least: int | None = None) -> int:
        """A whole number of 64 bits."""
        value = self.field(where, entry, name)
        wanted = "a whole number" if least is None else f"a whole number from {least} on"
        if isinstance(value, bool) or not isinstance(value, int):
            raise self.error(f'{where}: "{name}" must be {wanted}, found {kind(value)}')
        if abs(value) >= 2**63:
            raise self.error(f'{where}: "{name}" must be {wanted}, found one of more than 64 bits')
        if least is not None and value < least:
            raise self.error(f'{where}: "{name}" must be {wanted}, found {value}')
        return value

    def numbers(self, where: str | Path, name: str, values: Any, count: int | None = None) -> list[float]:
        """A list of finite numbers, of which there must be `count`, if that is given."""
        if not isinstance(values, list):
            raise self.error(f'{where}: "{name}" must be a list of numbers, found {kind(values)}')
        if count is not None and len(values) != count:
            raise self.error(f'{where}: "{name}" must be {count} numbers, found {len(values)}')
        for value in values:
            if type(value) is not float and type(value) is not int:
                raise self.error(f'{where}: "{name}" must be a list of numbers, found {kind(value)} in it')
            if not (math.isfinite(value) if type(value) is float else abs(value) < 2**53):
                shown = value if type(value) is float else "one of more than 53 bits"
                raise self.error(f'{where}: "{name}" holds a number that cannot be used: {shown}')
        return values


def kind(value: Any) -> str:
    """A value of JSON in words."""
    kinds = {dict: "an object", list: "a list", str: "a string", type(None): "null", bool: "a truth value"}
    return kinds.get(type(value), "a number")
