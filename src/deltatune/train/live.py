"""Live: what a terminal shows of trainings: one panel that stays in its place, as wide as there is room.

What is shown is kept as numbers; the panel is made from them four times a second at most, whatever the steps do.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from rich.console import Console, ConsoleOptions, RenderResult
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from deltatune.core.amounts import duration, size
from deltatune.train.memory import memory_bytes, peak_memory_bytes

PER_SECOND = 4
"""How often the panel is made anew."""
BARS, ASCII_BARS = "▁▂▃▄▅▆▇█", "_.-=+*#@"
MOST = 2000
"""Values that are kept of a curve; of more every second one is dropped."""
WIDE, WIDEST = 56, 100
"""Columns from which on there is room for curves, and the most that are used."""


@dataclass(slots=True)
class Curve:
    """A number over time."""

    values: list[float] = field(default_factory=list)

    def add(self, value: float) -> None:
        """The next value."""
        self.values.append(value)
        if len(self.values) > MOST:
            self.values = self.values[1::2]

    @property
    def last(self) -> str:
        """The newest value, empty before the first one."""
        return f"{self.values[-1]:.4f}" if self.values else ""


@dataclass(slots=True)
class Track:
    """One training as it is shown."""

    label: str = ""
    loss: Curve = field(default_factory=Curve)
    metric: Curve = field(default_factory=Curve)
    metric_name: str = ""
    best: str = ""
    rate: float | None = None
    per_second: float | None = None
    """Units of the task."""
    left: float | None = None
    """Seconds."""


@dataclass(slots=True)
class View:
    """Everything on the screen; rich asks it for the panel."""

    total: int
    unit: str
    step: int = 0
    tracks: dict[str, Track] = field(default_factory=dict)

    def track(self, label: str) -> Track:
        """The training of a label, made when it is first named."""
        return self.tracks.setdefault(label, Track(label))

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        width = min(options.max_width, WIDEST)
        bars = BARS if options.encoding.startswith("utf") else ASCII_BARS
        rows = Table.grid(padding=(0, 1), expand=True)
        rows.add_row(self._progress(width))
        for track in self.tracks.values():
            rows.add_row(_curves(track, width, bars))
        facts = self._facts()
        for line in [facts] if width >= WIDE else [facts[:-1], facts[-1:]]:
            rows.add_row(Text("  ".join(line), style="dim", overflow="ellipsis", no_wrap=True))
        yield Panel(rows, title="training", title_align="left", width=width, border_style="dim", padding=(0, 1))

    def _progress(self, width: int) -> Table:
        left = [track.left for track in self.tracks.values() if track.left is not None]
        row = Table.grid(padding=(0, 2), expand=True)
        row.add_column(ratio=1)
        row.add_column(justify="right", no_wrap=True)
        text = f"{self.step}/{self.total}" + (f"  {duration(max(left))} left" if left else "")
        row.add_row(ProgressBar(total=max(1, self.total), completed=self.step), text)
        return row

    def _facts(self) -> list[str]:
        tracks = list(self.tracks.values())
        speed = sum(track.per_second or 0.0 for track in tracks)
        rates = [track.rate for track in tracks if track.rate is not None]
        facts = [f"rate {rates[-1]:.2g}"] if rates and len(tracks) == 1 else []
        facts += [f"{speed:,.0f} {self.unit}/s"] if speed else []
        now = memory_bytes()
        return [*facts, f"memory {size(now)}, peak {size(max(now, peak_memory_bytes()))}"]


def _curves(track: Track, width: int, bars: str) -> Table:
    """Loss and metric of a training with their curves, where there is room for these."""
    rows = Table.grid(padding=(0, 2))
    room = max(0, min(40, width - WIDE)) if width >= WIDE else 0
    if track.label:
        rows.add_row(Text(track.label, style="bold", overflow="ellipsis"))
    for name, curve, note in (("loss", track.loss, ""), (track.metric_name, track.metric, track.best)):
        if curve.values:
            shown = [sparkline(curve.values, room, bars)] if room else []
            rows.add_row(
                Text(name, overflow="ellipsis"), *shown, Text(curve.last, style="bold"), Text(note, style="dim")
            )
    return rows


def sparkline(values: Sequence[float], width: int, bars: str = BARS) -> str:
    """A curve in one line of at most `width` letters, each the mean of its stretch, from the least to the most.

    >>> sparkline([1, 2, 3, 4], 4), sparkline([5, 5], 8), sparkline([0, 0, 8, 8], 2), sparkline([1.0, float("nan")], 4)
    ('▁▃▆█', '▁▁', '▁█', '▁ ')
    """
    count = min(width, len(values))
    edges = [round(place * len(values) / count) for place in range(count + 1)] if count else []
    means = [sum(values[a:b]) / (b - a) for a, b in pairwise(edges)]
    known = [mean for mean in means if abs(mean) < float("inf")]
    if not known:
        return " " * count
    low, span = min(known) / 2, max(known) / 2 - min(known) / 2  # halves: no difference of floats is infinite
    top = len(bars) - 1
    return "".join(
        bars[round(top * ((mean / 2 - low) / span)) if span else 0] if abs(mean) < float("inf") else " "
        for mean in means
    )
