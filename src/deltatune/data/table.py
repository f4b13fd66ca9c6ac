"""Table: rows of a file as they were read, each with its place."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


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
