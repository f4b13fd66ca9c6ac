"""Tables: what metrics hold by their shape: numbers, listings by class, a confusion matrix."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from deltatune.report.verdict import said
from deltatune.report.words import in_words

LARGEST = 12
"""Classes of a confusion matrix that is shown whole; of a larger one the pairs that are confused most."""
LONGEST = 60
"""Lines of a listing."""
ABOUT = ("rows", "interval", "loss", "name")
"""Words in metrics that are about them."""


@dataclass(frozen=True, slots=True)
class Listing:
    """A table with a title; `left_out` lines are not shown."""

    title: str
    columns: Sequence[str]
    lines: Sequence[Sequence[str]]
    left_out: int = 0


def numbers(results: Mapping[str, Any], main: str) -> Listing:
    """The metrics of the test rows beside those of the validation rows, of the beginning and of the baselines."""
    simple = {results["baseline"]["name"]: results["baseline"], **results["baselines"]}
    sources = {"test": results["test"], "validation": results["validation"], "before": results["before"], **simple}
    test = results["test"]
    names = [name for name, value in test.items() if isinstance(value, int | float) and name not in ABOUT]
    names = [main, *(name for name in names if name != main), *(["loss"] if test.get("loss") is not None else [])]
    lines = [[said(name), *(in_words(own.get(name)) or "-" for own in sources.values())] for name in names]
    return Listing("All metrics", ["metric", *sources], lines)


def listings(metrics: Mapping[str, Any]) -> list[Listing]:
    """Tables inside metrics: whatever is a list of mappings, and tasks by their names."""
    found = [
        _listing(said(name).capitalize(), value)
        for name, value in metrics.items()
        if isinstance(value, list) and value and all(isinstance(entry, Mapping) for entry in value)
    ]
    if isinstance(tasks := metrics.get("tasks"), Mapping):
        flat = [{"task": name, **_plain(own)} for name, own in tasks.items()]
        found.append(_listing("By task", flat))
    return found


def _plain(metrics: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in metrics.items() if isinstance(value, int | float)}


def _listing(title: str, entries: Sequence[Mapping[str, Any]]) -> Listing:
    columns = list(dict.fromkeys(name for entry in entries for name in entry))
    lines = [[in_words(entry.get(name)) or "-" for name in columns] for entry in entries[:LONGEST]]
    return Listing(title, [said(name) for name in columns], lines, max(0, len(entries) - LONGEST))


def accounts(results: Mapping[str, Any]) -> Listing | None:
    """Where the rows of every part went, where results say it."""
    if not (parts := results.get("accounts", {}).get("parts")):
        return None
    return _listing("Where every row went", [{"part": name, **_plain(own)} for name, own in parts.items()])


@dataclass(frozen=True, slots=True)
class Confusion:
    """Which classes were taken for which; of many classes the pairs alone."""

    labels: Sequence[str]
    counts: Sequence[Sequence[int]]
    """Rows: wanted, columns: answered; empty where there are too many classes."""
    pairs: Sequence[tuple[str, str, int]]
    """Wanted, answered, how often: the most frequent mistakes."""

    def tenths(self, row: int, column: int) -> int:
        """Share of a wanted class that was answered so, in tenths."""
        total = sum(self.counts[row])
        return round(10 * self.counts[row][column] / total) if total else 0


def confusion(metrics: Mapping[str, Any]) -> Confusion | None:
    """The confusion matrix in metrics, where there is one."""
    if not isinstance(own := metrics.get("confusion"), Mapping):
        return None
    labels, counts = own["labels"], own["counts"]
    wrong = [
        (labels[row], labels[column], count)
        for row, line in enumerate(counts)
        for column, count in enumerate(line)
        if row != column and count
    ]
    pairs = sorted(wrong, key=lambda pair: -pair[2])[:LARGEST]
    return Confusion(labels, counts if len(labels) <= LARGEST else (), pairs)
