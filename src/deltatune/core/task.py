"""Task: what is learned. Data shape, checks, model, loss, predictions and metrics of one kind of work.

The same loop, run folder, report and commands serve every task; a task file holds what is its own.

    rows of files --check--> good rows --divide or compose--> rows of the parts --fit--> the fitted task
    rows --encode--> examples (--pack, augment-->) --collate--> batch --run--> output --loss--> scalar
                                                        output (--decode-->) --read--> answers
                                                                      answers + rows --score--> metrics
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from types import SimpleNamespace
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn

from deltatune.core.config import Settings

Row = Mapping[str, Any]
"""One row of a data file under the task's own column words."""
Example = Mapping[str, Any]
"""One row as the model reads it, unpadded; has `length`, which batches are bucketed by."""
Batch = dict[str, Tensor]
"""Padded tensors; names that begin with `labels` never reach the model, the task computes the loss."""
LABELS = "labels"
TASK = "task"
"""Word under which a row names its task, when many are trained at once."""
GROUP = "group"
"""Word under which a row names what it belongs to, when rows are split by groups."""
CONDITION = "condition"
"""The task's id in an example, and those of all rows in a batch."""

SOURCES = "sources"
"""The numbers of the rows that a packed example consists of."""
TRUNK = "trunk"
"""The number under which the hidden states of an example are kept, and those of all rows in a batch."""


def inputs_of(batch: Batch) -> Batch:
    """What the model itself is called with.

    >>> inputs_of({"pixel_values": 1, "labels": 2, "labels_boxes": 3, "condition": 4, "trunk": 5})
    {'pixel_values': 1}
    """
    return {n: tensor for n, tensor in batch.items() if not n.startswith(LABELS) and n not in (CONDITION, TRUNK)}


@dataclass(frozen=True, slots=True)
class Loaded:
    """A base model ready for a task."""

    model: nn.Module
    processor: Any
    """Tokenizer, image processor or feature extractor, or an object of the task's own for `encode` and `collate`."""
    new: tuple[str, ...]
    """Modules the checkpoint did not have: they start random and must be trained whatever the method."""
    tokenizer: Any = None
    """What turns a text into token ids, where there is one: methods that start from words need it."""


@dataclass(frozen=True, slots=True)
class Column:
    """One column a task reads."""

    words: tuple[str, ...]
    """Names it goes by in files, the task's own word first."""
    required: bool = True
    path: bool = False
    """The value is the path of a file, relative to the folder of the data file."""


class ManyTasks(Settings):
    """The tasks of the rows, when many are trained at once."""

    column: str
    """Column that names the task of each row."""
    names: tuple[str, ...]
    """Names in the order of their ids."""


