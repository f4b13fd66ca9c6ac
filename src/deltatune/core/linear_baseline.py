"""Linear baseline: logistic or ridge regression on fixed vectors or on words, as answers of a task with labels.

Several labels are learned one by one from the rows where they are known. Of many training rows a seeded part is used:
what a linear model on raw values can learn, it learns from a few thousand.
"""

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.sparse import issparse
from sklearn.exceptions import ConvergenceWarning
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression, Ridge

from deltatune.core.classification import Classification
from deltatune.core.labels import marks, names, number
from deltatune.core.task import Row

Vectors = Any
"""[rows, features]: an array, or a sparse matrix of counts."""
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
    task: Classification, known_NF: Vectors, values: Sequence[Any], asked_NF: Vectors
) -> tuple[str, list[dict[str, Any]]]:
    """Name of the model, and an answer for every asked vector; `values` are the labels of the known ones."""
    labels = list(task.label_names)
    answers: list[dict[str, Any]]
    if not issparse(known_NF):  # counts of words stay as they are: without zeros they would fill the memory
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


def on_words(task: Classification, train: Sequence[Row], rows: Sequence[Row]) -> dict[str, dict[str, Any]]:
    """A linear model on how often words and pairs of words occur (TF-IDF), as `Task.baselines` has it.

    A text without a known word has the answer of an empty one.
    """
    counted = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, token_pattern=r"(?u)\b\w+\b")
    known, asked = ([" ".join(str(row.get(word) or "") for word in task.key) for row in part] for part in (train, rows))
    try:
        known_NF = counted.fit_transform(known)
    except ValueError:  # no text has a word
        return {}
    name, answers = linear(task, known_NF, [row["label"] for row in train], counted.transform(asked))
    return {f"words, {name}": task.score(answers, rows)}


def _chances(known_NF: Vectors, wanted: np.ndarray, asked_NF: Vectors, classes: Sequence[int]) -> np.ndarray:
    """Probability of every class [asked, classes]; NaN in `wanted` is not known."""
    rows = ~np.isnan(wanted)
    found = np.unique(wanted[rows])
    chances = np.zeros((asked_NF.shape[0], len(classes)))
    if len(found) < 2:  # nothing to tell apart
        chances[:, found.astype(int)] = 1
        return chances
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model = LogisticRegression(max_iter=STEPS).fit(known_NF[rows], wanted[rows])
    chances[:, model.classes_.astype(int)] = model.predict_proba(asked_NF)
    return chances
