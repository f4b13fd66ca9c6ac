"""Notes: rows that are good and yet not used, not used whole, or nearly there twice; `noted.jsonl` lists them all."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from deltatune.core.task import Example, Task
from deltatune.data.check import Placed

Kind = Literal["unused", "truncated", "near-duplicate"]


@dataclass(frozen=True, slots=True)
class Note:
    """What is to be said of one row."""

    what: Kind
    part: str
    """Of the row; for an unused one that of its file."""
    file: str
    line: int
    """0 for a row that the task composed of several: the reason names it."""
    reason: str

    def as_json(self) -> dict[str, Any]:
        """One line of noted.jsonl."""
        return asdict(self)


def unused(part: str, places: Sequence[Placed], reasons: Mapping[int, str]) -> list[Note]:
    """Rows of a file that the task has no place for, by their number."""
    return [Note("unused", part, places[n].file, places[n].line, reason) for n, reason in sorted(reasons.items())]


def truncated(part: str, places: Sequence[Placed], examples: Sequence[Example], task: Task) -> list[Note]:
    """Rows of which the model does not read all."""
    found = ((place, task.cut(example)) for place, example in zip(places, examples, strict=True))
    return [
        Note("truncated", part, place.file, place.line, f"{_called(place, task)}{reason}")
        for place, reason in found
        if reason is not None
    ]


def near_duplicates(pairs: Iterable[tuple[str, Placed, Placed]], task: Task) -> list[Note]:
    """Rows of validation or test with the training row that they nearly repeat."""
    found = []
    for part, a, b in pairs:
        reason = f"{_called(a, task)}~ train {b.file}:{b.line} {_called(b, task)}".strip()
        found.append(Note("near-duplicate", part, a.file, a.line, reason))
    return found


def _called(place: Placed, task: Task) -> str:
    """What a composed row is called, and a blank."""
    return "" if place.line else f"{task.called(place.row)} "
