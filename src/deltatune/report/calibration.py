"""Calibration: whether answers are right as often as the model is sure (Guo et al. 2017, arXiv:1706.04599)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from deltatune.report.judged import Judged

BINS = 10


@dataclass(frozen=True, slots=True)
class Bin:
    """Answers whose confidence lies within `low` and `high`."""

    low: float
    high: float
    rows: int
    confidence: float
    """Mean chance that the model gave its answers."""
    right: float
    """Share of them that is right."""


def bins(rows: Sequence[Judged]) -> list[Bin]:
    """Equal bins of confidence that hold answers; a merit of 1 is a right answer.

    >>> rows = [Judged("a.csv", n, {}, {}, merit, 0.95) for n, merit in enumerate([1.0, 1.0, 0.0, 1.0])]
    >>> [(found.low, found.rows, found.right) for found in bins(rows)]
    [(0.9, 4, 0.75)]
    """
    sure: list[list[tuple[float, bool]]] = [[] for _ in range(BINS)]
    for one in rows:
        if one.certainty is not None:
            sure[min(BINS - 1, int(one.certainty * BINS))].append((one.certainty, one.merit == 1))
    return [
        Bin(
            number / BINS,
            (number + 1) / BINS,
            len(own),
            sum(certainty for certainty, _ in own) / len(own),
            sum(right for _, right in own) / len(own),
        )
        for number, own in enumerate(sure)
        if own
    ]


def diagram(axes: Any, found: Sequence[Bin]) -> None:
    """The reliability diagram: share of right answers over confidence; areas of points are shares of the rows."""
    largest = max(own.rows for own in found)
    axes.plot([0, 1], [0, 1], color="0.6", lw=1, ls="--")
    axes.plot([own.confidence for own in found], [own.right for own in found], color="C0", lw=1)
    sizes = [20 + 160 * own.rows / largest for own in found]
    axes.scatter([own.confidence for own in found], [own.right for own in found], s=sizes, color="C0", zorder=3)
    axes.set(xlim=(0, 1.04), ylim=(-0.04, 1.04), xlabel="confidence of the model", ylabel="share of right answers")
