"""Columns: which column of a file is which word of the task."""

from collections.abc import Mapping

from deltatune.core.errors import DataError, did_you_mean
from deltatune.core.task import Column, Task
from deltatune.data.table import Table


def match(
    table: Table, wanted: Mapping[str, Column], given: Mapping[str, str], unlabelled: str | None = None
) -> dict[str, str]:
    """Task's word -> column name; raises `DataError` with the line of settings that would help.

    `unlabelled` is the word that may be missing where rows are to be predicted.
    """
    for word, column in given.items():
        if word not in wanted:
            raise DataError(f"data.columns.{word}: the task has no such word", hint=did_you_mean(word, wanted))
        if column not in table.columns and word != unlabelled:
            raise DataError(
                f"{table.file} has no column {column!r} (data.columns.{word})", hint=did_you_mean(column, table.columns)
            )
    by_lower = {name.lower(): name for name in reversed(table.columns)}
    found = {word: column for word, column in given.items() if column in table.columns}
    for word, known_as in wanted.items():
        if word in found:
            continue
        name = next((by_lower[known] for known in known_as.words if known in by_lower), None)
        if name is not None and name not in found.values():
            found[word] = name
        elif known_as.required and word != unlabelled:
            free = [name for name in table.columns if name not in found.values()]
            raise DataError(
                f"{table.file} has no column for {word!r} (columns: {', '.join(table.columns)})",
                hint=f"name it: data: {{columns: {{{word}: {' or '.join(free[:3]) or '...'}}}}}",
            )
    return found


def rest(table: Table, matched: Mapping[str, str], task: Task) -> tuple[str, ...]:
    """The columns that no word has matched, where the task reads them too."""
    return () if task.rest is None else tuple(name for name in table.columns if name not in matched.values())
