"""Live: a comparison while it runs, as a table on a terminal and as lines elsewhere; on stderr."""

import statistics
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

from rich.console import Console
from rich.live import Live
from rich.table import Table

from deltatune.comparison.study import Contender, Study

Show = Callable[[Study, str], None]


class Watching:
    """Shows every change of a study."""

    def __init__(self, *, quiet: bool) -> None:
        self.quiet = quiet
        self.live: Live | None = None
        if not quiet and sys.stderr.isatty():
            self.live = Live(console=Console(stderr=True), refresh_per_second=2, transient=True)

    def shown(self) -> AbstractContextManager[object]:
        """While the study runs."""
        return self.live if self.live is not None else nullcontext()

    def __call__(self, study: Study, what: str) -> None:
        """The table as it is now, with what is going on."""
        if self.live is not None:
            self.live.update(_table(study, what))
        elif not self.quiet:
            budget = "" if study.clock.budget is None else f" of {study.clock.budget:.0f}"
            print(f"[{study.clock.spent:.0f}{budget} s] {what}", file=sys.stderr, flush=True)  # noqa: T201


def _table(study: Study, what: str) -> Table:
    left = "" if study.clock.budget is None else f", {study.clock.left:.0f} s of the budget left"
    shown = Table(title="comparison", caption=f"{what}\n{study.clock.spent:.0f} s{left}", caption_justify="left")
    for name in ("method", "trials", "rate", f"validation {study.metric}", "seeds"):
        shown.add_column(name)
    for one in study.contenders:
        shown.add_row(*_cells(study, one))
    return shown


def _cells(study: Study, one: Contender) -> tuple[str, ...]:
    name = one.entry.name
    if one.refused is not None:
        return name, "refused", "", "", ""
    values = [outcome.value for outcome in one.seeds.values() if outcome.value is not None]
    trials = [study.sign * tried.score for tried in one.tried]
    best = statistics.mean(values) if values else study.sign * max((study.sign * v for v in trials), default=0.0)
    shown = f"{best:.4f}" if values or trials else ""
    return name, str(len(trials)), f"{one.choice.rate:g}", shown, f"{len(values)} of {len(study.seeds)}"
