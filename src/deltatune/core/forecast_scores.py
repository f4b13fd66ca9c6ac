"""Scores of forecasts with quantiles, on the scale of the values or free of it.

MASE            mean |y - q_0.5| over the mean step |y_t - y_{t-m}| of the training values   (Hyndman, Koehler 2006)
quantile loss   mean of 2 max(a (y - q_a), (a - 1)(y - q_a)) over quantiles, over the same step; MASE where a = 0.5
coverage        share of the values within the outermost quantiles
direction       share of the values on the side of the last known value where the median is
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from deltatune.ops.pinball import pinball


def seasonal_changes(values: Any, season: int) -> Any:
    """Absolute changes over a season [n - m]; NaN where either value is missing."""
    given = np.asarray(values, dtype=np.float64)
    return np.abs(given[season:] - given[:-season])


def step(changes: Any) -> float:
    """Mean of the known changes over a season, which errors are measured in; 0 for constants.

    >>> step(seasonal_changes([1.0, 5.0, 2.0, 7.0, np.nan], 2))
    1.5
    """
    given = np.asarray(changes)
    known = given[~np.isnan(given)]
    return float(known.mean()) if len(known) else 0.0


def forecast_scores(
    wanted_NH: Any, given_NHQ: Any, quantiles: Sequence[float], origins_N: Any, steps_N: Any
) -> dict[str, Any]:
    """Metrics over all known values; NaN in `wanted` counts nowhere.

    >>> found = forecast_scores([[2.0]], [[[0.5, 1.0, 3.0]]], [0.1, 0.5, 0.9], [0.0], [2.0])
    >>> found["mase"], found["coverage"], found["direction_accuracy"]
    (0.5, 1.0, 1.0)
    """
    wanted, given = np.asarray(wanted_NH, dtype=np.float64), np.asarray(given_NHQ, dtype=np.float64)
    origins, steps = np.asarray(origins_N)[:, None], np.asarray(steps_N)[:, None]
    known = ~np.isnan(wanted)
    middle = given[..., int(np.argmin(np.abs(np.array(quantiles) - 0.5)))]
    error = np.abs(wanted - middle)
    loss = pinball(wanted[..., None] - given, np.array(quantiles)).mean(-1)
    inside = (wanted >= given[..., 0]) & (wanted <= given[..., -1])
    moved = known & (wanted != origins)
    right = (np.sign(wanted - origins) == np.sign(middle - origins))[moved]
    found = {
        "mean_quantile_loss": (loss / steps)[known].mean(),
        "mase": (error / steps)[known].mean(),
        "mae": error[known].mean(),
        "coverage": inside[known].mean(),
        "coverage_wanted": quantiles[-1] - quantiles[0],
        "direction_accuracy": right.mean() if len(right) else 0.0,
    }
    return {name: float(value) for name, value in found.items()}


def by_step(errors_NH: Any, quantiles: Sequence[float]) -> Any:
    """Empirical quantiles [H, Q] of errors at every step ahead; unknown ones count nowhere."""
    return np.nanquantile(np.asarray(errors_NH), quantiles, axis=0).T


def named(found: Mapping[float, Any]) -> dict[str, Any]:
    """Quantiles by their names.

    >>> named({0.1: 1, 0.5: 2})
    {'0.1': 1, '0.5': 2}
    """
    return {f"{quantile:g}": value for quantile, value in found.items()}
