"""Accounts: where every row went. What does not add up is an error, not a number.

of a file   read = rejected + unused + used
of a part   made = rejected + not drawn + kept

A row of a file is used when the rows of the parts consist of it: most tasks take rows as they are, some compose theirs
of several (a user's history, a window of a series). Unused ones are good rows that the task has no place for.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from deltatune.core.errors import DeltatuneError


@dataclass(frozen=True, slots=True)
class FileAccount:
    """The rows of one file."""

    file: str
    read: int
    rejected: int
    unused: int
    used: int

    def __post_init__(self) -> None:
        """Raises `DeltatuneError` when a row is lost or counted twice."""
        _check(self.file, "read", self.read, {"rejected": self.rejected, "unused": self.unused, "used": self.used})

    def as_json(self) -> dict[str, Any]:
        """`account` of an evaluation."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class PartAccount:
    """The rows of one part, as the task made them."""

    part: str
    made: int
    not_drawn: int
    """Left by `data.max_rows`."""
    rejected: int
    """By the fitted task (an unknown label) or once they were encoded."""
    kept: int

    def __post_init__(self) -> None:
        """Raises `DeltatuneError` when a row is lost or counted twice."""
        parts = {"rejected": self.rejected, "not drawn": self.not_drawn, "kept": self.kept}
        _check(self.part, "made", self.made, parts)


@dataclass(frozen=True, slots=True)
class Accounts:
    """The accounts of all files and parts of a run."""

    files: Mapping[str, FileAccount]
    """By the part whose file it is."""
    parts: Mapping[str, PartAccount]

    def after(self, kept: Mapping[str, int], rejected: Mapping[str, int]) -> "Accounts":
        """With more rows rejected from the parts, which keep so many now."""
        found = {
            name: replace(part, rejected=part.rejected + rejected[name], kept=kept[name])
            for name, part in self.parts.items()
        }
        return replace(self, parts=found)

    def drawn(self, kept: Mapping[str, int]) -> "Accounts":
        """With only so many rows drawn from those that the parts keep."""
        found = {
            name: replace(part, not_drawn=part.not_drawn + part.kept - kept[name], kept=kept[name])
            for name, part in self.parts.items()
        }
        return replace(self, parts=found)

    def as_json(self) -> dict[str, Any]:
        """`accounts` of results.json and of `deltatune check`."""
        parts = {name: {k: v for k, v in asdict(part).items() if k != "part"} for name, part in self.parts.items()}
        return {"files": {name: file.as_json() for name, file in self.files.items()}, "parts": parts}


def _check(whose: str, total: str, count: int, parts: Mapping[str, int]) -> None:
    if count != sum(parts.values()):
        counted = " + ".join(f"{number} {name}" for name, number in parts.items())
        raise DeltatuneError(
            f"the rows of {whose} do not add up: {count} {total}, {counted}", hint="please report this as a bug"
        )
