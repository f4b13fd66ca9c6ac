"""Kept rows: what was read, what of it is used, which classes there are, and what stands on both sides of a split."""

from collections import Counter
from collections.abc import Iterator
from typing import Any

from deltatune.core.labels import number
from deltatune.core.task import Row, Task
from deltatune.data.check import summary
from deltatune.data.load import Splits
from deltatune.rehearsal.line import Line, failed, judged, passed, warned
from deltatune.rehearsal.some_rows import place_of

LISTED = 20
"""Places in the details of a line."""
FEW = 10
"""Training rows of a class, below which little can be learned of it."""
LOPSIDED = 0.95
"""Share of the largest class, from which on accuracy says little."""
NEARLY = (0.01, 0.1)
"""Shares of the held-out rows that nearly repeat a training row."""
CONTRADICTING = (0.01, 0.2)
"""Shares of the rows whose input has another answer elsewhere."""


def rows_line(splits: Splits) -> Line:
    """How many rows there are, and which were rejected."""
    counts = {name: len(rows) for name, rows in splits.parts.items()}
    seen = ", ".join(f"{name} {count:,}" for name, count in counts.items())
    rejected = splits.rejected
    if rejected:
        seen += f"; {summary(rejected, sum(file.read for file in splits.accounts.files.values()))}"
    listed = [row.as_json() for row in rejected[:LISTED]]
    return passed("rows", seen, rows=counts, rejected=len(rejected), first_rejected=listed)


def splits_line(splits: Splits) -> Line:
    """Held-out rows that a training row nearly is: exact repeats have stopped the reading."""
    held_out = len(splits.validation) + len(splits.test)
    share = len(splits.near) / max(1, held_out)
    if not splits.near:
        return passed("splits", f"none of {held_out:,} held-out rows nearly repeats a training row")
    seen = f"{len(splits.near):,} of {held_out:,} held-out rows nearly repeat a training row: {splits.near[0]}"
    fix = "take them out of validation and test, or keep what belongs together in one part (data.group_column)"
    return judged("splits", share, NEARLY, seen, fix, near_duplicates=splits.near[:LISTED])


def answers_lines(splits: Splits) -> Iterator[Line]:
    """Classes or numbers of the rows, and inputs with several answers."""
    task = splits.task
    if task.class_of(splits.train[0]) is not None:
        yield _classes_line(splits)
        yield _contradictions_line(splits)
    elif task.predicts == "values" and task.label is not None:
        yield _numbers_line(splits)


def _classes_line(splits: Splits) -> Line:
    of_part = {name: Counter(map(splits.task.class_of, rows)) for name, rows in splits.parts.items()}
    train, rows = of_part["train"], len(splits.train)
    common, most = train.most_common(1)[0]
    rarest, fewest = train.most_common()[-1]
    details: dict[str, Any] = {"classes": {name: dict(counts) for name, counts in of_part.items()}}
    seen = f"{len(train)} classes, from {most:,} ({common!r}) to {fewest:,} ({rarest!r}) training rows"
    missing = [f"{name} has no {label!r}" for name in ("validation", "test") for label in train.keys() - of_part[name]]
    if most > LOPSIDED * rows:
        fix = "judge by training.metric_for_best_model: macro_f1 or its like, or set task.class_weights: balanced"
        return warned("classes", f"{seen}: always saying {common!r} is right in {most / rows:.1%}", fix, **details)
    if fewest < FEW:
        fix = f"collect more rows of {rarest!r}, or join it with another class"
        return warned("classes", seen, fix, **details)
    if missing:
        return warned("classes", f"{seen}; {', '.join(missing)}", "make these parts larger", **details)
    return passed("classes", seen, **details)


def _contradictions_line(splits: Splits) -> Line:
    """Rows of the same input with another class, those that were rejected for it and those that tasks keep."""
    rejected = [row for row in splits.rejected if row.reason.endswith("another label")]
    rows = [row for part in splits.parts.values() for row in part]
    kept = list(_contradicting(rows, splits.task))
    count, total = len(rejected) + len(kept), len(rows) + len(rejected)
    if not count:
        return passed("contradictions", "no input has two answers")
    places = [f"{row.file}:{row.line}" for row in rejected] + [place_of(row, splits) for row in kept]
    seen = f"{count:,} of {total:,} rows have an input that has another answer elsewhere: {', '.join(places[:3])}"
    fix = "decide on one answer for each input, or add the column that tells them apart"
    return judged("contradictions", count / total, CONTRADICTING, seen, fix, rows=places[:LISTED])


def _contradicting(rows: list[Row], task: Task) -> Iterator[Row]:
    """Rows that an answer by input alone must get wrong at best: those beside the commonest answer."""
    of_input: dict[Any, list[Row]] = {}
    for row in rows:
        of_input.setdefault(task.identity(row), []).append(row)
    for same in of_input.values():
        common = Counter(map(task.class_of, same)).most_common(1)[0][0]
        yield from (row for row in same if task.class_of(row) != common)


def _numbers_line(splits: Splits) -> Line:
    values = sorted(v for row in splits.train if (v := number(row.get(splits.task.label or ""))) is not None)
    if not values:
        return passed("answers", "several numbers a row")
    low, middle, high = values[0], values[len(values) // 2], values[-1]
    seen = f"numbers from {low:g} to {high:g}, half below {middle:g}"
    if low == high:
        return failed("answers", f"every training row has the number {low:g}", "is it the right column?")
    return passed("answers", seen, smallest=low, median=middle, largest=high)
