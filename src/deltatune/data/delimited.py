"""Delimited: rows of CSV and TSV files. A quote that is never closed costs the rows it swallows, and all are named."""

import csv
import logging
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from deltatune.core.errors import DataError
from deltatune.data.lines import LONGEST, Line, lines
from deltatune.data.table import Record, Table, unreadable

logger = logging.getLogger("deltatune")

SUSPICIOUS = 10
"""Lines inside one good row that would all be rows of their own: a quote may be open."""


@dataclass(slots=True)
class _Source:
    """The lines of a file as the parser takes them, and those of the row it is at."""

    path: Path
    taken: list[Line] = field(default_factory=list)

    def __iter__(self) -> Iterator[str]:
        for line in lines(self.path, ends=""):
            self.taken.append(line)
            yield line.text

    def row(self) -> list[Line]:
        """The lines since it was asked last."""
        found, self.taken = self.taken, []
        return found


def delimited(path: Path, delimiter: str) -> Table:
    """The rows of a file whose first line names the columns; raises `DataError` for a header that does not."""
    csv.field_size_limit(LONGEST)
    source = _Source(path)
    reader = csv.reader(iter(source), delimiter=delimiter, strict=True)
    columns = _header(path, reader)
    source.row()
    records: list[Record] = []
    for cells, wrong in _rows(reader):
        taken = source.row()
        if wrong is None and not cells:
            continue
        values = dict(zip(columns, cells, strict=False))
        if wrong is None and len(cells) != len(columns):
            wrong = f"{len(cells)} fields instead of {len(columns)}"
        inside = _rows_inside(taken, len(columns), delimiter) if len(taken) > 1 else []
        undecoded = next((f"not UTF-8 text ({_where(line)})" for line in taken if line.problem), None)
        records.append(Record(str(path), taken[0].number, values, wrong or undecoded or unreadable(values)))
        if wrong is not None:
            swallowed = f"part of the broken row of line {taken[0].number}"
            records += [Record(str(path), line.number, {}, swallowed) for line in inside]
        elif len(inside) >= max(SUSPICIOUS, len(taken) - 2):
            said = "%s:%d: the row takes %d lines that look like rows of their own: is a quote left open?"
            logger.warning(said, path, taken[0].number, len(inside))
    return Table(str(path), columns, records)


def _header(path: Path, reader: Iterator[list[str]]) -> tuple[str, ...]:
    try:
        header = next(reader, None)
    except csv.Error as error:
        raise DataError(f"{path}:1: {error}") from None
    if not header:
        raise DataError(f"{path} is empty", hint="the first line must name the columns")
    columns = tuple(name.strip() for name in header)
    if len(set(columns)) < len(columns):
        seen: set[str] = set()
        twice = next(name for name in columns if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise DataError(f"{path}:1: column {twice!r} stands there twice")
    return columns


def _rows(reader: Iterator[list[str]]) -> Iterator[tuple[list[str], str | None]]:
    """Cells of every row, and what the parser objected to."""
    while True:
        try:
            yield next(reader), None
        except StopIteration:
            return
        except csv.Error as error:
            yield [], f"not valid CSV: {error}"


def _where(line: Line) -> str:
    return f"{line.problem} of line {line.number}"


def _rows_inside(taken: list[Line], columns: int, delimiter: str) -> list[Line]:
    """The lines behind the first one that would be rows if a quote had not swallowed them."""
    return [line for line in taken[1:] if _fields(line.text, delimiter) == columns]


def _fields(text: str, delimiter: str) -> int:
    try:
        return len(next(csv.reader([text], delimiter=delimiter, strict=True), ()))
    except csv.Error:
        return 0
