"""Tabular classification: one class of two or many, or a number, from the columns of a table (fraud, credit).

row        {label, every other column of the file: a feature}
model      a feature-token transformer; columns its checkpoint does not know get new tokens, its head is new
loss       cross entropy, binary cross entropy per label, or squared error
metrics    AUC, average precision, recall at a fixed rate of false alarms, calibration; accuracy, macro F1; R2
"""

import logging
from collections import Counter
from collections.abc import Collection, Hashable, Mapping, Sequence
from typing import Annotated, Any, ClassVar, Self

import numpy as np
import torch
from pydantic import Field
from transformers import AutoConfig

from deltatune.core import label_scores, suspects, table_baselines
from deltatune.core.classification import Classification
from deltatune.core.config import Settings
from deltatune.core.errors import DataError, SettingsError, did_you_mean
from deltatune.core.features import Feature, Features, Kind, Reading, Scaling, described
from deltatune.core.labels import names, number
from deltatune.core.pretrained import check_source, pretrained, quiet
from deltatune.core.task import Batch, Column, Example, Loaded, Row
from deltatune.models.feature_tokens import FeatureTokensConfig, FeatureTokensForClassification

logger = logging.getLogger("deltatune")

NUMBERS = 0.9
"""Share of the known values that spell numbers, from which on a column is one of numbers."""


