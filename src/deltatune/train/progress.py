"""Progress: a bar on a terminal, a line per log elsewhere."""

import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from deltatune.train.stopping import Best

if TYPE_CHECKING:
    from deltatune.train.loop import State


class Progress:
    """Shows step, loss, metric, tokens per second and time left, on stderr."""

    def __init__(self, total: int, start: int, *, quiet: bool) -> None:
        self.total = total
        self.quiet = quiet
        self.metric = ""
        self.console = Console(stderr=True)
        self.bar: Bar | None = None
        if not quiet and sys.stderr.isatty():
            columns = (TextColumn("[bold]train"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[text]}"),
                       TimeRemainingColumn())
            self.bar = Bar(*columns, console=self.console, transient=True)
            self.task = self.bar.add_task("train", total=total, completed=start, text="")

    def __enter__(self) -> "Progress":
        if self.bar is not None:
            self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.bar is not None:
            self.bar.stop()

    def log(self, step: int, line: Mapping[str, Any], state: "State") -> None:
        """Shows a line of the log."""
        speed = state.tokens / state.seconds if state.seconds else 0.0
        text = f"loss {line['loss']:.4f}  {self.metric}  {speed:,.0f} tokens/s"
        if self.bar is not None:
            self.bar.update(self.task, completed=step, text=text)
        elif not self.quiet:
            left = state.seconds / step * (self.total - step)
            self._print(f"step {step}/{self.total}  {text}  {left:.0f} s left")

    def evaluated(self, metrics: Mapping[str, Any], best: Best) -> None:
        """Shows an evaluation."""
        mark = "best so far" if best.waited == 0 else f"best {best.value:.4f} at step {best.step}"
        self.metric = f"{best.metric} {metrics[best.metric]:.4f}"
        if not self.quiet:
            self._print(f"validation {self.metric} ({mark})")

    def _print(self, text: str) -> None:
        if self.bar is not None:
            self.bar.console.print(text, highlight=False)
        else:
            print(text, file=sys.stderr, flush=True)  # noqa: T201, this is the terminal
