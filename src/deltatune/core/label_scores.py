"""Scores of labels: metrics of scikit-learn and scipy as plain numbers."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

OF_NUMBERS = ("pearson", "spearman", "mse", "rmse", "mae", "r2")


def single(wanted: Sequence[str], given: Sequence[str], labels: Sequence[str]) -> dict[str, Any]:
    """Accuracy, macro F1, Matthews, and the tables `per_class` and `confusion`."""
    from sklearn import metrics

    precision, recall, f1, support = metrics.precision_recall_fscore_support(
        wanted, given, labels=labels, zero_division=0.0
    )
    return {
        "accuracy": float(metrics.accuracy_score(wanted, given)),
        "macro_f1": float(np.mean(f1)),
        "matthews": float(metrics.matthews_corrcoef(wanted, given)) if len(set(wanted)) > 1 else 0.0,
        "per_class": [
            {"label": n, "precision": float(p), "recall": float(r), "f1": float(f), "rows": int(s)}
            for n, p, r, f, s in zip(labels, precision, recall, f1, support, strict=True)
        ],
        "confusion": {
            "labels": list(labels),
            "counts": metrics.confusion_matrix(wanted, given, labels=labels).tolist(),
        },
    }


def multi_label(wanted: Any, given: Any) -> dict[str, Any]:
    """Micro and macro F1 and the share of rows with every label right; arrays [rows, labels].

    `wanted` has NaN where a label is not known: it counts nowhere. `given` are truth values.
    """
    known = ~np.isnan(wanted)
    wanted = wanted == 1
    f1 = [_f1(wanted[rows, label], given[rows, label]) for label, rows in enumerate(known.T)]
    return {
        "micro_f1": _f1(wanted[known], given[known]),
        "macro_f1": float(np.mean(f1)),
        "subset_accuracy": float(np.mean(((wanted == given) | ~known).all(1))),
    }


def _f1(wanted: Any, given: Any) -> float:
    """2 TP / (2 TP + FP + FN) of arrays of truth values; 0 where nothing is true in either."""
    both = int(wanted.sum() + given.sum())
    return 2 * int((wanted & given).sum()) / both if both else 0.0


def regression(wanted: Sequence[float] | np.ndarray, given: Sequence[float] | np.ndarray) -> dict[str, Any]:
    """Pearson, Spearman, squared and absolute error and R2; a correlation with a constant is 0.

    All are NaN where an answer is not finite.
    """
    from scipy import stats
    from sklearn import metrics

    if not np.isfinite(given).all():
        return dict.fromkeys(OF_NUMBERS, math.nan)
    varies = len(set(given)) > 1 and len(set(wanted)) > 1
    mse = float(metrics.mean_squared_error(wanted, given))
    return {
        "pearson": float(stats.pearsonr(given, wanted).statistic) if varies else 0.0,
        "spearman": float(stats.spearmanr(given, wanted).statistic) if varies else 0.0,
        "mse": mse,
        "rmse": mse**0.5,
        "mae": float(metrics.mean_absolute_error(wanted, given)),
        "r2": float(metrics.r2_score(wanted, given)) if len(set(wanted)) > 1 else 0.0,
    }


def ranking(wanted: Sequence[str], scores: Sequence[Mapping[str, float]], labels: Sequence[str]) -> dict[str, Any]:
    """AUC and average precision, of the last class where there are two, else the mean over classes against the rest.

    Left out where a class is missing from the rows, or is all there is.

    >>> ranking(["a", "b"], [{"a": 0.9, "b": 0.1}, {"a": 0.2, "b": 0.8}], ["a", "b"])
    {'auc': 1.0, 'average_precision': 1.0}
    """
    return ranking_of_classes(*truths(wanted, scores, labels))


def truths(wanted: Sequence[str], scores: Sequence[Mapping[str, float]], labels: Sequence[str]) -> tuple[Any, Any]:
    """Whether a row is of a class, and its score for it: arrays [rows, classes that are ranked]."""
    asked = labels[-1:] if len(labels) == 2 else labels
    truth = np.array([[name == label for label in asked] for name in wanted])
    return truth, np.array([[row[label] for label in asked] for row in scores])


def ranking_of_classes(truth: Any, given: Any) -> dict[str, float]:
    """`ranking` of what `truths` gives, or of some of its rows."""
    if (truth.all(0) | ~truth.any(0)).any():
        return {}
    pairs = list(zip(truth.T, given.T, strict=True))
    return {
        "auc": float(np.mean([_auc(*pair) for pair in pairs])),
        "average_precision": float(np.mean([_average_precision(*pair) for pair in pairs])),
    }


def ranking_of_several(wanted: Any, chances: Any) -> dict[str, Any]:
    """Mean AUC and average precision over the labels that some known rows have and some have not.

    Arrays [rows, labels]; `wanted` has NaN where a label is not known. `ranked_labels` is the number of those labels;
    empty when there are none.

    >>> ranking_of_several(np.array([[1, 0], [0, np.nan]]), np.array([[0.9, 0.1], [0.2, 0.8]]))
    {'auc': 1.0, 'average_precision': 1.0, 'ranked_labels': 1}
    """
    pairs = [(w[known] == 1, c[known]) for w, c, known in zip(wanted.T, chances.T, ~np.isnan(wanted.T), strict=True)]
    asked = [(truth, given) for truth, given in pairs if truth.any() and not truth.all()]
    if not asked:
        return {}
    return {
        "auc": float(np.mean([_auc(*pair) for pair in asked])),
        "average_precision": float(np.mean([_average_precision(*pair) for pair in asked])),
        "ranked_labels": len(asked),
    }


def recall_at(wanted: Sequence[bool], scores: Sequence[float], false_positive_rate: float) -> float | None:
    """Largest share of the true rows found by a threshold that takes at most this share of the others.

    None where one of the two kinds is missing.

    >>> recall_at([True, True, False, False], [0.9, 0.4, 0.6, 0.1], 0.0)
    0.5
    """
    from sklearn import metrics

    if all(wanted) or not any(wanted):
        return None
    false_rates, recalls, _ = metrics.roc_curve(wanted, scores, drop_intermediate=False)
    return float(recalls[false_rates <= false_positive_rate].max())


def _auc(truth: Any, given: Any) -> float:
    """Share of the pairs of a true and a false row that are in order, ties half: the ranks of Mann and Whitney.

    As scikit-learn's at a twentieth of its time, which a bootstrap spends a thousand times.
    """
    from scipy import stats

    held = int(truth.sum())
    above = float(stats.rankdata(given)[truth].sum()) - held * (held + 1) / 2
    return above / (held * (len(truth) - held))


def _average_precision(truth: Any, given: Any) -> float:
    """Mean over the true rows of the precision at their score, rows of the same score together."""
    order = np.argsort(-given)
    ends = np.append(np.flatnonzero(np.diff(given[order])), len(order) - 1)
    held = truth[order].cumsum()[ends]
    return float((np.diff(held, prepend=0) * held / (ends + 1)).sum() / held[-1])


BINS = 15


def calibration(wanted: Sequence[str], scores: Sequence[Mapping[str, float]], labels: Sequence[str]) -> dict[str, Any]:
    """Expected calibration error over 15 equal bins of confidence (Guo et al. 2017), and the Brier score.

    >>> calibration(["a", "b"], [{"a": 1.0, "b": 0.0}, {"a": 1.0, "b": 0.0}], ["a", "b"])
    {'ece': 0.5, 'brier': 1.0}
    """
    given = np.array([[row[label] for label in labels] for row in scores])
    truth = np.array([[name == label for label in labels] for name in wanted])
    confidence, right = given.max(1), truth[np.arange(len(truth)), given.argmax(1)]
    bins = np.minimum((confidence * BINS).astype(int), BINS - 1)
    gaps = [abs(float((confidence - right)[bins == b].sum())) for b in range(BINS)]
    return {"ece": sum(gaps) / len(truth), "brier": float(((given - truth) ** 2).sum(1).mean())}
