"""Quantile loss, for arrays and tensors: least in the mean where q is the a-quantile of y (Koenker, Bassett 1978)."""

from typing import Any


def pinball(differences: Any, quantiles: Any) -> Any:
    """2 max(a d, (a - 1) d) of d = y - q: twice the usual loss, so that it is |d| at a = 0.5.

    >>> pinball(1.0, 0.9), round(pinball(-1.0, 0.9), 2), pinball(-3.0, 0.5)
    (1.8, 0.2, 3.0)
    """
    return 2 * abs(differences) * abs(quantiles - (differences < 0) * 1.0)