class TableAugmentation(Settings):
    """Variation of the training rows."""

    swap: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Share of the columns whose value is that of another row, drawn as often as it occurs."""
    noise: Annotated[float, Field(ge=0)] = 0.0
    """Standard deviation of what is added to the scaled numbers."""


class TabularClassification(Classification):
    """Settings of tabular classification."""

    type: ClassVar[str] = "tabular-classification"
    title: ClassVar[str] = "Classification and regression of table rows"
    columns: ClassVar[Mapping[str, Column]] = {
        "label": Column(("label", "labels", "target", "class", "outcome", "y")),
    }
    rest: ClassVar[str | None] = "features"
    repeats: ClassVar[bool] = True
    key: ClassVar[tuple[str, ...]] = ("features",)
    counted: ClassVar[str] = "values"
    peft_task: ClassVar[str | None] = "SEQ_CLS"
    resamples: ClassVar[int] = 200

    kinds: dict[str, Kind] = {}
    """Columns whose kind is not what it looks like (`{postcode: category}`); such a column is never left out."""
    reading: Reading = Reading()
    """How cells are read."""
    scaling: Scaling = "quantile"
    """Scale of the numbers of new columns: by rank among the training rows, or by mean and spread."""
    min_count: Annotated[int, Field(ge=1)] = 2
    """Rows that a value of a new category column needs for an entry of its own; rarer ones share that of the unseen."""
    max_values: Annotated[int, Field(ge=1)] = 1000
    """Most values of a new category column that have entries, the most frequent first."""
    positive: str | None = None
    """Of two classes the one that is looked for; none: the rarer in the training rows."""
    false_positive_rate: Annotated[float, Field(gt=0, lt=1)] = 0.05
    """Share of the other class that may be taken for the positive one, at which the recall is measured."""
    augmentation: TableAugmentation | None = None
    """Vary the training rows."""
    features: tuple[Feature, ...] | None = None
    """The columns as the training rows have them; filled in."""
    left_out: tuple[str, ...] = ()
    """Columns that carry no information; filled in."""

    @property
    def metric(self) -> str:
        """AUC for two classes."""
        return "auc" if self.problem == "single" and len(self.labels or ()) == 2 else super().metric

    @property
    def rest_names(self) -> Collection[str]:
        """The columns as the training rows have them: one called `class` is not the label where that is missing."""
        return [feature.name for feature in self.features or ()]

    # -- rows

    def check_input(self, row: Row) -> str | None:
        """Values that are none, rows without any, and columns that the training rows had and this row has not."""
        given = row["features"]
        for name, value in given.items():
            if isinstance(value, list | dict):
                return f"a value is a {type(value).__name__} (column {name!r})"
        absent = [feature.name for feature in self.features or () if feature.name not in given]
        if absent:
            return f"columns are missing ({', '.join(map(repr, absent))}; an empty cell is a value that is not known)"
        if all(self.reading.word(value) is None for value in given.values()):
            return "every value is missing"
        return None

    def sketch(self, row: Row) -> Collection[Hashable]:
        """Columns with their values."""
        return {(name, self.reading.word(value)) for name, value in row["features"].items()}

    def fit(self, rows: Sequence[Row]) -> Self:
        """Labels and the columns with their kinds, scales and vocabularies; suspicious columns are named."""
        fitted = super().fit(rows)
        columns = list(dict.fromkeys(name for row in rows for name in row["features"]))
        for name in self.kinds:
            if name not in columns:
                raise SettingsError(f"task.kinds: no column {name!r}", hint=did_you_mean(name, columns))
        values = {name: [row["features"].get(name) for row in rows] for name in columns}
        kinds = {name: self.kinds.get(name) or self._kind(values[name]) for name in columns}
        free = [name for name in columns if name not in self.kinds]
        left_out = tuple(name for name in free if self._useless(name, values[name], kinds[name]))
        features = tuple(
            described(name, values[name], kinds[name], self.reading, self.scaling, self.min_count, self.max_values)
            for name in columns
            if name not in left_out
        )
        if not features:
            raise DataError("no column besides the label carries information", hint="see the warnings above")
        update = {"features": features, "left_out": left_out, "positive": self._positive(fitted, rows)}
        if fitted.problem == "single":
            self._warn_of_leaks(features, values, [names(row["label"])[0] for row in rows])
        return fitted.model_copy(update=update)

    def _kind(self, values: Sequence[Any]) -> Kind:
        given = [value for value in values if self.reading.word(value) is not None]
        numbers = sum(self.reading.number(value) is not None for value in given)
        return "number" if given and numbers >= NUMBERS * len(given) else "category"

    def _useless(self, name: str, values: Sequence[Any], kind: Kind) -> bool:
        words = [self.reading.word(value) for value in values]
        why = None
        if suspects.is_constant(words):
            why = f"it is {words[0]!r} in all training rows" if words[0] is not None else "it is empty"
        elif kind == "category" and suspects.names_rows(words):
            why = "nearly every row has a value of its own, as an identifier has"
        elif kind == "number" and suspects.counts_rows([self.reading.number(value) for value in values]):
            logger.warning("column %r grows from row to row: leave it out of the file if it is a row number", name)
        if why is not None:
            logger.warning("column %r is left out: %s (task.kinds: {%s: %s} keeps it)", name, why, name, kind)
        return why is not None

    def _warn_of_leaks(
        self, features: Sequence[Feature], values: Mapping[str, Sequence[Any]], labels: Sequence[str]
    ) -> None:
        for feature in features:
            column = values[feature.name]
            if feature.kind == "category":
                told = suspects.tells([self.reading.word(value) for value in column], labels)
            else:
                told = suspects.separates([self.reading.number(value) for value in column], labels)
            if told:
                logger.warning(
                    "column %r tells the label by itself in all %d training rows: is it known before the label is?",
                    feature.name,
                    len(labels),
                )

    def _positive(self, fitted: Self, rows: Sequence[Row]) -> str | None:
        """The class that is looked for, where there are two; raises `SettingsError` for one that is none of them."""
        if fitted.problem != "single" or len(fitted.labels or ()) != 2:
            if self.positive is not None:
                raise SettingsError("task.positive has no effect without two classes", hint="take it out")
            return None
        if self.positive is None:
            counts = Counter(names(row["label"])[0] for row in rows)
            return min(reversed(fitted.labels or ()), key=lambda label: counts[label])
        if self.positive not in fitted.label_names:
            raise SettingsError(
                f"task.positive: no class {self.positive!r}", hint=did_you_mean(self.positive, fitted.label_names)
            )
        return self.positive

    # -- model

    def load(self, model: str, dtype: Any = None) -> Loaded:
        """The network with tokens for columns that it does not know; those, and the head, are new."""
        known = _base(model)
        features, table = self.features or (), {feature.name: feature for feature in self.features or ()}
        for column in known:
            own = table.get(column.name)
            if own is not None and own.kind == "category" and column.kind == "number":
                raise SettingsError(
                    f"column {own.name!r} is one of numbers to the model, the training rows have words such as "
                    f"{own.values[0] if own.values else None!r}",
                    hint="give it another name in the file, or read it as numbers (task.kinds)",
                )
        base = {column.name for column in known}
        added = [feature for feature in features if feature.name not in base]
        self._say(base, added)
        extra = {"added": [feature.model_dump(mode="json") for feature in added]} if added else {}
        network, new = pretrained(
            FeatureTokensForClassification, model, dtype, "a table model", **self.config(), **extra
        )
        outer = tuple(path for path in new if not any(path.startswith(f"{other}.") for other in new))
        return Loaded(network, Features(known, added, self.reading), outer)

    def _say(self, base: Collection[str], added: Sequence[Feature]) -> None:
        """Which columns the model does not know, and which of its own the table lacks."""
        unread = sorted(set(base) - {feature.name for feature in self.features or ()} - set(self.left_out))
        if added:
            given = ", ".join(feature.name for feature in added[:5])
            logger.warning("%d columns are new to the model and get new tokens: %s", len(added), given)
        if unread:
            logger.warning("%d columns of the model are not in the table: %s", len(unread), ", ".join(unread[:5]))

    def encode(self, rows: Sequence[Row], processor: Any) -> list[Example]:
        """Scaled numbers with NaN where missing, and places in the tables of values."""
        given = [row["features"] for row in rows]
        numbers, categories, odd = processor.encode(given)
        self._warn_of_cells(odd, {feature.name for feature in processor.numbers})
        read = {feature.name for feature in (*processor.numbers, *processor.categories)}
        unknown = sorted({name for row in given for name in row} - read - set(self.left_out))
        if unknown:
            logger.warning("columns that the training rows do not have are not read: %s", ", ".join(unknown))
        shared = {"length": len(read) + 1} | ({"columns": processor} if self.augmentation else {})
        return [
            {
                "numbers": n,
                "categories": c,
                **shared,
                **({"label": self.target(row["label"])} if "label" in row else {}),
            }
            for n, c, row in zip(numbers, categories, rows, strict=True)
        ]

    def _warn_of_cells(self, odd: Mapping[str, Counter[str]], numbers: Collection[str]) -> None:
        for kind, what in ((True, "no numbers and are read as missing"), (False, "rare or unseen and share one entry")):
            found = [f"{n} {c.total()} (such as {next(iter(c))!r})" for n, c in odd.items() if (n in numbers) is kind]
            if found:
                logger.warning("values that are %s: %s", what, ", ".join(found))

    def augment(self, example: Example, generator: np.random.Generator) -> Example:
        """A training row with values of other rows in some columns and noise on its numbers."""
        if self.augmentation is None:
            return example
        columns: Features = example["columns"]
        numbers, categories = example["numbers"].copy(), example["categories"].copy()
        for place, feature in enumerate(columns.numbers):
            if generator.random() < self.augmentation.swap:
                numbers[place] = feature.drawn(generator)
        for place, (feature, offset) in enumerate(zip(columns.categories, columns.offsets, strict=True)):
            if generator.random() < self.augmentation.swap:
                categories[place] = offset + feature.drawn(generator)
        numbers += np.float32(self.augmentation.noise) * generator.standard_normal(len(numbers), dtype=np.float32)
        return {**example, "numbers": numbers, "categories": categories}

    def collate(self, examples: Sequence[Example], processor: Any) -> Batch:
        """Numbers [B, N], categories [B, C]."""
        batch = {
            "numbers": torch.from_numpy(np.stack([example["numbers"] for example in examples])),
            "categories": torch.from_numpy(np.stack([example["categories"] for example in examples])),
        }
        if "label" in examples[0]:
            batch["labels"] = torch.tensor([example["label"] for example in examples])
        return batch

    # -- scores

    def score(self, answers: Sequence[Mapping[str, Any]], rows: Sequence[Row]) -> dict[str, Any]:
        """Of two classes the positive one is what AUC, average precision and recall are about."""
        found = super().score(answers, rows)
        if self.positive is None:
            return found
        wanted = [names(row["label"])[0] == self.positive for row in rows]
        given = [float(answer["probabilities"][self.positive]) for answer in answers]
        recall = label_scores.recall_at(wanted, given, self.false_positive_rate)
        return {**found, **({} if recall is None else {"recall_at_false_positive_rate": recall})}

    @property
    def ranked_labels(self) -> Sequence[str]:
        """The positive class last."""
        return sorted(self.label_names, key=lambda label: label == self.positive)

    def baselines(self, train: Sequence[Row], rows: Sequence[Row]) -> dict[str, dict[str, Any]]:
        """Gradient boosting and a linear model on the same columns; several labels at once have none."""
        if self.problem == "multi-label":
            return {}
        columns = Features((), self.features or (), self.reading)
        of_train, of_rows = (columns.encode([row["features"] for row in part])[:2] for part in (train, rows))
        regression = self.problem == "regression"
        wanted = [number(row["label"]) if regression else names(row["label"])[0] for row in train]
        found = {}
        for name, given in table_baselines.answers(columns, of_train, wanted, of_rows, regression=regression).items():
            found[name] = self.score(given, rows)
        return found


def _base(model: str) -> list[Feature]:
    """The columns that a pretrained network knows; raises `SettingsError` for another kind of model."""
    check_source(model)
    with quiet():
        try:
            config = AutoConfig.from_pretrained(model, trust_remote_code=False)
        except (OSError, ValueError) as error:
            raise SettingsError(f"model {model!r} has no usable config: {str(error).splitlines()[0]}") from None
    if not isinstance(config, FeatureTokensConfig):
        raise SettingsError(
            f"model {model!r} is of type {config.model_type}, which reads no tables",
            hint=f"give a model of type {FeatureTokensConfig.model_type}",
        )
    known, added = config.features()
    if added:
        raise SettingsError(f"model {model!r} has columns added already", hint="give the model it was adapted from")
    return known
