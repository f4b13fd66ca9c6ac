"""Line: what one check saw, whether that is well, and what would mend it."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

Status = Literal["pass", "warn", "fail", "skip"]


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a rehearsal."""

    name: str
    status: Status
    seen: str
    fix: str = ""
    """What would help; empty where nothing needs to."""
    details: Mapping[str, Any] = field(default_factory=dict)
    """Numbers and places behind what was seen, plain values ready for JSON."""
    seconds: float = 0.0

    def as_json(self) -> dict[str, Any]:
        """All of it."""
        return {
            "name": self.name,
            "status": self.status,
            "seen": self.seen,
            "fix": self.fix,
            "details": dict(self.details),
            "seconds": round(self.seconds, 2),
        }

    def accepted(self) -> "Line":
        """The same as a warning: the user knows of it."""
        return replace(self, status="warn") if self.status == "fail" else self


def passed(name: str, seen: str, **details: Any) -> Line:
    """Nothing to mend."""
    return Line(name, "pass", seen, details=details)


def warned(name: str, seen: str, fix: str, **details: Any) -> Line:
    """A training can be started, but somebody should look."""
    return Line(name, "warn", seen, fix, details)


def failed(name: str, seen: str, fix: str, **details: Any) -> Line:
    """A training would be wasted."""
    return Line(name, "fail", seen, fix, details)


def left_out(name: str, why: str) -> Line:
    """There is nothing here to check, and why."""
    return Line(name, "skip", why)


def judged(name: str, share: float, limits: tuple[float, float], seen: str, fix: str, **details: Any) -> Line:
    """Passes up to the first limit, fails above the second.

    >>> judged("a", 0.2, (0.1, 0.5), "seen", "fix").status
    'warn'
    """
    if share <= limits[0]:
        return Line(name, "pass", seen, details=details)
    return (failed if share > limits[1] else warned)(name, seen, fix, **details)
