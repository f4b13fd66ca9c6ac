"""Table: rows of a file as they were read, each with its place."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

_SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True, slots=True)
class Record:
    """One row as read: its place, its values, or why it could not be read."""

    file: str
    line: int
    values: Mapping[str, Any]
    problem: str | None = None


@dataclass(frozen=True, slots=True)
class Table:
    """The rows of one file in their order, and its column names."""

    file: str
    columns: tuple[str, ...]
    records: list[Record]


def unreadable(values: Mapping[str, Any]) -> str | None:
    r"""Which column holds a text that no tokenizer takes: with a NUL character, or with half of a surrogate pair.

    >>> unreadable({"text": "a", "tags": ["b", "c\x00"]})
    'tags holds a NUL byte'
    """
    for name, value in values.items():
        for text in _texts(value):
            if "\x00" in text:
                return f"{name} holds a NUL byte"
            if not text.isascii() and _SURROGATE.search(text):
                return f"{name} holds half of a surrogate pair, which is no character"
    return None


def _texts(value: Any) -> Iterator[str]:
    """Every text in a value, however deep."""
    waiting = [value]
    while waiting:
        found = waiting.pop()
        if isinstance(found, str):
            yield found
        elif isinstance(found, list):
            waiting += found
        elif isinstance(found, dict):
            waiting += [*found, *found.values()]
