"""Linear baseline: logistic or ridge regression on fixed vectors, as answers of a task with labels.

Several labels are learned one by one from the rows where they are known. Of many training rows a seeded part is used:
what a linear model on raw values can learn, it learns from a few thousand.
"""

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression, Ridge

from deltatune.core.classification import Classification
from deltatune.core.labels import marks, names, number

MOST_ROWS = 5_000
STEPS = 1_000
"""Of the solver; what it has found by then is taken."""


def chosen(count: int) -> list[int]:
    """The training rows that are used, in their order.

    >>> len(chosen(20_000)), chosen(3)
    (5000, [0, 1, 2])
    """
    if count <= MOST_ROWS:
        return list(range(count))
    return sorted(np.random.default_rng(0).choice(count, MOST_ROWS, replace=False).tolist())


def linear(
    task: Classification, known_NF: np.ndarray, values: Sequence[Any], asked_NF: np.ndarray
) -> tuple[str, list[dict[str, Any]]]:
    """Name of the model, and an answer for every asked vector; `values` are the labels of the known ones."""
    labels = list(task.label_names)
    answers: list[dict[str, Any]]
    mean_F = known_NF.mean(0)
    known_NF, asked_NF = known_NF - mean_F, asked_NF - mean_F
    if task.problem == "regression":
        model = Ridge().fit(known_NF, [number(value) for value in values])
        return "ridge regression", [{"value": value} for value in model.predict(asked_NF).tolist()]
    if task.problem == "multi-label":
        wanted = np.array([marks(value, labels) for value in values])
        chances = np.stack([_chances(known_NF, own, asked_NF, [0, 1])[:, 1] for own in wanted.T], 1)
        answers = [{"labels": [n for n, c in zip(labels, row, strict=True) if c >= 0.5]} for row in chances]
    else:
        places = np.array([labels.index(names(value)[0]) for value in values], float)
        chances = _chances(known_NF, places, asked_NF, range(len(labels)))
        answers = [{"label": labels[int(row.argmax())], "score": float(row.max())} for row in chances]
    return "logistic regression", [
        {**answer, "probabilities": dict(zip(labels, row.tolist(), strict=True))}
        for answer, row in zip(answers, chances, strict=True)
    ]


def _chances(known_NF: np.ndarray, wanted: np.ndarray, asked_NF: np.ndarray, classes: Sequence[int]) -> np.ndarray:
    """Probability of every class [asked, classes]; NaN in `wanted` is not known."""
    rows = ~np.isnan(wanted)
    found = np.unique(wanted[rows])
    chances = np.zeros((len(asked_NF), len(classes)))
    if len(found) < 2:  # nothing to tell apart
        chances[:, found.astype(int)] = 1
        return chances
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model = LogisticRegression(max_iter=STEPS).fit(known_NF[rows], wanted[rows])
    chances[:, model.classes_.astype(int)] = model.predict_proba(asked_NF)
    return chances
