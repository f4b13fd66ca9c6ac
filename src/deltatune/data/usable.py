"""Usable: rows as the model reads them. What turns out only then to be of no use is rejected with its place too."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from deltatune.core.task import Example, Row, Task
from deltatune.data.check import Checked, Rejected, gate
from deltatune.data.load import Splits
from deltatune.data.notes import truncated
from deltatune.data.tasks import encode


def usable(splits: Splits, processor: Any, largest_share: float) -> tuple[Splits, dict[str, list[Example]]]:
    """The examples of every part, and the splits without the rows that have none.

    Raises `DataError` when more than a share of a part cannot be used.
    """
    examples: dict[str, list[Example]] = {}
    kept: dict[str, list[Row]] = {}
    rejected, notes = list(splits.rejected), list(splits.notes)
    counts: dict[str, int] = {}
    for name, rows in splits.parts.items():
        encoded, reasons = with_reasons(splits.task, rows, processor)
        places = [splits.places[id(row)] for row in rows]
        wrong = [
            Rejected(place.file, place.line, reason, place.row)
            for place, reason in zip(places, reasons, strict=True)
            if reason is not None
        ]
        good = [index for index, reason in enumerate(reasons) if reason is None]
        gate(Checked([places[index] for index in good], wrong), largest_share)
        kept[name], examples[name] = [rows[index] for index in good], [encoded[index] for index in good]
        rejected += wrong
        counts[name] = len(wrong)
        notes += truncated(name, [places[index] for index in good], examples[name], splits.task)
    train, validation, test = (kept[name] for name in splits.parts)
    return (
        replace(
            splits,
            train=train,
            validation=validation,
            test=test,
            rejected=rejected,
            notes=notes,
            accounts=splits.accounts.after({name: len(rows) for name, rows in kept.items()}, counts),
        ),
        examples,
    )


def with_reasons(task: Task, rows: Sequence[Row], processor: Any) -> tuple[list[Example], list[str | None]]:
    """An example per row, and why it cannot be used."""
    examples = encode(task, rows, processor) if rows else []
    return examples, [task.unusable(example) for example in examples]
