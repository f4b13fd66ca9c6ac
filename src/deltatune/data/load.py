"""Load: from the data settings to checked rows in three splits, and a task that knows its labels."""

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deltatune.core.config import DataSettings
from deltatune.core.division import by_group
from deltatune.core.errors import DataError
from deltatune.core.task import GROUP, TASK, Row, Task
from deltatune.data.check import Checked, Placed, Rejected, check, gate, overlap, row_of
from deltatune.data.columns import Columns, match, rest
from deltatune.data.near import near
from deltatune.data.read import read
from deltatune.data.split import sample, split
from deltatune.data.table import Table
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
    near: list[str]
    """Rows of validation or test that nearly repeat a training row, as text."""
    fingerprint: str
    """sha256 over all rows."""
    places: Mapping[int, Placed]
    """id of a row -> where it stands."""

    @property
    def parts(self) -> dict[str, list[Row]]:
        """The rows of every part."""
        return {"train": self.train, "validation": self.validation, "test": self.test}


def load(data: DataSettings, task: Task, folder: Path) -> Splits:
    """Reads, checks and splits; raises `DataError` with file, line and what would work."""
    sources = {"train": data.train, "validation": data.validation, "test": data.test}
    checked = {name: _checked(source, data, task, folder) for name, source in sources.items() if source is not None}
    places = _parts(data, task, checked)
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
    twins = _near(places, fitted)
    parts = {name: [place.row for place in found] for name, found in places.items()}
    known = {id(place.row): place for found in places.values() for place in found}
    return Splits(fitted, **parts, rejected=rejected, near=twins, fingerprint=_fingerprint(parts), places=known)


def rows_of(table: Table, task: Task, columns: Columns, *, labelled: bool) -> list[Placed | Rejected]:
    """Every row of a table for a fitted task, good or rejected; unlike training rows they may repeat."""
    names = _columns(table, task, columns, task.many.column if task.many else None, labelled)
    others = rest(table, names, task)
    found: list[Placed | Rejected] = []
    for record in table.records:
        row: Row = row_of(record, names, task, others)
        row = row if labelled else task.asked(row)
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
    columns = _columns(table, task, data.columns, data.task_column)
    if data.group_column is not None and source == data.train:
        columns |= column_of(table, data.group_column, GROUP, "data.group_column", "groups the rows")
    found = check(table, columns, task)
    gate(found, data.max_rejected)
    return found


def _columns(
    table: Table, task: Task, given: Columns, task_column: str | None, labelled: bool = True
) -> dict[str, str | list[str]]:
    found = match(table, task.columns, given, None if labelled else task.label)
    if task_column is None:
        return found
    return found | column_of(table, task_column, TASK, "data.task_column", "names the task of each row")


def _parts(data: DataSettings, task: Task, checked: Mapping[str, Checked]) -> dict[str, list[Placed]]:
    """The rows of every part: of its own file, or cut from the training rows where no file is given."""
    cut = {
        name: share
        for name, share in (("validation", data.validation_fraction), ("test", data.test_fraction))
        if name not in checked
    }
    given = {name: _composed(found.kept, task) for name, found in checked.items() if not cut or name != "train"}
    if not cut:
        return given
    made = _cut(data, task, checked["train"].kept, cut)
    empty = [name for name, part in made.items() if not part]
    if empty:
        raise DataError(
            f"{len(checked['train'].kept)} rows are too few to split off {', '.join(empty)}",
            hint="add rows, or give files for validation and test",
        )
    return given | made


def _cut(data: DataSettings, task: Task, rows: list[Placed], cut: Mapping[str, float]) -> dict[str, list[Placed]]:
    """Parts of the training file: by group, as the task divides, or drawn with every label at its share."""
    if data.group_column is not None:
        parts = by_group([place.row[GROUP] for place in rows], cut, data.split_seed)
        return {name: _composed([rows[index] for index in part], task) for name, part in parts.items()}
    divided = task.divide([place.row for place in rows], cut, data.split_seed)
    if divided is not None:
        return {name: _placed(part, rows) for name, part in divided.items()}
    strata = [_stratum(place.row, task) for place in rows]
    drawn = split(rows, strata, list(cut.values()), data.split_seed)
    return {name: _composed(part, task) for name, part in zip(("train", *cut), drawn, strict=True)}


def _composed(places: list[Placed], task: Task) -> list[Placed]:
    return _placed(task.compose([place.row for place in places]), places)


def _placed(rows: Sequence[Row], places: Sequence[Placed]) -> list[Placed]:
    """Rows with the places they came from; line 0 of the file for those that are new."""
    known = {id(place.row): place for place in places}
    return [known.get(id(row)) or Placed(places[0].file, 0, row) for row in rows]


def _stratum(row: Row, task: Task) -> Any:
    """The label, each task's apart; a number that is split by deciles stays one."""
    label = row.get(task.label) if task.label else 0
    return label if TASK not in row or isinstance(label, float) else f"{name_of(row)}: {label!r}"


def _check_overlap(places: Mapping[str, Sequence[Placed]], task: Task, data: DataSettings) -> None:
    found = overlap(places["train"], {name: places[name] for name in ("validation", "test")}, task)
    if not found:
        return
    text = f"{len(found)} rows of validation or test stand in the training rows too: {'; '.join(found[:3])}"
    if not (data.allow_overlap or task.repeats):
        raise DataError(text, hint="take them out, or accept it with data.allow_overlap: true")
    logger.warning("%s", text)


def _near(places: Mapping[str, Sequence[Placed]], task: Task) -> list[str]:
    """What nearly repeats a training row, said once and kept in the results."""
    pairs = near(places["train"], {name: places[name] for name in ("validation", "test")}, task)
    found = [f"{name} {a.file}:{a.line} ~ train {b.file}:{b.line}" for name, a, b in pairs]
    if found:
        logger.warning("%d rows of validation or test nearly repeat a training row: %s", len(found), found[0])
    return found


def _fingerprint(rows: Mapping[str, Any]) -> str:
    text = json.dumps(rows, sort_keys=True, default=str, ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", errors="surrogatepass")).hexdigest()
