"""Progress: a panel on a terminal, a line per log elsewhere; on stderr."""

import math
import sys
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.live import Live

from deltatune.train.live import PER_SECOND, View
from deltatune.train.plan import Position
from deltatune.train.stopping import Best


class Progress:
    """Shows step, loss, metric, learning rate, speed, memory and time left.

    `unit` is what the lengths of examples count (tokens, images, frames). Of `together` trainings that share their
    passes each has a share of the seconds: all of them take so many times as long.
    """

    def __init__(self, total: int, start: Position, *, unit: str = "tokens", quiet: bool, together: int = 1) -> None:
        self.quiet, self.together = quiet, together
        self.metrics: dict[str, str] = {}
        """The last evaluation of every training shown here."""
        self.view = View(total, unit, start.step)
        self.live: Live | None = None
        if not quiet and sys.stderr.isatty():
            console = Console(stderr=True)
            if not console.is_dumb_terminal:
                self.live = Live(self.view, console=console, refresh_per_second=PER_SECOND, transient=True)

    def __enter__(self) -> "Progress":
        if self.live is not None:
            self.live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.live is not None:
            self.live.stop()

    def step(self, number: int) -> None:
        """Shows how many steps are done."""
        self.view.step = number

    def log(self, line: Mapping[str, Any], label: str = "") -> None:
        """Shows a line of the log; `label` says whose it is where there are several."""
        view, step, seconds = self.view, line["step"], max(line["seconds"] * self.together, 1e-9)
        track = view.track(label)
        track.loss.add(line["loss"])
        track.rate, track.per_second = line["learning_rate"], line["tokens"] / seconds
        track.left = seconds / step * (view.total - step)
        if self.live is None and not self.quiet:
            speed = f"{track.per_second:,.0f} {view.unit}/s"
            parts = [label, f"loss {line['loss']:.4f}", self.metrics.get(label, ""), speed]
            text = "  ".join(part for part in parts if part)
            self._print(f"step {step}/{view.total}  {text}  {track.left:.0f} s left")

    def evaluated(self, metrics: Mapping[str, Any], best: Best, label: str = "") -> None:
        """Shows an evaluation."""
        track, value = self.view.track(label), metrics[best.metric]
        track.metric_name = best.metric
        track.best = "" if math.isnan(best.value) else f"best {best.value:.4f} at step {best.step}"
        track.metric.add(value)
        shown = self.metrics[label] = f"{best.metric} {value:.4f}"
        if not self.quiet:
            mark = "best so far" if best.waited == 0 else track.best
            self._print(f"{label} validation {shown} ({mark})".lstrip())

    def _print(self, text: str) -> None:
        if self.live is not None:
            self.live.console.print(text, highlight=False, markup=False)
        else:
            print(text, file=sys.stderr, flush=True)  # noqa: T201, this is the terminal
