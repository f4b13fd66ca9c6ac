"""Intervals of metrics that are a share of rows."""

import math

Z = 1.959963984540054
"""97.5 % quantile of the normal distribution."""
PROPORTIONS = ("accuracy", "subset_accuracy")
"""Metrics that are a share of rows, for which an exact formula exists."""


def wilson(share: float, count: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share among `count` rows (Wilson 1927).

    >>> [round(bound, 3) for bound in wilson(0.8, 100)]
    [0.711, 0.867]
    """
    centre = share + Z**2 / (2 * count)
    spread = Z * math.sqrt(share * (1 - share) / count + Z**2 / (4 * count**2))
    scale = 1 + Z**2 / count
    return max(0.0, (centre - spread) / scale), min(1.0, (centre + spread) / scale)
