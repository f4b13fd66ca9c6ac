"""Leaks: a word, a pair of words, or a column that tells the answer by itself.

Such a feature is one of the answer's own (`label: good` at the end of the text, a column filled in afterwards). What
the model learns from it is of no use for rows that come without.

    precision   share of a class among the rows that have the feature
    recall      share of the rows of a class that have the feature
"""

from collections import Counter, defaultdict
from collections.abc import Hashable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from deltatune.core import suspects
from deltatune.core.labels import number
from deltatune.core.task import Row, Task
from deltatune.data.load import Splits
from deltatune.rehearsal.line import Line, failed, left_out, passed, warned
from deltatune.rehearsal.some_rows import drawn

MOST = 5_000
"""Training rows that are looked at."""
PRECISION = 0.98
NEARLY_ALL, MANY = 0.9, 0.5
"""Recall from which on a feature tells the class, and from which on it is named."""
LARGEST = 0.9
"""Share of a class among all rows, above which every common word would tell it."""
SAME = 0.999
"""Correlation of a column with the number to predict."""


class Teller(NamedTuple):
    """A feature that tells a class."""

    feature: Any
    label: str
    precision: float
    recall: float

    @property
    def shown(self) -> str:
        """The feature and what it tells, in words."""
        sure = f"right in {self.precision:.1%}, in {self.recall:.0%} of its rows"
        return f"{_words(self.feature)} tells {self.label!r} ({sure})"


def leak_line(splits: Splits) -> Line:
    """Whether one feature tells the answer of the training rows."""
    task, rows = splits.task, drawn(splits.train, MOST)
    fix = "take it out of the input: it will not be there when answers are wanted"
    columns = list(columns_that_tell(rows, task))
    if columns:
        seen = f"column {', '.join(map(repr, columns[:3]))} tells the answer by itself in all {len(rows):,} rows"
        return failed("leaks", seen, f"{fix}; is the column known before the answer is?", columns=columns)
    if task.class_of(rows[0]) is None:
        return left_out("leaks", "rows have no one class that a word could tell") if not task.rest else _clean(rows)
    found = tellers(rows, task)
    if not found:
        return _clean(rows)
    line = failed if found[0].recall >= NEARLY_ALL else warned
    listed = [teller.shown for teller in found[:10]]
    return line("leaks", "; ".join(listed[:2]), fix, features=listed)


def tellers(rows: Sequence[Row], task: Task) -> list[Teller]:
    """Features of the inputs that tell a class, the surest first."""
    labels = [str(task.class_of(row)) for row in rows]
    totals = Counter(labels)
    counts: dict[Hashable, Counter[str]] = defaultdict(Counter)
    for row, label in zip(rows, labels, strict=True):
        for feature in set(task.sketch(row)):
            counts[feature][label] += 1
    found = []
    for feature, own in counts.items():
        label, hits = own.most_common(1)[0]
        precision, recall = hits / own.total(), hits / totals[label]
        known = hits >= suspects.FEW and totals[label] <= LARGEST * len(rows)
        if known and precision >= PRECISION and recall >= MANY:
            found.append(Teller(feature, label, precision, recall))
    return sorted(found, key=lambda t: (-t.recall, -t.precision, isinstance(t.feature, tuple), repr(t.feature)))


def columns_that_tell(rows: Sequence[Row], task: Task) -> Iterator[str]:
    """Columns of a table whose words, or whose numbers, decide the class or are the number to predict."""
    if task.rest is None or task.label is None:
        return
    tables: list[Mapping[str, Any]] = [row[task.rest] for row in rows]
    labels = [task.class_of(row) for row in rows]
    for name in tables[0]:
        numbers = [number(table.get(name)) for table in tables]
        if labels[0] is None:
            if _follows(numbers, [number(row[task.label]) for row in rows]):
                yield name
            continue
        classes = [str(label) for label in labels]
        words = [None if table.get(name) is None else str(table[name]) for table in tables]
        if suspects.tells(words, classes) or (any(numbers) and suspects.separates(numbers, classes)):
            yield name


def _follows(numbers: Sequence[float | None], wanted: Sequence[float | None]) -> bool:
    pairs = np.array([(a, b) for a, b in zip(numbers, wanted, strict=True) if a is not None and b is not None])
    if len(pairs) < max(suspects.FEW, 0.5 * len(wanted)) or np.ptp(pairs, axis=0).min() == 0:
        return False
    return bool(abs(np.corrcoef(pairs.T)[0, 1]) > SAME)


def _clean(rows: Sequence[Row]) -> Line:
    return passed("leaks", f"nothing in the input tells the answer by itself in {len(rows):,} rows")


def _words(feature: Any) -> str:
    if isinstance(feature, tuple):
        return " ".join(repr(part) for part in feature)
    return repr(feature)
