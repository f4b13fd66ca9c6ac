"""Ledger: what every trial of a comparison came to, one line each, so that a comparison can go on after a kill."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from deltatune.store import atomic
from deltatune.store.run import writing


@dataclass(frozen=True, slots=True)
class Outcome:
    """A finished trial or run."""

    name: str
    seconds: float
    """Of the whole trial: loading, steps, scoring."""
    value: float | None
    """The metric on the validation rows; None where it diverged."""
    error: str | None = None


class Ledger:
    """Outcomes by name, kept in `trials.jsonl`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.known: dict[str, Outcome] = {}
        text = path.read_text(encoding="utf-8") if path.is_file() else ""
        whole, newline, torn = text.rpartition("\n")
        for line in whole.splitlines():
            outcome = Outcome(**json.loads(line))
            self.known[outcome.name] = outcome
        if torn:  # of a killed process; that trial is looked at again
            atomic.write_text(path, whole + newline)

    @property
    def seconds(self) -> float:
        """Spent so far."""
        return sum(outcome.seconds for outcome in self.known.values())

    def add(self, outcome: Outcome) -> None:
        """Remembers an outcome and writes it."""
        self.known[outcome.name] = outcome
        with writing(str(self.path)), self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(outcome)) + "\n")