class Task(Settings, ABC):
    """Settings of a task. Subclasses are final, one per file, named in `type`."""

    type: ClassVar[str]
    title: ClassVar[str]
    columns: ClassVar[Mapping[str, Column]]
    """Task's word -> how the column may be called."""
    label: ClassVar[str | None]
    """The column that splits are stratified by."""
    key: ClassVar[tuple[str, ...]]
    """The columns that make two rows the same input; duplicates and overlap are found by them."""
    rest: ClassVar[str | None] = None
    """Word under which all columns that no other word matches arrive as one mapping; None: they are not read."""
    repeats: ClassVar[bool] = False
    """Rows may have the same input by nature (few columns of few values): repeats are kept, overlap is a warning."""
    lower_is_better: ClassVar[frozenset[str]] = frozenset({"loss"})
    """Metrics where less is more."""
    peft_task: ClassVar[str | None] = None
    """`task_type` of the adapter file."""
    trains_head: ClassVar[bool] = True
    """The model's head is trained whole with every method; false where it is the vocabulary of the base."""
    begin_with: ClassVar[str] = ""
    """Hub name of a small pretrained model to begin with; empty where there is none for every kind of row."""
    counted: ClassVar[str] = "tokens"
    """What the lengths of examples count, in the plural."""
    resamples: ClassVar[int] = 1000
    """Draws of the bootstrap behind the interval of the main metric; fewer where `score` is slow."""

    many: ManyTasks | None = None
    """Which task each row belongs to; filled in from `data.task_column`."""

    @property
    def predicts(self) -> Literal["classes", "next classes", "labels", "values", "sets"]:
        """What the logits are about: one class each, that of the next position, labels one by one, numbers, or a set
        of answers in no order.
        """
        return "classes"

    @property
    def mixes(self) -> bool:
        """Whether training rows are shown mixed with others (`mix`)."""
        return False

    @property
    @abstractmethod
    def metric(self) -> str:
        """The metric that chooses the best adapter, unless the settings say otherwise."""

    @property
    def label_names(self) -> Sequence[str]:
        """What the answers are called, once fitted; a prompt may start from their words."""
        return ()

    @property
    def rest_names(self) -> Collection[str]:
        """Columns that are read under `rest`, once fitted: whatever they are called, no other word is theirs."""
        return ()

    @abstractmethod
    def fit(self, rows: Sequence[Row]) -> "Task":
        """The task with everything that follows from the training rows filled in (label names, ranges)."""

    @abstractmethod
    def check(self, row: Row) -> str | None:
        """What is wrong with a row, or None. Works before and after `fit`."""

    def divide(self, rows: Sequence[Row], shares: Mapping[str, float], seed: int) -> dict[str, list[Row]] | None:
        """The rows of `train` and of every part in `shares`, composed already; None: single rows are drawn.

        For data where that would cheat: what is near in time, structure or person must not be on both sides.
        """
        return None

    def compose(self, rows: Sequence[Row]) -> list[Row]:
        """Rows of the task from good rows of a file, where they are not one to one (the items of a user, windows)."""
        return list(rows)

    def unused(self, rows: Sequence[Row], composed: Sequence[Row]) -> dict[int, str]:
        """Numbers of the good rows that nothing composed of them consists of, and why."""
        return {}

    def consists_of(self, composed: Sequence[Row]) -> int:
        """How many rows of a file composed rows consist of, each counted once; with those unused they are all."""
        return len(composed)

    def called(self, row: Row) -> str:
        """What a row is called that was composed of several and stands on no line."""
        return "a row"

    def identity(self, row: Row) -> Hashable:
        """What two rows with the same input have in common; white space and case do not count in texts."""
        return tuple(" ".join(str(row.get(word)).split()).casefold() for word in self.key)

    def asked(self, row: Row) -> Row:
        """A row without its answer, as it is when it comes to be predicted."""
        return {word: value for word, value in row.items() if word != self.label}

    def class_of(self, row: Row) -> str | None:
        """The one class a row with its answer is of, once fitted; None where answers are anything else."""
        return None

    def sketch(self, row: Row) -> Collection[Hashable]:
        """Features of the input; two rows that share nearly all of them are near-duplicates."""
        words = " ".join(str(row.get(word) or "") for word in self.key).casefold().split()
        return {*words, *pairwise(words)}

    @abstractmethod
    def load(self, model: str, dtype: Any = None) -> Loaded:
        """The pretrained model with this task's head; raises `AdapterError` or `SettingsError` with the fix."""

    @abstractmethod
    def encode(self, rows: Sequence[Row], processor: Any) -> list[Example]:
        """Rows as the model reads them; keeps the order, one example per row."""

    def unusable(self, example: Example) -> str | None:
        """Why an encoded row cannot be used although its row was good, or None."""
        return None

    def shown(self, row: Row, processor: Any) -> Sequence[tuple[str, bool]]:
        """The text the model reads for a row in pieces, and which of them the loss counts; empty where it is none."""
        return ()

    def pack(self, examples: Sequence[Example], model: nn.Module, processor: Any) -> list[Example]:
        """The training examples as they are batched: one to one, unless a task packs several in one or cuts one apart.

        Then they have `SOURCES`. The model has its adapter on; raises `SettingsError` where it cannot read packed rows.
        """
        return list(examples)

    def augment(self, example: Example, generator: np.random.Generator) -> Example:
        """A training example as it is shown this time; validation and test rows never come here."""
        return example

    def mix(self, example: Example, other: Example, generator: np.random.Generator) -> Example:
        """A training example with another one in it, both as they are shown this time; for tasks that say `mixes`."""
        return example

    @abstractmethod
    def collate(self, examples: Sequence[Example], processor: Any) -> Batch:
        """A padded batch; `labels` only when the examples have them."""

    def run(self, model: nn.Module, batch: Batch) -> Any:
        """What is read and scored: the model's output, or for tasks that generate what it wrote beside it."""
        return model(**inputs_of(batch))

    @abstractmethod
    def loss(self, output: Any, batch: Batch) -> Tensor:
        """Sum of the losses over the batch divided by `weight(batch)`: a scalar in float32."""

    def unread(self, output: Any) -> Any:
        """The output as of a model that finds every answer equally likely; None where the loss is not about that."""
        return None if self.predicts in ("values", "sets") else SimpleNamespace(logits=torch.zeros_like(output.logits))

    @abstractmethod
    def weight(self, batch: Batch) -> int:
        """Number of supervised units (rows, tokens): what accumulated losses are averaged over."""

    def decode(self, output: Any, processor: Any) -> Any:
        """The output with tokens turned into texts by the processor, for tasks whose answers are texts."""
        return output

    @abstractmethod
    def read(self, output: Any, batch: Batch) -> list[dict[str, Any]]:
        """One answer per row of the batch, plain values ready for JSON: the answer first, then what is about it."""

    def draw(self, answer: Mapping[str, Any], row: Row) -> Any:
        """A Pillow image of an answer on its input, for tasks whose answers are places in images."""
        return None

    def picture(self, row: Row) -> Any:
        """A Pillow image of the input, for tasks whose input can be looked at."""
        return None

    def plot(self, axes: Any, answer: Mapping[str, Any], row: Row) -> bool:
        """Draws an answer with its input on axes of matplotlib, for tasks that have curves; whether anything was."""
        return False

    def marked(self, answer: Mapping[str, Any] | None, row: Row) -> Sequence[tuple[str, str | None]]:
        """The text of a row in pieces with the label of each, as answered or, for None, as wanted; empty where the
        answers are no pieces of a text.
        """
        return ()

    def wanted(self, row: Row) -> Any:
        """What the answer should have been; None where a row does not say."""
        return row.get(self.label) if self.label else None

    def said(self, answer: Mapping[str, Any]) -> Any:
        """What of an answer stands beside what was wanted; None where there is nothing of the kind."""
        return next(iter(answer.values()), None)

    def merit(self, answer: Mapping[str, Any], row: Row) -> float:
        """How good one answer is: at most 1, which is right; an error, of which less is better, as minus itself."""
        value = float(self.score([answer], [row])[self.metric])
        return -value if self.metric in self.lower_is_better else value

    def certainty(self, answer: Mapping[str, Any]) -> float | None:
        """The chance that the model itself gives its answer, from 0 to 1; None where it gives none."""
        score = answer.get("score")
        return float(score) if isinstance(score, int | float) else None

    @abstractmethod
    def score(self, answers: Sequence[Mapping[str, Any]], rows: Sequence[Row]) -> dict[str, Any]:
        """Metrics of answers against rows; plain numbers, and lists for tables (`confusion`)."""

    def resampled(
        self, answers: Sequence[Mapping[str, Any]], rows: Sequence[Row]
    ) -> Callable[[np.ndarray], float | None]:
        """The main metric of some of the rows, by their numbers, as `score` has it; None where they have none.

        The bootstrap asks many times: a task says it here where there is something to be made once for all of them.
        """
        return lambda chosen: self.score([answers[i] for i in chosen], [rows[i] for i in chosen]).get(self.metric)

    @abstractmethod
    def baseline(self, train: Sequence[Row], rows: Sequence[Row]) -> tuple[str, dict[str, Any]]:
        """Name and metrics of the answer that never looks at the input (majority class, mean)."""

    def baselines(self, train: Sequence[Row], rows: Sequence[Row]) -> dict[str, dict[str, Any]]:
        """Metrics of simple models of the field, trained on the training rows, by name."""
        return {}

    def cut(self, example: Example) -> str | None:
        """What of an encoded row the model does not read because of the length limit, or None."""
        return f"cut to {example['length']} tokens" if example.get("truncated") else None

    def truncated(self, examples: Sequence[Example]) -> int:
        """How many examples lost something to the length limit."""
        return sum(self.cut(example) is not None for example in examples)
