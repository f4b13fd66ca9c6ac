"""Text classification: one class of two or many, several labels at once, or a number per text.

row        {text, text_pair?, label}
model      any `transformers` sequence classifier; its head is new when the checkpoint has none
loss       cross entropy, binary cross entropy per label, or squared error
metrics    accuracy, macro F1, Matthews, confusion; micro F1, subset accuracy; Pearson, Spearman, R2
"""

import logging
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
import transformers
from pydantic import Field
from scipy import stats
from sklearn import metrics
from torch import Tensor
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from deltatune.core.errors import DataError, SettingsError, did_you_mean
from deltatune.core.task import Batch, Column, Example, Loaded, Row, Task

logger = logging.getLogger("deltatune")

MOST_CLASSES = 1000
PAD_TO = 8
"""Lengths of batches are multiples of this: fewer shapes, aligned memory."""


class TextClassification(Task):
    """Settings of text classification."""

    type: ClassVar[str] = "text-classification"
    title: ClassVar[str] = "Text classification and regression"
    columns: ClassVar[Mapping[str, Column]] = {
        "text": Column(
            ("text", "sentence", "sentence1", "review", "content", "tweet", "comment", "question", "premise")
        ),
        "text_pair": Column(("text_pair", "sentence2", "hypothesis"), required=False),
        "label": Column(("label", "labels", "class", "category", "target", "sentiment")),
    }
    label: ClassVar[str | None] = "label"
    key: ClassVar[tuple[str, ...]] = ("text", "text_pair")
    lower_is_better: ClassVar[frozenset[str]] = frozenset({"loss", "mse", "mae"})
    peft_task: ClassVar[str | None] = "SEQ_CLS"

    problem: Literal["auto", "single", "multi-label", "regression"] = "auto"
    """One class per text, several, or a number; auto looks at the labels."""
    labels: tuple[str, ...] | None = None
    """Names of the classes in the order of the model's outputs; none takes them from the training rows, sorted."""
    max_length: Annotated[int, Field(ge=2)] = 256
    """Longest text in tokens; what is cut off is counted."""

    @property
    def metric(self) -> str:
        """What chooses the best adapter."""
        return {"multi-label": "micro_f1", "regression": "pearson"}.get(self.problem, "accuracy")

    @property
    def predicts(self) -> Literal["classes", "labels", "values"]:
        """What the logits are about."""
        kinds: dict[str, Literal["labels", "values"]] = {"multi-label": "labels", "regression": "values"}
        return kinds.get(self.problem, "classes")

    # -- rows

    def check(self, row: Row) -> str | None:
        """An empty text, a text that is none, or a label that does not fit."""
        for word in ("text", "text_pair"):
            value = row.get(word)
            if value is None and (word == "text_pair" or word not in row):
                continue
            if not isinstance(value, str):
                return f"{word} is not text ({type(value).__name__})"
            if not value.strip():
                return f"{word} is empty"
        return self._check_label(row["label"]) if "label" in row else None

    def _check_label(self, value: Any) -> str | None:
        if value is None or value == "":
            return "label is missing"
        if isinstance(value, float) and not math.isfinite(value):
            return f"label is not a finite number ({value})"
        if self.problem == "regression":
            return None if _number(value) is not None else f"label is not a number ({value!r})"
        if isinstance(value, dict) or (isinstance(value, list) and any(isinstance(v, list | dict) for v in value)):
            return f"label is neither a name nor a list of names ({type(value).__name__})"
        if self.problem == "single" and isinstance(value, list):
            return "label is a list where one class is expected"
        if self.labels is None:
            return None
        unknown = [name for name in _names(value) if name not in self.labels]
        return f"label is unknown ({unknown[0]!r})" if unknown else None

    @property
    def label_names(self) -> Sequence[str]:
        """The classes."""
        return self.labels or ()

    def fit(self, rows: Sequence[Row]) -> "TextClassification":
        """Kind of problem and names of the classes, from the labels of the training rows."""
        values = [row["label"] for row in rows]
        problem = _problem(values) if self.problem == "auto" else self.problem
        if problem == "regression":
            return self.model_copy(update={"problem": problem, "labels": ()})
        found = {name for value in values for name in _names(value)}
        labels = self.labels or tuple(sorted(found, key=_natural))
        if len(labels) < 2:
            raise DataError(
                f"only one class in the training rows ({', '.join(labels)})", hint="two are needed to learn"
            )
        if len(labels) > MOST_CLASSES or (len(rows) > 20 and len(found) > len(rows) / 2):
            raise DataError(
                f"{len(found)} different labels in {len(rows)} training rows, such as {labels[0]!r}",
                hint="is it the right column (data.columns.label)? for numbers set task.problem: regression",
            )
        return self.model_copy(update={"problem": problem, "labels": labels})

    # -- model

    def load(self, model: str, dtype: Any = None) -> Loaded:
        """The classifier and its tokenizer; modules the checkpoint lacks are reported as new."""
        _check_source(model)
        regression = self.problem == "regression"
        names = ["value"] if regression else list(self.labels or ())
        kinds = {"regression": "regression", "multi-label": "multi_label_classification"}
        with _quiet():
            try:
                tokenizer = AutoTokenizer.from_pretrained(model)
                network, info = AutoModelForSequenceClassification.from_pretrained(
                    model,
                    dtype=dtype or torch.float32,
                    output_loading_info=True,
                    ignore_mismatched_sizes=True,
                    num_labels=len(names),
                    id2label=dict(enumerate(names)),
                    label2id={name: index for index, name in enumerate(names)},
                    problem_type=kinds.get(self.problem, "single_label_classification"),
                )
            except (OSError, ValueError) as error:
                reason = str(error).strip().splitlines()[0]
                raise SettingsError(f"model {model!r} cannot be loaded as a text classifier: {reason}") from None
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        if network.config.pad_token_id is None:
            network.config.pad_token_id = tokenizer.pad_token_id
        tokenizer.model_max_length = min(tokenizer.model_max_length, _positions(network))
        keys = {*info["missing_keys"], *(entry[0] for entry in info["mismatched_keys"])}
        return Loaded(network, tokenizer, tuple(sorted({key.rpartition(".")[0] for key in keys})))

    def encode(self, rows: Sequence[Row], processor: Any) -> list[Example]:
        """Token ids, cut to the length limit; the label as the model's output index or vector."""
        texts = [row["text"] for row in rows]
        pairs = [row.get("text_pair") for row in rows]
        limit = min(self.max_length, _longest(processor))
        given = {"text_pair": pairs} if rows and any(pair is not None for pair in pairs) else {}
        whole = processor(texts, truncation=False, verbose=False, **given)["input_ids"]
        encoded = processor(texts, truncation=True, max_length=limit, verbose=False, **given)
        examples: list[Example] = []
        for index, row in enumerate(rows):
            example = {name: values[index] for name, values in encoded.items()}
            example["length"] = len(example["input_ids"])
            example["truncated"] = len(whole[index]) > example["length"]
            if "label" in row:
                example["label"] = self._target(row["label"])
            examples.append(example)
        return examples

    def _target(self, value: Any) -> Any:
        if self.problem == "regression":
            return _number(value)
        assert self.labels is not None
        if self.problem == "multi-label":
            return [float(name in _names(value)) for name in self.labels]
        return self.labels.index(_names(value)[0])

    def collate(self, examples: Sequence[Example], processor: Any) -> Batch:
        """Padded to the longest text, rounded up to a multiple of 8 within the model's limit."""
        names = [name for name in processor.model_input_names if name in examples[0]]
        longest = max(example["length"] for example in examples)
        length = min(-(-longest // PAD_TO) * PAD_TO, max(longest, _longest(processor)))
        batch: Batch = dict(
            processor.pad(
                {name: [example[name] for example in examples] for name in names},
                padding="max_length",
                max_length=length,
                return_tensors="pt",
                verbose=False,
            )
        )
        if "label" in examples[0]:
            batch["labels"] = torch.tensor([example["label"] for example in examples])
        return batch

    # -- learning

    def loss(self, output: Any, batch: Batch) -> Tensor:
        """Mean over the rows of the batch, in float32."""
        logits, labels = output.logits.float(), batch["labels"]
        if self.problem == "regression":
            return F.mse_loss(logits[:, 0], labels.float())
        if self.problem == "multi-label":
            return F.binary_cross_entropy_with_logits(logits, labels.float())
        return F.cross_entropy(logits, labels)

    def weight(self, batch: Batch) -> int:
        """Rows."""
        return len(batch["labels"])

    def read(self, output: Any, batch: Batch) -> list[dict[str, Any]]:
        """Class with its probability, labels above one half, or the value; all probabilities beside."""
        logits = output.logits.float().cpu()
        if self.problem == "regression":
            return [{"value": value} for value in logits[:, 0].tolist()]
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

    # -- scores

    def score(self, answers: Sequence[Mapping[str, Any]], rows: Sequence[Row]) -> dict[str, Any]:
        """The metrics of the problem, from scikit-learn and scipy."""
        if self.problem == "regression":
            return _regression([a["value"] for a in answers], [float(_number(r["label"]) or 0.0) for r in rows])
        labels = list(self.labels or ())
        if self.problem == "multi-label":
            wanted = np.array([[n in _names(r["label"]) for n in labels] for r in rows])
            given = np.array([[n in a["labels"] for n in labels] for a in answers])
            return _multi_label(wanted, given)
        return _single([_names(r["label"])[0] for r in rows], [a["label"] for a in answers], labels)

    def baseline(self, train: Sequence[Row], rows: Sequence[Row]) -> tuple[str, dict[str, Any]]:
        """The most frequent class or label set, or the mean."""
        if self.problem == "regression":
            mean = float(np.mean([_number(row["label"]) for row in train]))
            return "mean", self.score([{"value": mean}] * len(rows), rows)
        common = Counter(tuple(_names(row["label"])) for row in train).most_common(1)[0][0]
        if self.problem == "multi-label":
            return "most frequent labels", self.score([{"labels": list(common)}] * len(rows), rows)
        return "majority class", self.score([{"label": common[0]}] * len(rows), rows)


def _single(wanted: Sequence[str], given: Sequence[str], labels: Sequence[str]) -> dict[str, Any]:
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


def _multi_label(wanted: Any, given: Any) -> dict[str, Any]:
    return {
        "micro_f1": float(metrics.f1_score(wanted, given, average="micro", zero_division=0.0)),
        "macro_f1": float(metrics.f1_score(wanted, given, average="macro", zero_division=0.0)),
        "subset_accuracy": float(metrics.accuracy_score(wanted, given)),
    }


def _regression(given: Sequence[float], wanted: Sequence[float]) -> dict[str, Any]:
    varies = len(set(given)) > 1 and len(set(wanted)) > 1  # a correlation with a constant does not exist
    return {
        "pearson": float(stats.pearsonr(given, wanted).statistic) if varies else 0.0,
        "spearman": float(stats.spearmanr(given, wanted).statistic) if varies else 0.0,
        "mse": float(metrics.mean_squared_error(wanted, given)),
        "mae": float(metrics.mean_absolute_error(wanted, given)),
        "r2": float(metrics.r2_score(wanted, given)) if len(set(wanted)) > 1 else 0.0,
    }


def _problem(values: Sequence[Any]) -> Literal["single", "multi-label", "regression"]:
    """Lists are several labels, fractions are numbers, everything else is a class."""
    if any(isinstance(value, list) for value in values):
        return "multi-label"
    numbers = [_number(value) for value in values]
    if all(n is not None for n in numbers) and any(n != int(n) for n in numbers if n is not None):
        return "regression"
    return "single"


def _names(value: Any) -> list[str]:
    """Class names of a label; whole numbers without a decimal point, whatever file they come from."""
    values = value if isinstance(value, list) else [value]
    return [str(int(v)) if isinstance(v, float) and v.is_integer() else str(v).strip() for v in values]


def _number(value: Any) -> float | None:
    if isinstance(value, bool | list | dict):
        return None
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None


def _natural(name: str) -> tuple[int, float, str]:
    """Numbers by value, before words."""
    number = _number(name)
    return (0, number, name) if number is not None else (1, 0.0, name)


def _longest(tokenizer: Any) -> int:
    """The most tokens the tokenizer says its model takes."""
    return min(int(tokenizer.model_max_length), 1 << 20)


def _positions(network: Any) -> int:
    """The most tokens the model has positions for; RoBERTa-type models lose those up to the padding index."""
    positions = getattr(network.config, "max_position_embeddings", None) or 1 << 20
    embeddings = getattr(network.base_model, "embeddings", None)
    padding = getattr(embeddings, "padding_idx", None)
    return int(positions) - (padding + 1 if padding is not None else 0)


def _check_source(model: str) -> None:
    """A path that is not there is no hub name."""
    path = Path(model)
    looks_local = model.startswith((".", "/", "~")) or model.count("/") > 1 or path.exists()
    if looks_local and not (path / "config.json").is_file():
        near = [str(p) for p in path.parent.iterdir() if p.is_dir()] if path.parent.is_dir() else []
        what = "has no config.json" if path.is_dir() else "does not exist"
        raise SettingsError(f"model folder {model} {what}", hint=did_you_mean(model, near) if near else None)


class _quiet:
    """Keeps the loading reports of transformers off the screen: we report what is new ourselves."""

    def __enter__(self) -> None:
        self.level = transformers.logging.get_verbosity()
        self.bars = transformers.logging.is_progress_bar_enabled()
        transformers.logging.set_verbosity_error()
        transformers.logging.disable_progress_bar()

    def __exit__(self, *_: object) -> None:
        transformers.logging.set_verbosity(self.level)
        if self.bars:
            transformers.logging.enable_progress_bar()
