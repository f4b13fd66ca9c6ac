"""Load: from the data settings to checked rows in three splits, and a task that knows its labels."""

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

from deltatune.core.config import DataSettings
from deltatune.core.division import by_group
from deltatune.core.errors import DataError, SettingsError
from deltatune.core.labels import called
from deltatune.core.task import GROUP, TASK, Row, Task
from deltatune.data.accounts import Accounts, FileAccount, PartAccount
from deltatune.data.check import Checked, Placed, Rejected, check, gate, overlap, row_of
from deltatune.data.columns import Columns, match, rest
from deltatune.data.near import near
from deltatune.data.notes import Note, near_duplicates, unused
from deltatune.data.read import read
from deltatune.data.split import sample, split
from deltatune.data.table import Table
from deltatune.data.tasks import check_task, column_of, found_in, name_of

logger = logging.getLogger("deltatune")

PARTS = ("train", "validation", "test")


@dataclass(frozen=True, slots=True)
class Splits:
    """Checked rows, and the task fitted to the training rows."""

    task: Task
    train: list[Row]
    validation: list[Row]
    test: list[Row]
    rejected: list[Rejected]
    notes: list[Note]
    """Rows that are good and yet not used, not used whole, or near a training row."""
    accounts: Accounts
    """Where every row went."""
    fingerprint: str
    """sha256 over all rows."""
    places: Mapping[int, Placed]
    """id of a row -> where it stands."""

    @property
    def near(self) -> list[str]:
        """Rows of validation or test that nearly repeat a training row, as text."""
        found = (note for note in self.notes if note.what == "near-duplicate")
        return [f"{note.part} {note.file}:{note.line} {note.reason}" for note in found]

    @property
    def parts(self) -> dict[str, list[Row]]:
        """The rows of every part."""
        return {"train": self.train, "validation": self.validation, "test": self.test}


def load(data: DataSettings, task: Task, folder: Path) -> Splits:
    """Reads, checks and splits; raises `DataError` with file, line and what would work."""
    sources = _given(data)
    checked = {name: _checked(source, data, task, folder) for name, source in sources.items()}
    made = {name: _made(name, data, task, found.kept, _cuts(data, name)) for name, found in checked.items()}
    places = {name: next(each.parts[name] for each in made.values() if name in each.parts) for name in PARTS}
    counts = {name: len(part) for name, part in places.items()}
    places["train"] = sample(places["train"], data.max_rows, data.split_seed) if data.max_rows else places["train"]
    rows = [place.row for place in places["train"]]
    fitted = task.fit(rows)
    if data.task_column is not None:
        if any(TASK not in row for row in rows):
            raise SettingsError(
                f"{task.type} makes its rows of several, which may be of different tasks",
                hint="take data.task_column out",
            )
        fitted = fitted.model_copy(update={"many": found_in(rows, data.task_column)})
    again = {name: Checked(part, []).then(fitted) for name, part in places.items()}
    for found in again.values():
        gate(found, data.max_rejected)
    accounts = Accounts(
        {
            name: FileAccount(sources[name], found.read, len(found.rejected), len(made[name].unused), made[name].used)
            for name, found in checked.items()
        },
        {
            name: PartAccount(name, counts[name], counts[name] - found.read, len(found.rejected), len(found.kept))
            for name, found in again.items()
        },
    )
    places = {name: found.kept for name, found in again.items()}
    _check_overlap(places, fitted, data)
    _check_groups(places, data)
    twins = _near(places, fitted)
    parts = {name: [place.row for place in found] for name, found in places.items()}
    return Splits(
        fitted,
        **parts,
        rejected=[row for found in (*checked.values(), *again.values()) for row in found.rejected],
        notes=[*(note for each in made.values() for note in each.unused), *twins],
        accounts=accounts,
        fingerprint=_fingerprint(parts),
        places={id(place.row): place for found in places.values() for place in found},
    )


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
    if data.group_column is not None and (source == data.train or data.group_column in table.columns):
        columns |= column_of(table, data.group_column, GROUP, "data.group_column", "groups the rows")
    found = check(table, columns, task)
    gate(found, data.max_rejected)
    return found


def _columns(
    table: Table, task: Task, given: Columns, task_column: str | None, labelled: bool = True
) -> dict[str, str | list[str]]:
    found = match(table, task.columns, given, None if labelled else task.label, task.rest_names)
    if task_column is None:
        return found
    return found | column_of(table, task_column, TASK, "data.task_column", "names the task of each row")


