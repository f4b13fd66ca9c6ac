"""Significance: intervals and paired tests over seeds and test rows at once.

Every draw takes test rows with replacement, the same for all methods, and seeds with replacement, of every method by
itself; the value of a method is the mean over its drawn seeds of the metric on the drawn rows (two-level bootstrap,
Davison & Hinkley 1997, 3.8). The difference of two methods is drawn in pairs, so what makes rows hard for both cancels.
p is two-sided and normal, with the standard error of these draws, and corrected by Holm (1979).
"""

import time
from collections.abc import Mapping, Sequence
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deltatune.core.interval import PROPORTIONS
from deltatune.core.task import Row, Task

Answers = Sequence[Mapping[str, Any]]
DRAWS = 2000
LEAST = 200
SECONDS = 60.0
"""Time that the draws may take where a metric is slow; they are never fewer than `LEAST`."""


def draws(task: Task, metric: str, rows: Sequence[Row], answers: Mapping[str, Sequence[Answers]]) -> dict[str, Any]:
    """Name -> drawn values [draws], from the answers of every seed of a method to the same rows.

    A draw on which a metric has no value (an AUC without one of the classes) is left out for all methods.
    """
    generator = np.random.default_rng(0)
    runs = sum(len(seeds) for seeds in answers.values())
    shares = metric in PROPORTIONS and metric == task.metric
    number = DRAWS if shares else _affordable(task, rows, answers, runs)
    chosen = generator.integers(0, len(rows), (number, len(rows)))
    values = {
        name: np.stack([_of_run(task, metric, rows, one, chosen) for one in seeds]) for name, seeds in answers.items()
    }
    drawn = {name: _over_seeds(own, generator) for name, own in values.items()}
    whole = np.all([np.isfinite(own) for own in drawn.values()], axis=0)
    return {name: own[whole] for name, own in drawn.items()}


def interval(drawn: NDArray[np.float64]) -> list[float]:
    """95 % of the draws."""
    return [float(bound) for bound in np.quantile(drawn, [0.025, 0.975])]


def p_value(difference: float, drawn: NDArray[np.float64]) -> float:
    """How likely a difference at least as large is where there is none.

    >>> round(p_value(1.96, np.array([0.96, 2.96])), 2), p_value(0.0, np.zeros(5))
    (0.05, 1.0)
    """
    error = float(drawn.std())
    if error == 0:
        return 1.0 if difference == 0 else 0.0
    return 2 * (1 - NormalDist().cdf(abs(difference) / error))


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """The same, corrected for how many there are.

    >>> holm({"a": 0.01, "b": 0.04, "c": 0.03})
    {'a': 0.03, 'c': 0.06, 'b': 0.06}
    """
    corrected, largest = {}, 0.0
    for rank, (name, p) in enumerate(sorted(p_values.items(), key=lambda item: item[1])):
        largest = max(largest, min(1.0, p * (len(p_values) - rank)))
        corrected[name] = largest
    return corrected


def _affordable(task: Task, rows: Sequence[Row], answers: Mapping[str, Sequence[Answers]], runs: int) -> int:
    started = time.perf_counter()
    task.score(next(iter(answers.values()))[0], rows)
    each = max(time.perf_counter() - started, 1e-6)
    return int(min(DRAWS, max(LEAST, SECONDS / (each * runs))))


def _of_run(
    task: Task, metric: str, rows: Sequence[Row], answers: Answers, chosen: NDArray[np.int64]
) -> NDArray[np.float64]:
    """The metric of one run on every draw of rows."""
    if metric in PROPORTIONS and metric == task.metric:
        right = np.array([task.merit(answer, row) == 1 for answer, row in zip(answers, rows, strict=True)])
        return np.asarray(right[chosen].mean(1))
    scored = (task.score([answers[i] for i in draw], [rows[i] for i in draw]) for draw in chosen.tolist())
    return np.array([one.get(metric, np.nan) for one in scored], dtype=float)


def _over_seeds(values: NDArray[np.float64], generator: np.random.Generator) -> NDArray[np.float64]:
    """Mean over seeds drawn with replacement, anew for every draw: [seeds, draws] -> [draws]."""
    seeds, number = values.shape
    picked = generator.integers(0, seeds, (seeds, number))
    return np.asarray(np.take_along_axis(values, picked, 0).mean(0))
