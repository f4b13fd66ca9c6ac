"""Check: every row before training. A row is kept, or rejected with its place and the reason."""

import logging
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deltatune.core.errors import DataError
from deltatune.core.task import GROUP, TASK, Row, Task
from deltatune.data.columns import Columns, rest
from deltatune.data.table import Record, Table, unreadable
from deltatune.data.tasks import check_task, name_of

logger = logging.getLogger("deltatune")


@dataclass(frozen=True, slots=True)
class Placed:
    """A good row under the task's words, with its place."""

    file: str
    line: int
    """0 for a row that the task composed of several."""
    row: Row


@dataclass(frozen=True, slots=True)
class Rejected:
    """A row that is not used, and why."""

    file: str
    line: int
    reason: str
    row: Mapping[str, Any]

    def as_json(self) -> dict[str, Any]:
        """One line of rejected.jsonl."""
        return {"file": self.file, "line": self.line, "reason": self.reason, "row": dict(self.row)}


@dataclass(frozen=True, slots=True)
class Checked:
    """Rows read = kept + rejected."""

    kept: list[Placed]
    rejected: list[Rejected]

    @property
    def read(self) -> int:
        """How many there were."""
        return len(self.kept) + len(self.rejected)

    def then(self, task: Task) -> "Checked":
        """The kept rows checked again, by a task that knows the labels by now."""
        kept, rejected = [], list(self.rejected)
        for place in self.kept:
            wrong = (task.check(place.row) or check_task(place.row, task)) if place.line else None
            if wrong is None:
                kept.append(place)
            else:
                rejected.append(Rejected(place.file, place.line, wrong, place.row))
        return Checked(kept, rejected)


def check(table: Table, columns: Columns, task: Task) -> Checked:
    """Every row of a table; the second of two rows with the same input is rejected, unless the task says otherwise."""
    others = rest(table, columns, task)
    kept: list[Placed] = []
    rejected: list[Rejected] = []
    seen: dict[Hashable, Placed] = {}
    for record in table.records:
        row = row_of(record, columns, task, others)
        wrong = record.problem or _missing(row, task, columns) or task.check(row) or check_task(row, task)
        wrong = wrong or (None if task.repeats else _repeated(row, task, seen))
        if wrong is not None:
            rejected.append(Rejected(record.file, record.line, wrong, record.values))
            continue
        place = Placed(record.file, record.line, row)
        seen[key(row, task)] = place
        kept.append(place)
    return Checked(kept, rejected)


def row_of(record: Record, columns: Columns, task: Task, others: Sequence[str]) -> dict[str, Any]:
    """A record under the task's words, with the columns `others` in one mapping; paths are relative to its file."""
    row = {word: _value(record, names) for word, names in columns.items()}
    if task.rest is not None:
        row[task.rest] = _value(record, others)
    for word, column in task.columns.items():
        value = row.get(word)
        if column.path and isinstance(value, str) and value:
            row[word] = str(Path(record.file).parent / value)
    return row


def _value(record: Record, names: str | Sequence[str]) -> Any:
    """What stands in a column, or in several as a mapping."""
    return record.values.get(names) if isinstance(names, str) else {name: record.values.get(name) for name in names}


def _missing(row: Row, task: Task, columns: Columns) -> str | None:
    for word in columns:
        if word in task.columns and task.columns[word].required and row[word] is None:
            return f"{columns[word]} is missing"
    return _no_group(row[GROUP], columns[GROUP]) if GROUP in row else None


def _no_group(value: Any, column: str | Sequence[str]) -> str | None:
    """Why a value is no group that a row could belong to: rows without one would be one large group."""
    if value is None or value != value or (isinstance(value, str) and not value.strip()):
        return f"{column} is missing"
    return f"{column} is neither a name nor a number" if isinstance(value, list | dict) else None


def _repeated(row: Row, task: Task, seen: Mapping[Hashable, Placed]) -> str | None:
    first = seen.get(key(row, task))
    if first is None:
        return None
    other = task.label is not None and row.get(task.label) != first.row.get(task.label)
    return f"same input as line {first.line}" + (", with another label" if other else "")


def key(row: Row, task: Task) -> Hashable:
    """What makes two rows the same input, as the task says; of two tasks they are two."""
    return (name_of(row) if TASK in row else None, task.identity(row))


def summary(rejected: Sequence[Rejected], read: int) -> str:
    """Counts by reason, with the first five places."""
    counts = Counter(kind(r.reason) for r in rejected)
    reasons = ", ".join(f"{count} x {reason}" for reason, count in counts.most_common())
    first = "; ".join(f"{r.file}:{r.line}: {r.reason}" for r in rejected[:5])
    return f"{len(rejected)} of {read} rows rejected ({reasons}); {first}"


def kind(reason: str) -> str:
    """A reason without the values in it.

    >>> kind("label is unknown ('goood')"), kind("same input as line 3")
    ('label is unknown', 'same input')
    """
    if reason.startswith("same input"):
        return "same input with another label" if reason.endswith("another label") else "same input"
    return reason.partition(" (")[0].partition(":")[0]


def gate(checked: Checked, largest_share: float) -> None:
    """Raises `DataError` when more than a share of the rows was rejected; says how many otherwise."""
    if not checked.rejected:
        return
    text = summary(checked.rejected, checked.read)
    if not checked.kept or len(checked.rejected) > largest_share * checked.read:
        raise DataError(text, hint=f"mend the file, or allow more with data.max_rejected (now {largest_share:g})")
    logger.warning("%s; a run lists all of them in rejected.jsonl", text)


def overlap(train: Sequence[Placed], others: Mapping[str, Sequence[Placed]], task: Task) -> list[str]:
    """Rows of other splits whose input stands in the training rows too, as text."""
    known = {key(place.row, task): place for place in train if place.line}
    found = []
    for name, places in others.items():
        for place in places:
            twin = known.get(key(place.row, task)) if place.line else None
            if twin is not None:
                found.append(f"{name} {place.file}:{place.line} = train {twin.file}:{twin.line}")
    return found


def records_of(rows: Sequence[Mapping[str, Any]], source: str = "rows") -> Table:
    """A table of rows given in Python."""
    columns: dict[str, None] = {}
    for row in rows:
        columns |= dict.fromkeys(row)
    return Table(source, tuple(columns), [Record(source, i, row, unreadable(row)) for i, row in enumerate(rows, 1)])
