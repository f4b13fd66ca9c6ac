"""Classification: everything a task needs to know about labels; the input is its own.

problem    one class of two or many, several labels at once, or a number per row
loss       cross entropy, binary cross entropy per label, or squared error of the standardised number
metrics    accuracy, macro F1, Matthews, AUC, calibration, confusion; micro F1, subset accuracy; Pearson, Spearman, R2
"""

import math
from abc import abstractmethod
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from types import SimpleNamespace
from typing import Annotated, Any, ClassVar, Literal, Self

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from deltatune.core import label_loss, label_scores
from deltatune.core.errors import DataError, SettingsError, did_you_mean
from deltatune.core.labels import Labels, Problem, is_blank, marks, mentioned, names, natural, number, problem_of, said
from deltatune.core.pretrained import named_classes
from deltatune.core.task import Batch, Row, Task

MOST_CLASSES = 1000


class Classification(Task):
    """Settings of a task whose rows have labels."""

    label: ClassVar[str | None] = "label"
    lower_is_better: ClassVar[frozenset[str]] = frozenset({"loss", "mse", "rmse", "mae", "ece", "brier"})

    problem: Literal["auto"] | Problem = "auto"
    """One class per row, several, or a number; auto looks at the labels."""
    labels: Labels | None = None
    """Names of the classes in the order of the model's outputs; none takes them from the training rows, sorted."""
    class_weights: Literal["balanced"] | dict[str, Annotated[float, Field(gt=0)]] | None = None
    """Weight of a class in the loss; balanced: inverse to its number of training rows."""
    focal_gamma: Annotated[float, Field(ge=0)] = 0.0
    """Focal loss: the loss of a row whose class has chance p is scaled by (1 - p)^gamma; 2 is usual."""
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the wanted probability that is spread over all classes."""
    standardize: bool = True
    """Numbers are learned in units of their spread in the training rows; false for a head that knows them already."""
    mean: float | None = None
    """Mean of the numbers; filled in from the training rows."""
    spread: float | None = None
    """Standard deviation of the numbers; filled in from the training rows."""

    @property
    def metric(self) -> str:
        """What chooses the best adapter."""
        return {"multi-label": "micro_f1", "regression": "pearson"}.get(self.problem, "accuracy")

    @property
    def predicts(self) -> Literal["classes", "next classes", "labels", "values"]:
        """What the logits are about."""
        kinds: dict[str, Literal["labels", "values"]] = {"multi-label": "labels", "regression": "values"}
        return kinds.get(self.problem, "classes")

    @property
    def label_names(self) -> Sequence[str]:
        """The classes."""
        return self.labels or ()

    # -- rows

    @abstractmethod
    def check_input(self, row: Row) -> str | None:
        """What is wrong with the input of a row, or None."""

    def check(self, row: Row) -> str | None:
        """An input that cannot be used, or a label that does not fit."""
        return self.check_input(row) or (self._check_label(row["label"]) if "label" in row else None)

    def _check_label(self, value: Any) -> str | None:
        if is_blank(value):
            return "label is missing"
        if isinstance(value, float) and not math.isfinite(value):
            return f"label is not a finite number ({value})"
        if self.problem == "regression":
            return None if number(value) is not None else f"label is not a number ({value!r})"
        if isinstance(value, list) and any(isinstance(v, list | dict) for v in value):
            return f"label is neither a name nor a list of names ({type(value).__name__})"
        if isinstance(value, list) and any(is_blank(v) or v != v for v in value):
            return "label is a list with a name that is missing (a row of no label has an empty list)"
        if self.problem == "single" and isinstance(value, list | dict):
            return f"label is a {'list' if isinstance(value, list) else 'mapping'} where one class is expected"
        wrong = _wrong_marks(value) if isinstance(value, dict) else None
        if wrong is not None or self.labels is None:
            return wrong
        unknown = [name for name in mentioned(value) if name not in self.labels]
        return f"label is unknown ({unknown[0]!r})" if unknown else None

    def fit(self, rows: Sequence[Row]) -> Self:
        """Kind of problem, names and weights of the classes or scale of the numbers, from the training rows."""
        values = [row["label"] for row in rows]
        problem = problem_of(values) if self.problem == "auto" else self.problem
        self._check_settings(problem)
        if problem == "regression":
            return self.model_copy(update={"problem": problem, "labels": (), **self._scale(values)})
        counts = Counter(name for value in values for name in names(value))
        labels = self.labels or tuple(sorted({n for value in values for n in mentioned(value)}, key=natural))
        if len(labels) < 2:
            raise DataError(
                f"only one class in the training rows ({', '.join(labels)})", hint="two are needed to learn"
            )
        many = len(labels) > MOST_CLASSES or (len(rows) > 20 and len(counts) > len(rows) / 2)
        if many and self.labels is None:
            raise DataError(
                f"{len(counts)} different labels in {len(rows)} training rows, such as {labels[0]!r}",
                hint="is it the right column (data.columns.label)? for numbers set task.problem: regression; classes "
                "so rare are named in task.labels",
            )
        weights = self._weights(problem, labels, values, counts)
        return self.model_copy(update={"problem": problem, "labels": labels, "class_weights": weights})

    def _check_settings(self, problem: Problem) -> None:
        """Raises `SettingsError` for what has no effect on numbers."""
        without = [key for key in ("class_weights", "focal_gamma", "label_smoothing") if getattr(self, key)]
        if problem == "regression" and without:
            raise SettingsError(f"task.{without[0]} has no effect on numbers", hint="take it out")

    def _scale(self, values: Sequence[Any]) -> dict[str, float | None]:
        if not self.standardize:
            return {"mean": None, "spread": None}
        numbers = [number(value) or 0.0 for value in values]
        return {"mean": float(np.mean(numbers)), "spread": float(np.std(numbers)) or 1.0}

    def _weights(
        self, problem: Problem, labels: Sequence[str], values: Sequence[Any], counts: Mapping[str, int]
    ) -> dict[str, float] | None:
        """Of every class; balanced: n/(C n_c), of mean 1 over the rows, or (n - n_c)/n_c for a label beside others.

        n are the rows where it is known.
        """
        if self.class_weights is None:
            return None
        if self.class_weights == "balanced":
            present = {label: max(1, counts[label]) for label in labels}
            if problem == "multi-label":
                known = (~np.isnan([marks(value, labels) for value in values])).sum(0).tolist()
                return {
                    label: max(1, n - present[label]) / present[label] for label, n in zip(labels, known, strict=True)
                }
            return {label: len(values) / (len(labels) * number) for label, number in present.items()}
        for name in self.class_weights:
            if name not in labels:
                raise SettingsError(f"task.class_weights: no class {name!r}", hint=did_you_mean(name, labels))
        return {label: self.class_weights.get(label, 1.0) for label in labels}

    def config(self) -> dict[str, Any]:
        """Settings of a `transformers` config for a head of these labels."""
        kinds = {"regression": "regression", "multi-label": "multi_label_classification"}
        classes = ["value"] if self.problem == "regression" else list(self.labels or ())
        return {**named_classes(classes), "problem_type": kinds.get(self.problem, "single_label_classification")}

    def target(self, value: Any) -> Any:
        """A label as the loss takes it: index of the class, a vector of labels, or the number."""
        if self.problem == "regression":
            return number(value)
        assert self.labels is not None
        if self.problem == "multi-label":
            return marks(value, self.labels)
        return self.labels.index(names(value)[0])

    def class_of(self, row: Row) -> str | None:
        """The class, where there is one per row."""
        return names(row["label"])[0] if self.problem == "single" and "label" in row else None

    # -- learning

    def unread(self, output: Any) -> Any:
        """All classes alike, or the mean of the numbers."""
        return SimpleNamespace(logits=torch.zeros_like(output.logits))

    def loss(self, output: Any, batch: Batch) -> Tensor:
        """Mean over the rows of the batch, in float32."""
        logits, labels = output.logits.float(), batch["labels"]
        if self.problem == "regression":
            return F.mse_loss(logits[:, 0], (labels.float() - (self.mean or 0.0)) / (self.spread or 1.0))
        weights = self._weights_on(logits.device)
        if self.problem == "multi-label":
            total = label_loss.several(logits, labels.float(), weights, self.focal_gamma, self.label_smoothing)
        else:
            total = label_loss.single(logits, labels, weights, self.focal_gamma, self.label_smoothing)
        return total / len(labels)

    def _weights_on(self, device: torch.device) -> Tensor | None:
        if not isinstance(self.class_weights, dict):
            return None
        return torch.tensor([self.class_weights[name] for name in self.labels or ()], device=device)

    def weight(self, batch: Batch) -> int:
        """Rows."""
        return len(batch["labels"])

    def read(self, output: Any, batch: Batch) -> list[dict[str, Any]]:
        """Class with its probability, labels above one half, or the value; all probabilities beside."""
        logits = output.logits.float().cpu()
        if self.problem == "regression":
            return [{"value": v * (self.spread or 1.0) + (self.mean or 0.0)} for v in logits[:, 0].tolist()]
        labels = self.labels or ()
        if self.problem == "multi-label":
            return [
                {
                    "labels": [n for n, p in zip(labels, row, strict=True) if p >= 0.5],
                    "probabilities": dict(zip(labels, row, strict=True)),
                }
                for row in logits.sigmoid().tolist()
            ]
        return [
            {
                "label": labels[int(np.argmax(row))],
                "score": max(row),
                "probabilities": dict(zip(labels, row, strict=True)),
            }
            for row in logits.softmax(-1).tolist()
        ]

    def merit(self, answer: Mapping[str, Any], row: Row) -> float:
        """1 for the right class and 0 for another, the share of known labels that are right, or minus the error."""
        if self.problem == "regression":
            return -abs(float(answer["value"]) - (number(row["label"]) or 0.0))
        if self.problem == "single":
            return float(answer["label"] == names(row["label"])[0])
        truth = dict(zip(self.label_names, marks(row["label"], self.label_names), strict=True))
        right = [(mark == 1) == (name in answer["labels"]) for name, mark in truth.items() if not math.isnan(mark)]
        return sum(right) / max(1, len(right))

    def certainty(self, answer: Mapping[str, Any]) -> float | None:
        """The chance of the class, or of the label that is least sure; none for numbers."""
        if self.problem == "multi-label":
            return min((max(chance, 1 - chance) for chance in answer["probabilities"].values()), default=None)
        return super().certainty(answer)

    def wanted(self, row: Row) -> Any:
        """The label by the names of the classes."""
        if self.problem == "multi-label":
            return names(row["label"])
        return number(row["label"]) if self.problem == "regression" else names(row["label"])[0]

    # -- scores

    def score(self, answers: Sequence[Mapping[str, Any]], rows: Sequence[Row]) -> dict[str, Any]:
        """The metrics of the problem, from scikit-learn and scipy."""
        if self.problem == "regression":
            return label_scores.regression(*_values(answers, rows))
        labels = list(self.labels or ())
        if self.problem == "multi-label":
            return self._score_several(answers, rows, labels)
        classes = [names(r["label"])[0] for r in rows]
        found = label_scores.single(classes, [a["label"] for a in answers], labels)
        if any("probabilities" not in a for a in answers):
            return found
        chances = [a["probabilities"] for a in answers]
        ranked, kept = (
            label_scores.ranking(classes, chances, self.ranked_labels),
            label_scores.calibration(classes, chances, labels),
        )
        return {**found, **ranked, **kept}

    def _score_several(
        self, answers: Sequence[Mapping[str, Any]], rows: Sequence[Row], labels: Sequence[str]
    ) -> dict[str, Any]:
        wanted, given = _several(answers, rows, labels)
        found = label_scores.multi_label(wanted, given)
        if any("probabilities" not in a for a in answers):
            return found
        return {**found, **label_scores.ranking_of_several(wanted, _chances(answers, labels))}

    @property
    def ranked_labels(self) -> Sequence[str]:
        """The classes as they are ranked: of two the last one is what is looked for."""
        return self.label_names

    def resampled(
        self, answers: Sequence[Mapping[str, Any]], rows: Sequence[Row]
    ) -> Callable[[np.ndarray], float | None]:
        """From arrays that are made once."""
        labels, metric = list(self.label_names), self.metric
        if metric in label_scores.OF_NUMBERS:
            numbers, values = map(np.array, _values(answers, rows))
            return lambda chosen: label_scores.regression(numbers[chosen], values[chosen])[metric]
        if metric == "micro_f1":
            wanted, given = _several(answers, rows, labels)
            return lambda chosen: label_scores.multi_label(wanted[chosen], given[chosen])[metric]
        if metric == "auc" and self.problem == "multi-label":
            wanted, chances = _several(answers, rows, labels)[0], _chances(answers, labels)
            return lambda chosen: label_scores.ranking_of_several(wanted[chosen], chances[chosen]).get(metric)
        if metric == "auc":
            classes, said = [names(r["label"])[0] for r in rows], [a["probabilities"] for a in answers]
            truth, scores = label_scores.truths(classes, said, self.ranked_labels)
            return lambda chosen: label_scores.ranking_of_classes(truth[chosen], scores[chosen]).get(metric)
        return super().resampled(answers, rows)

    def baseline(self, train: Sequence[Row], rows: Sequence[Row]) -> tuple[str, dict[str, Any]]:
        """The most frequent class or label set, or the mean; probabilities are the shares of the training rows."""
        if self.problem == "regression":
            mean = float(np.mean([number(row["label"]) for row in train]))
            return "mean", self.score([{"value": mean}] * len(rows), rows)
        sets = Counter(tuple(names(row["label"])) for row in train)
        common = sets.most_common(1)[0][0]
        if self.problem == "multi-label":
            known = np.array([marks(row["label"], self.labels or ()) for row in train])
            held = (np.nansum(known, 0) / np.maximum(1, (~np.isnan(known)).sum(0))).tolist()
            chances = dict(zip(self.labels or (), held, strict=True))
            answers = [{"labels": list(common), "probabilities": chances}] * len(rows)
            return "most frequent labels", self.score(answers, rows)
        shares = {name: sets[(name,)] / len(train) for name in self.labels or ()}
        answer = {"label": common[0], "score": shares[common[0]], "probabilities": shares}
        return "majority class", self.score([answer] * len(rows), rows)


def _values(answers: Sequence[Mapping[str, Any]], rows: Sequence[Row]) -> tuple[list[float], list[float]]:
    """Numbers as wanted and as answered."""
    return [float(number(r["label"]) or 0.0) for r in rows], [a["value"] for a in answers]


def _several(answers: Sequence[Mapping[str, Any]], rows: Sequence[Row], labels: Sequence[str]) -> tuple[Any, Any]:
    """Marks as wanted and truth values as answered, [rows, labels]."""
    wanted = np.array([marks(r["label"], labels) for r in rows])
    return wanted, np.array([[n in a["labels"] for n in labels] for a in answers])


def _chances(answers: Sequence[Mapping[str, Any]], labels: Sequence[str]) -> Any:
    return np.array([[a["probabilities"][n] for n in labels] for a in answers])


def _wrong_marks(value: Mapping[Any, Any]) -> str | None:
    """What is wrong with a label that gives several classes their marks, or None."""
    if not all(isinstance(name, str) for name in value):
        return "label is a mapping whose names are not text"
    try:
        found = {name: said(mark) for name, mark in value.items()}
    except ValueError as error:
        return f"label is a mapping of names to 1, 0 or nothing ({error})"
    return None if any(mark is not None for mark in found.values()) else "label is missing for every class"
