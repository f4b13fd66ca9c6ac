"""Load: from the data settings to checked rows in three splits, and a task that knows its labels."""

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deltatune.core.config import DataSettings
from deltatune.core.errors import DataError
from deltatune.core.task import TASK, Row, Task
from deltatune.data.check import Checked, Placed, Rejected, check, gate, overlap
from deltatune.data.columns import match
from deltatune.data.read import Table, read
from deltatune.data.split import sample, split
from deltatune.data.tasks import check_task, column_of, found_in, name_of

logger = logging.getLogger("deltatune")


@dataclass(frozen=True, slots=True)
class Splits:
    """Checked rows, and the task fitted to the training rows."""

    task: Task
    train: list[Row]
    validation: list[Row]
    test: list[Row]
    rejected: list[Rejected]
    fingerprint: str
    """sha256 over all rows."""


def load(data: DataSettings, task: Task, folder: Path) -> Splits:
    """Reads, checks and splits; raises `DataError` with file, line and what would work."""
    sources = {"train": data.train, "validation": data.validation, "test": data.test}
    checked = {name: _checked(source, data, task, folder) for name, source in sources.items() if source is not None}
    places = {name: found.kept for name, found in checked.items()} | _made(data, task, checked)
    places["train"] = sample(places["train"], data.max_rows, data.split_seed) if data.max_rows else places["train"]
    rows = [place.row for place in places["train"]]
    fitted = task.fit(rows)
    if data.task_column is not None:
        fitted = fitted.model_copy(update={"many": found_in(rows, data.task_column)})
    rejected = [row for found in checked.values() for row in found.rejected]
    for name, found in places.items():
        again = Checked(found, []).then(fitted)
        if again.rejected:
            gate(again, data.max_rejected)
        places[name], rejected = again.kept, rejected + again.rejected
    _check_overlap(places, fitted, data)
    parts = {name: [place.row for place in found] for name, found in places.items()}
    return Splits(fitted, parts["train"], parts["validation"], parts["test"], rejected, _fingerprint(parts))


def rows_of(table: Table, task: Task, columns: Mapping[str, str], *, labelled: bool) -> list[Placed | Rejected]:
    """Every row of a table for a fitted task, good or rejected; unlike training rows they may repeat."""
    names = _columns(table, task, columns, task.many.column if task.many else None, labelled)
    found: list[Placed | Rejected] = []
    for record in table.records:
        row = {word: record.values.get(name) for word, name in names.items() if labelled or word != task.label}
        wrong = record.problem or task.check(row) or check_task(row, task)
        good = wrong is None
        found.append(
            Placed(record.file, record.line, row)
            if good
            else Rejected(record.file, record.line, str(wrong), record.values)
        )
    return found


def _checked(source: str, data: DataSettings, task: Task, folder: Path) -> Checked:
    table = read(source, folder)
    found = check(table, _columns(table, task, data.columns, data.task_column), task)
    gate(found, data.max_rejected)
    return found


def _columns(
    table: Table, task: Task, given: Mapping[str, str], task_column: str | None, labelled: bool = True
) -> dict[str, str]:
    found = match(table, task.columns, given, labelled)
    return found if task_column is None else found | column_of(table, task_column)


def _made(data: DataSettings, task: Task, checked: Mapping[str, Checked]) -> dict[str, list[Placed]]:
    """Splits cut from the training rows where no file is given."""
    cut = {
        name: share
        for name, share in (("validation", data.validation_fraction), ("test", data.test_fraction))
        if name not in checked
    }
    if not cut:
        return {}
    rows = checked["train"].kept
    strata = [_stratum(place.row, task) for place in rows]
    parts = split(rows, strata, list(cut.values()), data.split_seed)
    made = dict(zip(("train", *cut), parts, strict=True))
    empty = [name for name, part in made.items() if not part]
    if empty:
        raise DataError(
            f"{len(rows)} rows are too few to split off {', '.join(empty)}",
            hint="add rows, or give files for validation and test",
        )
    return made


def _stratum(row: Row, task: Task) -> Any:
    """The label, each task's apart; a number that is split by deciles stays one."""
    label = row.get(task.label) if task.label else 0
    return label if TASK not in row or isinstance(label, float) else f"{name_of(row)}: {label!r}"


def _check_overlap(places: Mapping[str, Sequence[Placed]], task: Task, data: DataSettings) -> None:
    found = overlap(places["train"], {name: places[name] for name in ("validation", "test")}, task)
    if not found:
        return
    text = f"{len(found)} rows of validation or test stand in the training rows too: {'; '.join(found[:3])}"
    if not data.allow_overlap:
        raise DataError(text, hint="take them out, or accept it with data.allow_overlap: true")
    logger.warning("%s", text)


def _fingerprint(rows: Mapping[str, Any]) -> str:
    text = json.dumps(rows, sort_keys=True, default=str, ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", errors="surrogatepass")).hexdigest()
