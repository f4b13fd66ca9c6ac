"""Judged: test rows by how good the answer was and how sure the model seemed; which of them to look at."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from deltatune.core.task import Row
from deltatune.report.record import RunRecord

MOST = 5000
"""Rows that are looked at, from the first on."""
SHOWN = 6
"""Rows in a list."""


@dataclass(frozen=True, slots=True)
class Judged:
    """A test row with its answer."""

    file: str
    line: int
    row: Row
    answer: Mapping[str, Any]
    merit: float
    certainty: float | None


def judged(record: RunRecord) -> list[Judged]:
    """The first rows with what the task says of their answers."""
    pairs = zip(record.answers[:MOST], record.rows[:MOST], strict=True)
    found = []
    for own, row in pairs:
        merit, certainty = record.task.merit(own["answer"], row), record.task.certainty(own["answer"])
        found.append(Judged(own["file"], own["line"], row, own["answer"], merit, certainty))
    return found


def most_wrong(rows: Sequence[Judged], perfect: float) -> list[Judged]:
    """The worst answers, of equally bad ones the surest first; none that is perfect."""
    wrong = [one for one in rows if one.merit < perfect]
    return sorted(wrong, key=lambda one: (one.merit, -(one.certainty or 0.0)))[:SHOWN]


def least_certain(rows: Sequence[Judged]) -> list[Judged]:
    """The answers that the model was least sure of."""
    known = [(one.certainty, one) for one in rows if one.certainty is not None]
    return [one for _, one in sorted(known, key=lambda pair: pair[0])[:SHOWN]]


def perfect(record: RunRecord, rows: Sequence[Judged]) -> float:
    """The merit of an answer with nothing wrong: no error, or all of a share."""
    errors = record.metric in record.task.lower_is_better or any(one.merit < 0 for one in rows)
    return 0.0 if errors else 1.0
