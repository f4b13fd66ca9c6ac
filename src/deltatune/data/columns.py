"""Columns: which column of a file is which word of the task, or which columns: then the value is a mapping."""

from collections.abc import Collection, Mapping

from deltatune.core.errors import DataError, did_you_mean
from deltatune.core.task import Column, Task
from deltatune.data.table import Table

Columns = Mapping[str, str | list[str]]
"""Task's word -> name of a column, or several names."""


def match(
    table: Table,
    wanted: Mapping[str, Column],
    given: Columns,
    unlabelled: str | None = None,
    apart: Collection[str] = (),
) -> dict[str, str | list[str]]:
    """Task's word -> column name; raises `DataError` with the line of settings that would help.

    `unlabelled` is the word that may be missing where rows are to be predicted, `apart` are columns that no word finds
    by its names.
    """
    found: dict[str, str | list[str]] = {}
    for word, columns in given.items():
        if word not in wanted:
            raise DataError(f"data.columns.{word}: the task has no such word", hint=did_you_mean(word, wanted))
        absent = next((column for column in _each(columns) if column not in table.columns), None)
        if absent is None:
            found[word] = columns
        elif word != unlabelled:
            raise DataError(
                f"{table.file} has no column {absent!r} (data.columns.{word})", hint=did_you_mean(absent, table.columns)
            )
    by_lower = {name.lower(): name for name in reversed(table.columns) if name not in apart}
    for word, known_as in wanted.items():
        if word in found:
            continue
        name = next((by_lower[known] for known in known_as.words if known in by_lower), None)
        taken = _taken(found)
        if name is not None and name not in taken:
            found[word] = name
        elif known_as.required and word != unlabelled:
            free = [name for name in table.columns if name not in taken]
            raise DataError(
                f"{table.file} has no column for {word!r} (columns: {', '.join(table.columns)})",
                hint=f"name it: data: {{columns: {{{word}: {' or '.join(free[:3]) or '...'}}}}}",
            )
    return found


def rest(table: Table, matched: Columns, task: Task) -> tuple[str, ...]:
    """The columns that no word has matched, where the task reads them too."""
    return () if task.rest is None else tuple(name for name in table.columns if name not in _taken(matched))


def _each(columns: str | list[str]) -> list[str]:
    return [columns] if isinstance(columns, str) else columns


def _taken(matched: Columns) -> set[str]:
    return {name for columns in matched.values() for name in _each(columns)}
