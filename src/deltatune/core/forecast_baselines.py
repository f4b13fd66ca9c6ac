"""Baselines of forecasting: a simple forecast, and quantiles from its own errors on the training windows.

naive              the last value; its errors have a mean of their own, so this is the drift too
naive, scaled      the same, with errors in units of each window's own spread
seasonal naive     the value a season ago
smoothing          l_t = a y_t + (1 - a) l_{t-1}, with the a of least error on the training windows
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from deltatune.core.forecast_scores import by_step, named
from deltatune.core.series import Transform, bridged, change, level, read, spread

RATES = (0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 0.9, 1.0)


@dataclass(frozen=True, slots=True)
class Past:
    """Windows side by side, as changes from their last values."""

    origins_N: Any
    context_NT: Any
    """Values behind, missing ones bridged."""
    spreads_N: Any

    @classmethod
    def of(cls, rows: Sequence[Mapping[str, Any]], transform: Transform, floor: float) -> "Past":
        """`floor` stands for the spread of a window without any."""
        values = np.array([row["context"] for row in rows], dtype=np.float64)
        spreads = np.array([spread(read(row, transform))[1] or floor for row in values])
        return cls(values[:, -1], np.array([bridged(row) for row in values]), spreads)


def answers(
    train: Sequence[Mapping[str, Any]],
    rows: Sequence[Mapping[str, Any]],
    transform: Transform,
    quantiles: Sequence[float],
    season: int,
    floor: float,
) -> dict[str, list[dict[str, Any]]]:
    """Answers of every baseline for the rows, by its name."""
    past, asked = Past.of(train, transform, floor), Past.of(rows, transform, floor)
    wanted = change(past.origins_N[:, None], np.array([row["future"] for row in train], dtype=np.float64), transform)
    horizon = wanted.shape[1]

    def smooth(rate: float) -> Callable[[Past], Any]:
        return lambda given: np.repeat(_smoothed(given, rate, transform)[:, None], horizon, 1)

    best = min(RATES, key=lambda rate: float(np.nanmean(np.abs(wanted - smooth(rate)(past)))))
    points: dict[str, Callable[[Past], Any]] = {
        "naive": lambda given: np.zeros((len(given.origins_N), horizon)),
        "naive, scaled": lambda given: np.zeros((len(given.origins_N), horizon)),
        "exponential smoothing": smooth(best),
    }
    if season > 1:
        points["seasonal naive"] = lambda given: _seasonal(given, season, horizon, transform)
    found = {}
    for name, point in points.items():
        unit, own = (
            (p.spreads_N[:, None] if name == "naive, scaled" else np.ones_like(p.origins_N)[:, None])
            for p in (past, asked)
        )
        around = by_step((wanted - point(past)) / unit, quantiles)
        changes = point(asked)[..., None] + own[..., None] * around
        levels = level(asked.origins_N[:, None, None], changes, transform)
        found[name] = [answered(one, quantiles) for one in levels]
    return found


def answered(levels_HQ: Any, quantiles: Sequence[float]) -> dict[str, Any]:
    """Quantiles of one window as an answer: the middle one first."""
    middle = int(np.argmin(np.abs(np.array(quantiles) - 0.5)))
    by_quantile = {q: levels_HQ[:, place].tolist() for place, q in enumerate(quantiles)}
    return {"forecast": levels_HQ[:, middle].tolist(), "quantiles": named(by_quantile)}


def _smoothed(given: Past, rate: float, transform: Transform) -> Any:
    """The smoothed level as a change from the last value [N]."""
    steps = change(given.origins_N[:, None], given.context_NT, transform)
    smooth = steps[:, 0]
    for place in range(1, steps.shape[1]):
        smooth = rate * steps[:, place] + (1 - rate) * smooth
    return smooth


def _seasonal(given: Past, season: int, horizon: int, transform: Transform) -> Any:
    """The values of the last season, repeated [N, H], as changes from the last value."""
    last = change(given.origins_N[:, None], given.context_NT[:, -season:], transform)
    return last[:, np.arange(horizon) % season]
