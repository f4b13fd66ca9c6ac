"""Baselines on tables: gradient boosting and a linear model of scikit-learn, as answers of a task."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
from sklearn.linear_model import LogisticRegression, Ridge

from deltatune.core.features import Features

MOST_VALUES = 255
"""Values of a category that gradient boosting can tell apart; longer columns are left to the linear model."""
Arrays = tuple[Any, Any]
"""Numbers [rows, N] and places of categories [rows, C], from `Features.encode`."""


def answers(
    columns: Features, train: Arrays, wanted: Sequence[Any], rows: Arrays, *, regression: bool
) -> dict[str, list[dict[str, Any]]]:
    """Answers for the rows by `gradient boosting`, and by `logistic regression` or `ridge regression`."""
    short = [place for place, feature in enumerate(columns.categories) if feature.size <= MOST_VALUES]
    kinds = [False] * len(columns.numbers) + [True] * len(short)
    boosting = (HistGradientBoostingRegressor if regression else HistGradientBoostingClassifier)(
        categorical_features=kinds, random_state=0
    )
    linear = Ridge() if regression else LogisticRegression(max_iter=2000)
    found = {}
    if kinds:
        boosting.fit(_trees(columns, train, short), wanted)
        found["gradient boosting"] = _answers(boosting, _trees(columns, rows, short), regression)
    linear.fit(_linear(columns, train), wanted)
    name = "ridge regression" if regression else "logistic regression"
    return found | {name: _answers(linear, _linear(columns, rows), regression)}


def _trees(columns: Features, given: Arrays, short: Sequence[int]) -> Any:
    """Numbers with NaN where missing, and each category by its own index."""
    own = given[1] - np.array(columns.offsets, dtype=np.int64)
    return np.concatenate([given[0], own[:, list(short)].astype(np.float32)], 1)


def _linear(columns: Features, given: Arrays) -> Any:
    """Numbers with 0 and a mark where missing, and a place for every value of a category."""
    total = sum(feature.size for feature in columns.categories)
    marks = np.zeros((len(given[0]), total), dtype=np.float32)
    np.put_along_axis(marks, given[1], 1.0, axis=1)
    return np.concatenate([np.nan_to_num(given[0]), np.isnan(given[0]).astype(np.float32), marks], 1)


def _answers(model: Any, given: Any, regression: bool) -> list[dict[str, Any]]:
    if regression:
        return [{"value": value} for value in model.predict(given).tolist()]
    classes = [str(name) for name in model.classes_]
    found = []
    for row in model.predict_proba(given).tolist():
        best = int(np.argmax(row))
        found.append(
            {"label": classes[best], "score": row[best], "probabilities": dict(zip(classes, row, strict=True))}
        )
    return found
