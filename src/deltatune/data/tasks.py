"""Tasks of the rows: names from a column, ids 0..n-1 in their natural order."""

from collections.abc import Iterable, Sequence
from typing import Any

from deltatune.core.errors import DataError, did_you_mean
from deltatune.core.task import CONDITION, TASK, Example, ManyTasks, Row, Task
from deltatune.data.table import Table


def column_of(table: Table, column: str, word: str, setting: str, does: str) -> dict[str, str]:
    """A column to read besides the task's own, under a word; raises `DataError` with near names."""
    if column not in table.columns:
        raise DataError(
            f"{table.file} has no column {column!r} that {does} ({setting})", hint=did_you_mean(column, table.columns)
        )
    return {word: column}


def found_in(rows: Iterable[Row], column: str) -> ManyTasks:
    """The tasks of the training rows, numbers by value and before words; raises `DataError` when there is one only."""
    names = sorted({name_of(row) for row in rows}, key=_natural)
    if len(names) < 2:
        raise DataError(f"all training rows are of one task ({names[0]!r})", hint="take data.task_column out")
    return ManyTasks(column=column, names=tuple(names))


def name_of(row: Row) -> str:
    """The name of a row's task; whole numbers without a decimal point."""
    value = row[TASK]
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value).strip()


def check_task(row: Row, task: Task) -> str | None:
    """What is wrong with the task of a row, or None."""
    if TASK not in row:
        return None
    if row[TASK] is None or not name_of(row):
        return "task is missing"
    if task.many is not None and name_of(row) not in task.many.names:
        return f"task is unknown ({name_of(row)!r})"
    return None


def encode(task: Task, rows: Sequence[Row], processor: Any) -> list[Example]:
    """The task's examples, with the id of each row's task where many are trained."""
    examples = task.encode(rows, processor)
    if task.many is None:
        return examples
    ids = {name: index for index, name in enumerate(task.many.names)}
    return [{**example, CONDITION: ids[name_of(row)]} for example, row in zip(examples, rows, strict=True)]


def _natural(name: str) -> tuple[int, int, str]:
    return (0, int(name), name) if name.isascii() and name.isdigit() else (1, 0, name)
