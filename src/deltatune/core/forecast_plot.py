"""A forecast on axes: the values before it, its quantiles, and what came."""

from collections.abc import Mapping
from typing import Any

import numpy as np

BEFORE = 3
"""Values shown before a forecast, for each of its own."""


def drawn(axes: Any, answer: Mapping[str, Any], row: Mapping[str, Any]) -> bool:
    """Draws on axes of matplotlib; colours C0 for the forecast and C1 for what came."""
    quantiles = {float(name): values for name, values in answer["quantiles"].items()}
    low, high = quantiles[min(quantiles)], quantiles[max(quantiles)]
    middle = quantiles[min(quantiles, key=lambda level: abs(level - 0.5))]
    ahead = np.arange(1, len(middle) + 1)
    context = np.asarray(row["context"], dtype=float)[-BEFORE * len(middle) :]
    axes.plot(np.arange(1 - len(context), 1), context, color="0.5", lw=1.2, label="before")
    axes.fill_between(ahead, low, high, color="C0", alpha=0.2, lw=0, label=f"{min(quantiles):g} to {max(quantiles):g}")
    axes.plot(ahead, middle, color="C0", lw=1.6, label="forecast")
    if "future" in row:
        axes.plot(ahead, np.asarray(row["future"], dtype=float), color="C1", lw=1.2, ls="--", label="what came")
    axes.set(xlabel="steps ahead")
    return True
