"""Progress: a bar on a terminal, a line per log elsewhere; on stderr."""

import sys
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from deltatune.train.plan import Position
from deltatune.train.stopping import Best


class Progress:
    """Shows step, loss, metric, tokens (patches, frames: what lengths are counted in) per second and time left."""

    def __init__(self, total: int, start: Position, *, quiet: bool) -> None:
        self.total = total
        self.quiet = quiet
        self.metrics: dict[str, str] = {}
        """The last evaluation of every training shown here."""
        self.bar: Bar | None = None
        if not quiet and sys.stderr.isatty():
            columns = (
                TextColumn("[bold]train"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[text]}"),
                TimeRemainingColumn(),
            )
            self.bar = Bar(*columns, console=Console(stderr=True), transient=True)
            self.task = self.bar.add_task("train", total=total, completed=start.step, text="")

    def __enter__(self) -> "Progress":
        if self.bar is not None:
            self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.bar is not None:
            self.bar.stop()

    def step(self, number: int) -> None:
        """Shows how many steps are done."""
        if self.bar is not None:
            self.bar.update(self.task, completed=number)

    def log(self, line: Mapping[str, Any], label: str = "") -> None:
        """Shows a line of the log; `label` says whose it is where there are several."""
        step, tokens, seconds = line["step"], line["tokens"], max(line["seconds"], 1e-9)
        parts = [label, f"loss {line['loss']:.4f}", self.metrics.get(label, ""), f"{tokens / seconds:,.0f} tokens/s"]
        text = "  ".join(part for part in parts if part)
        if self.bar is not None:
            self.bar.update(self.task, text=text)
        elif not self.quiet:
            self._print(f"step {step}/{self.total}  {text}  {seconds / step * (self.total - step):.0f} s left")

    def evaluated(self, metrics: Mapping[str, Any], best: Best, label: str = "") -> None:
        """Shows an evaluation."""
        shown = self.metrics[label] = f"{best.metric} {metrics[best.metric]:.4f}"
        if not self.quiet:
            mark = "best so far" if best.waited == 0 else f"best {best.value:.4f} at step {best.step}"
            self._print(f"{label} validation {shown} ({mark})".lstrip())

    def _print(self, text: str) -> None:
        if self.bar is not None:
            self.bar.console.print(text, highlight=False)
        else:
            print(text, file=sys.stderr, flush=True)  # noqa: T201, this is the terminal
