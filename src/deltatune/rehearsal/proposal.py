"""Proposal: what could be learned from a file, guessed from its columns and tried on its first rows.

A task is proposed when its words find columns (by name, else by kind: a text, a class, a path) and nearly all of the
first rows are good to it. First come tasks that leave few columns unread and had all of them named.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deltatune.core import registry
from deltatune.core.errors import DeltatuneError
from deltatune.core.task import Task
from deltatune.data.check import row_of
from deltatune.data.columns import match, rest
from deltatune.data.table import Table

LOOKED_AT = 200
"""Rows; of those that name files fewer, as each is opened."""
OPENED = 10
GOOD = 0.8
"""Share of the rows that must be good."""
WORDS, CLASSES = 4, 50
"""Words of a value on average from which on a column is one of texts, and most classes of a column."""


@dataclass(frozen=True, slots=True)
class Proposal:
    """One task for a file."""

    task: str
    title: str
    columns: Mapping[str, str]
    """Task's word -> column, for those that the names do not tell."""
    read: Mapping[str, Any]
    """Task's word -> column, all of them."""
    unread: int
    """Columns that are left."""
    doubts: int
    """Columns that were guessed, and texts in a table."""

    @property
    def shown(self) -> str:
        """One line."""
        found = ", ".join(f"{word} = {column}" for word, column in self.read.items())
        return f"{self.task}: {self.title.lower()} ({found or 'every column'})"


def proposals(table: Table) -> list[Proposal]:
    """What could be learned, the likeliest first."""
    kinds = {name: kind_of(name, table) for name in table.columns}
    tried = (_of_task(cls, table, kinds) for cls in registry.tasks().values())
    found = [proposal for proposal in tried if proposal is not None]
    return sorted(found, key=lambda p: (p.doubts + p.unread, p.doubts, -len(p.read)))


def kind_of(name: str, table: Table) -> str:
    """`text`, `class`, `number`, `path`, `list` or `other`, by the first rows.

    >>> from deltatune.data.check import records_of
    >>> table = records_of([{"a": f"one two three four {n}", "b": "x", "c": n} for n in range(9)])
    >>> [kind_of(name, table) for name in "abc"]
    ['text', 'class', 'number']
    """
    values = [v for r in table.records[:LOOKED_AT] if (v := r.values.get(name)) not in (None, "")]
    if not values:
        return "other"
    if any(isinstance(value, list | dict) for value in values):
        return "list"
    texts = [str(value) for value in values]
    if (Path(table.file).parent / texts[0]).is_file():
        return "path"
    if len(set(texts)) <= max(2, min(CLASSES, len(texts) // 5)):
        return "class"
    if all(_is_number(text) for text in texts):
        return "number"
    return "text" if sum(len(text.split()) for text in texts) >= WORDS * len(texts) else "other"


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _of_task(cls: type[Task], table: Table, kinds: Mapping[str, str]) -> Proposal | None:
    """The task with the columns as they are named, or as their kinds suggest."""
    given = _guessed(cls, table, kinds)
    try:
        read = match(table, cls.columns, given)
    except DeltatuneError:
        return None
    others = rest(table, read, registry.task(cls.type))
    if not read or not _works(cls, table, read, others):
        return None
    used = len({name for names in read.values() for name in ([names] if isinstance(names, str) else names)})
    texts = sum(kinds[name] in ("text", "list", "path") for name in others)
    unread = 0 if cls.rest is not None else len(table.columns) - used
    doubts = len(given) + 2 * texts + (cls.rest is not None)
    return Proposal(cls.type, cls.title, given, read, unread, doubts)


def _guessed(cls: type[Task], table: Table, kinds: Mapping[str, str]) -> dict[str, str]:
    """Columns for the words that no name finds: the label is the last column of classes or numbers."""
    names = {name.lower() for name in table.columns}
    found: dict[str, str] = {}
    for word, column in cls.columns.items():
        if not column.required or names & set(column.words):
            continue
        wanted = ("path",) if column.path else ("class", "number") if word == cls.label else ("text",)
        free = [name for kind in wanted for name in reversed(table.columns) if kinds[name] == kind]
        free = [name for name in free if name not in found.values()]
        if free:
            found[word] = free[0]
    return found


def _works(cls: type[Task], table: Table, read: Mapping[str, Any], others: tuple[str, ...]) -> bool:
    """Whether the first rows are good to the task, and it can be fitted to them."""
    task = registry.task(cls.type)
    logger = logging.getLogger("deltatune")
    count = OPENED if any(column.path for column in cls.columns.values()) else LOOKED_AT
    rows = [row_of(record, read, task, others) for record in table.records[:count] if record.problem is None]
    disabled, logger.disabled = logger.disabled, True  # what a wrong guess has to say interests nobody
    try:
        good = [row for row in rows if task.check(row) is None]
        if not good or len(good) < GOOD * len(rows):
            return False
        if task.label is not None and count == LOOKED_AT:
            task.fit(good)
    except DeltatuneError:
        return False
    finally:
        logger.disabled = disabled
    return True
