"""What a training is given, and what it amounted to."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from deltatune.core.config import TrainingSettings
from deltatune.core.task import Example, Task
from deltatune.engine.attach import Handle
from deltatune.store.run import RunFolder
from deltatune.train.energy import Spent
from deltatune.train.teacher import Teacher


def _numbered(row: int) -> list[dict[str, Any]]:
    """Rows that come from no file."""
    return [{"row": row}]


@dataclass(frozen=True)
class Job:
    """Everything a training works on."""

    handle: Handle
    task: Task
    processor: Any
    examples: Sequence[Example]
    settings: TrainingSettings
    evaluate: Callable[[], dict[str, Any]]
    """Metrics on the validation rows."""
    save_best: Callable[[], None]
    """Writes the adapter of the best evaluation so far."""
    folder: RunFolder
    quiet: bool = False
    teacher: Teacher | None = None
    """Whose answers count too, by `settings.distillation`."""
    places: Callable[[int], list[dict[str, Any]]] = _numbered
    """Where the rows of a training example stand: `file` and `line` of each."""
    label: str = ""
    """What its lines begin with on the screen, where several trainings are shown."""
    content: str = ""
    """Hash of what stands in the training rows, by which a resumed training knows them; empty: by lengths alone."""


@dataclass(frozen=True, slots=True)
class Trained:
    """What a training amounted to."""

    steps: int
    seconds: float
    """Time in the steps themselves, without evaluations and checkpoints."""
    tokens: int
    """Real tokens, without padding."""
    peak_memory_bytes: int
    best_step: int
    best_metric: float
    stopped: str
    """`done`, or why it ended earlier."""
    learning_rate: float
    """Peak rate that was used."""
    resumed_at: int
    """The step that a resumed run went on from, 0 for one that was not resumed."""
    examples: int
    """Those that its steps have shown since it was resumed, each time one is shown."""
    spent: Spent
    """Energy of the steps and the evaluations between, since it was resumed."""
    together: int = 1
    """Trainings that shared their passes; `seconds` and `spent` are shares of theirs."""
