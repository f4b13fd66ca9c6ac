"""Baselines on fixed vectors: a linear model and a random forest of scikit-learn, as answers of a task with labels.

Several labels are learned one by one from the rows where they are known.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from sklearn.ensemble import RandomForestClassifier, RandomForestRegressor
from sklearn.linear_model import LogisticRegression, RidgeCV

TREES = 300
PENALTIES = np.logspace(-1, 3, 9)
"""Of ridge regression, the best one by leave-one-out on the training rows."""
FEATURES = "sqrt"
"""Features a split of a tree chooses from; all of 2,048 bits take twenty times as long and are no better."""


def numbers(train: Any, wanted: Sequence[float], rows: Any) -> dict[str, list[dict[str, Any]]]:
    """Values by `ridge regression` and `random forest`; vectors are arrays [rows, N]."""
    models = {
        "ridge regression": RidgeCV(PENALTIES),
        "random forest": RandomForestRegressor(TREES, max_features=FEATURES, random_state=0),
    }
    return {
        name: [{"value": value} for value in model.fit(train, wanted).predict(rows).tolist()]
        for name, model in models.items()
    }


def classes(train: Any, wanted: Sequence[str], rows: Any, labels: Sequence[str]) -> dict[str, list[dict[str, Any]]]:
    """One class each by `logistic regression` and `random forest`, with the probabilities of all labels."""
    found = {}
    for name, make in CLASSIFIERS.items():
        model = make().fit(train, wanted)
        chances = np.zeros((len(rows), len(labels)))
        chances[:, [labels.index(label) for label in model.classes_]] = model.predict_proba(rows)
        found[name] = [
            {"label": labels[int(row.argmax())], "score": float(row.max()), "probabilities": _named(labels, row)}
            for row in chances
        ]
    return found


def several(train: Any, wanted: Any, rows: Any, labels: Sequence[str]) -> dict[str, list[dict[str, Any]]]:
    """Labels beside each other; `wanted` is an array [rows, labels] with NaN where one is not known."""
    found = {}
    for name, make in CLASSIFIERS.items():
        chances = np.stack([_chance(make(), train, own, rows) for own in wanted.T], 1)
        found[name] = [
            {
                "labels": [label for label, chance in zip(labels, row, strict=True) if chance >= 0.5],
                "probabilities": _named(labels, row),
            }
            for row in chances
        ]
    return found


CLASSIFIERS: dict[str, Callable[[], Any]] = {
    "logistic regression": lambda: LogisticRegression(max_iter=2_000),
    "random forest": lambda: RandomForestClassifier(TREES, max_features=FEATURES, random_state=0),
}


def _chance(model: Any, train: Any, wanted: Any, rows: Any) -> Any:
    """Probability that a label holds; its share where the known rows do not differ."""
    known = ~np.isnan(wanted)
    if len(np.unique(wanted[known])) < 2:
        return np.full(len(rows), wanted[known].mean() if known.any() else 0.0)
    return model.fit(train[known], wanted[known] == 1).predict_proba(rows)[:, 1]


def _named(labels: Sequence[str], row: Any) -> dict[str, float]:
    return dict(zip(labels, row.tolist(), strict=True))
