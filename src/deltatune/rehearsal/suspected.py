"""Suspected labels: rows that a model of the other rows would label otherwise (confident learning).

    p_i   chances of row i by a logistic regression on the other folds' rows
    t_c   mean of p_i[c] over the rows labelled c: how sure the model is of a class where it holds
    C_kj  rows labelled k whose likeliest class among those with p_i[c] >= t_c is j, scaled to the number labelled k
    suspected: of the rows labelled k the C_kj with the largest margin p_i[j] - p_i[k], where it is above 0

Northcutt, Jiang, Chuang 2021, arXiv:1911.00068, sections 3.1 and 3.2 (prune by noise rate). The regression reads the
frozen base's features: it is right about a suspected label only as far as these tell the classes at all, so how well
they do is said too.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy.stats import rankdata
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

FOLDS = 5
STEPS = 300
"""Of the solver."""
STRENGTHS = (1e-3, 1e-2, 1e-1)
"""Inverse weights of the penalty, of which the one with the best held-out chances counts."""
PERMUTATIONS = 200
"""Of the labels, to see what guessing reaches."""
Folds = list[tuple[np.ndarray, np.ndarray]]
"""Numbers of the rows to learn from, and of those to judge."""


@dataclass(frozen=True)
class Judged:
    """What the other rows say of every row."""

    labels: np.ndarray
    """Class indices [N]."""
    chances_NC: np.ndarray

    @cached_property
    def auc(self) -> float:
        """Mean over the rows of the area under the curve of their class against the rest; guessing has 0.5."""
        return self._auc(self.labels)

    @cached_property
    def guessing(self) -> float:
        """What the same chances reach for permuted labels, and three standard deviations more."""
        generator = np.random.default_rng(0)
        found = [self._auc(generator.permutation(self.labels)) for _ in range(PERMUTATIONS)]
        return float(np.mean(found) + 3 * np.std(found))

    @cached_property
    def _ranks_NC(self) -> np.ndarray:
        return np.asarray(rankdata(self.chances_NC, axis=0))

    def _auc(self, labels: np.ndarray) -> float:
        counts_C = np.bincount(labels, minlength=self.chances_NC.shape[1]).astype(float)
        sums_C = np.bincount(labels, self._ranks_NC[np.arange(len(labels)), labels], minlength=len(counts_C))
        others_C = len(labels) - counts_C
        areas_C = (sums_C - counts_C * (counts_C + 1) / 2) / (counts_C * others_C)
        return float((areas_C * counts_C).sum() / len(labels))

    @property
    def accuracy(self) -> float:
        """Share of the rows that are found."""
        return float((self.chances_NC.argmax(1) == self.labels).mean())

    def suspected(self) -> list[tuple[int, int]]:
        """(row, likely class), the surest first."""
        found: dict[int, tuple[float, int]] = {}
        for label, counts_C in enumerate(self.joint):
            rows = np.flatnonzero(self.labels == label)
            for other in np.flatnonzero(counts_C):
                margins = self.chances_NC[rows, other] - self.chances_NC[rows, label]
                for index in np.argsort(-margins, kind="stable")[: counts_C[other]] if other != label else ():
                    if margins[index] > 0:
                        entry = (float(margins[index]), int(other))
                        found[int(rows[index])] = max(entry, found.get(int(rows[index]), entry))
        return [(row, other) for row, (_, other) in sorted(found.items(), key=lambda item: -item[1][0])]

    @property
    def joint(self) -> np.ndarray:
        """Rows by label and by the class they are confidently of [C, C], scaled to the rows of every label."""
        classes = self.chances_NC.shape[1]
        sure_C = np.array([self.chances_NC[self.labels == c, c].mean() for c in range(classes)])
        possible_NC = np.where(self.chances_NC >= sure_C, self.chances_NC, -1.0)
        confident = possible_NC.max(1) >= 0
        counts_CC = np.zeros((classes, classes))
        np.add.at(counts_CC, (self.labels[confident], possible_NC.argmax(1)[confident]), 1)
        scale_C1 = np.bincount(self.labels, minlength=classes)[:, None] / counts_CC.sum(1, keepdims=True).clip(1)
        return np.asarray(np.rint(counts_CC * scale_C1), dtype=int)


def folds_of(labels: np.ndarray, groups: Sequence[object] | None = None) -> Folds | None:
    """Rows to learn from and rows to judge, fold by fold; rows of a group are in one fold.

    None where there are fewer groups than folds, or where all but one class hang on the groups of one fold.

    >>> folds_of(np.array([0, 1] * 10), ["a", "b"] * 10) is None
    True
    """
    if groups is not None and len(set(groups)) < FOLDS:
        return None
    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=0)
    if groups is not None:
        folds = StratifiedGroupKFold(FOLDS, shuffle=True, random_state=0)
    found = [(others, held) for others, held in folds.split(labels, labels, groups) if len(held)]
    return found if all(len(set(labels[others])) > 1 for others, _ in found) else None


def judged_by_others(features_NF: np.ndarray, labels: np.ndarray, folds: Folds) -> Judged:
    """Chances of every row by the rows of the other folds; every class must have at least `FOLDS` rows."""
    found = []
    for strength in STRENGTHS:
        model = make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=STEPS))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            found.append(cross_val_predict(model, features_NF, labels, cv=folds, method="predict_proba"))
    return Judged(labels, max(found, key=lambda chances_NC: _likelihood(chances_NC, labels)))


def _likelihood(chances_NC: np.ndarray, labels: np.ndarray) -> float:
    return float(np.log(chances_NC[np.arange(len(labels)), labels].clip(1e-12)).mean())
