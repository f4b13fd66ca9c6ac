"""Scores of labels: metrics of scikit-learn and scipy as plain numbers."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy import stats
from sklearn import metrics


def single(wanted: Sequence[str], given: Sequence[str], labels: Sequence[str]) -> dict[str, Any]:
    """Accuracy, macro F1, Matthews, and the tables `per_class` and `confusion`."""
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
    """Micro and macro F1 and the share of rows with every label right; arrays of truth values [rows, labels]."""
    return {
        "micro_f1": float(metrics.f1_score(wanted, given, average="micro", zero_division=0.0)),
        "macro_f1": float(metrics.f1_score(wanted, given, average="macro", zero_division=0.0)),
        "subset_accuracy": float(metrics.accuracy_score(wanted, given)),
    }


def regression(wanted: Sequence[float], given: Sequence[float]) -> dict[str, Any]:
    """Pearson, Spearman, squared and absolute error and R2; a correlation with a constant is 0."""
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
    asked = labels[-1:] if len(labels) == 2 else labels
    truth = {label: np.array([name == label for name in wanted]) for label in asked}
    if any(one.all() or not one.any() for one in truth.values()):
        return {}
    given = {label: [row[label] for row in scores] for label in asked}
    return {
        "auc": float(np.mean([metrics.roc_auc_score(truth[label], given[label]) for label in asked])),
        "average_precision": float(
            np.mean([metrics.average_precision_score(truth[label], given[label]) for label in asked])
        ),
    }


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