@dataclass(frozen=True, slots=True)
class _Made:
    """What became of the good rows of a file."""

    parts: dict[str, list[Placed]]
    unused: list[Note]
    used: int


def _given(data: DataSettings) -> dict[str, str]:
    """The parts that have a file of their own."""
    files = {"train": data.train, "validation": data.validation, "test": data.test}
    return {name: file for name, file in files.items() if file is not None}


def _cuts(data: DataSettings, name: str) -> dict[str, float]:
    """The shares of a file that become parts of their own: of the training rows, where no file is given.

    Raises `SettingsError` where they leave nothing.
    """
    shares = {"validation": data.validation_fraction, "test": data.test_fraction}
    found = {part: share for part, share in shares.items() if name == "train" and part not in _given(data)}
    if sum(found.values()) >= 1:
        said = " and ".join(f"data.{part}_fraction {share:g}" for part, share in found.items())
        raise SettingsError(f"{said} leave no rows to train on", hint="their sum must be below 1; 0.1 each is usual")
    return found


def _made(name: str, data: DataSettings, task: Task, rows: list[Placed], cut: Mapping[str, float]) -> _Made:
    """The rows of the parts that a file is for, and those that no part has a place for."""
    found = _Made({}, [], 0)
    for places, composed in _divided(name, data, task, rows, cut):
        every = [row for part in composed.values() for row in part]
        reasons = task.unused([place.row for place in places], every)
        found = _Made(
            found.parts | {part: _placed(own, places) for part, own in composed.items()},
            found.unused + unused(name, places, reasons),
            found.used + task.consists_of(every),
        )
    empty = [part for part in cut if not found.parts[part]]
    if empty:
        raise DataError(
            f"{len(rows)} rows are too few to split off {', '.join(empty)}",
            hint="add rows, or give files for validation and test",
        )
    return found


def _divided(
    name: str, data: DataSettings, task: Task, rows: list[Placed], cut: Mapping[str, float]
) -> list[tuple[list[Placed], dict[str, list[Row]]]]:
    """Rows, and the parts that were composed of them: by group, as the task divides, or drawn with all labels."""
    if not cut:
        return [(rows, {name: _composed(rows, task)})]
    if data.group_column is not None:
        parts = by_group([place.row[GROUP] for place in rows], cut, data.split_seed)
        drawn = [[rows[index] for index in part] for part in parts.values()]
    else:
        divided = task.divide([place.row for place in rows], cut, data.split_seed)
        if divided is not None:
            return [(rows, divided)]
        drawn = split(rows, [_stratum(place.row, task) for place in rows], list(cut.values()), data.split_seed)
    return [(part, {own: _composed(part, task)}) for own, part in zip(("train", *cut), drawn, strict=True)]


def _composed(places: list[Placed], task: Task) -> list[Row]:
    return task.compose([place.row for place in places]) if places else []


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


def _check_groups(places: Mapping[str, Sequence[Placed]], data: DataSettings) -> None:
    """Raises `DataError` where a group stands in two parts, as it can where they have files of their own."""
    groups = {part: {called(p.row[GROUP]) for p in found if GROUP in p.row} for part, found in places.items()}
    for one, other in combinations(PARTS, 2):
        both = sorted(groups[one] & groups[other])
        if both:
            named = f"({data.group_column}): {', '.join(both[:3])}"
            text = f"{len(both):,} groups of {other} stand in {one} too {named}"
            if not data.allow_overlap:
                raise DataError(text, hint="take them out, or accept it with data.allow_overlap: true")
            logger.warning("%s", text)


def _near(places: Mapping[str, Sequence[Placed]], task: Task) -> list[Note]:
    """What nearly repeats a training row, said once and kept in the results."""
    found = near_duplicates(near(places["train"], {name: places[name] for name in PARTS[1:]}, task), task)
    if found:
        first = f"{found[0].file}:{found[0].line} {found[0].reason}"
        logger.warning("%d rows of validation or test nearly repeat a training row: %s", len(found), first)
    return found


def content_hash(rows: Sequence[Row], task: Task) -> str:
    """sha256 (hex) over rows, wherever their files lie now: of a path it is the last name that counts."""
    paths = [word for word, column in task.columns.items() if column.path]
    if paths:
        rows = [
            {**row, **{word: Path(row[word]).name for word in paths if isinstance(row.get(word), str)}} for row in rows
        ]
    return _fingerprint(rows)


def _fingerprint(rows: Any) -> str:
    text = json.dumps(rows, sort_keys=True, default=str, ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", errors="surrogatepass")).hexdigest()
