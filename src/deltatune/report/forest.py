"""Forest: values with their intervals one below the other, the names above the lines so that a phone has room."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from deltatune.report.plots import INK, MUTED, WIDTH
from deltatune.report.verdict import Verdict, said

LINE = 0.44
"""Inches for one line."""


@dataclass(frozen=True, slots=True)
class Line:
    """A value, its interval where it has one, and single values that it comes from."""

    name: str
    value: float
    interval: tuple[float, float] | None = None
    dots: Sequence[float] = ()
    ours: bool = False


def forest(verdict: Verdict) -> tuple[Callable[[Any], None], float, float]:
    """What draws a verdict, and the width and height it needs."""
    own = Line("this adapter", verdict.value, verdict.interval, ours=True)
    rivals = [Line(rival.name, rival.value, rival.interval) for rival in verdict.rivals]
    return forest_of(
        [own, *sorted(rivals, key=lambda line: line.value, reverse=not verdict.lower)], said(verdict.metric)
    )


def forest_of(lines: Sequence[Line], metric: str) -> tuple[Callable[[Any], None], float, float]:
    """What draws lines from top to bottom, and the width and height it needs."""

    def draw(axes: Any) -> None:
        for place, line in enumerate(lines):
            colour = "C0" if line.ours else MUTED
            if line.interval is not None:
                axes.plot(line.interval, [place, place], color=colour, lw=3, alpha=0.55, solid_capstyle="round")
            axes.plot(line.dots, [place] * len(line.dots), ".", color=colour, alpha=0.6, ms=5)
            axes.plot([line.value], [place], "o", color=colour, ms=7)
            weight = "bold" if line.ours else "normal"
            axes.annotate(
                _short(line.name), (0, place - 0.34), xycoords=("axes fraction", "data"), fontsize=9, color=INK,
                va="center", fontweight=weight,
            )  # fmt: skip
        low, high = axes.get_xlim()
        axes.set(ylim=(len(lines) - 0.5, -0.75), xlim=(low, high), yticks=[], xlabel=metric)
        axes.grid(axis="y", visible=False)
        axes.spines["left"].set_visible(False)

    return draw, WIDTH, 0.75 + LINE * len(lines)


def _short(name: str) -> str:
    return name if len(name) <= 52 else f"{name[:50]} …"
