"""Stage: a config's run on some of its rows, in a scratch folder, with an adapter that can be put back to its start.

What a run takes is made here as the run makes it (`finetuning`); only the rows are fewer, and nothing is kept of the
frozen blocks. The config's own output folder is never touched.
"""

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from accelerate.utils import set_seed
from torch import Tensor, nn

from deltatune.adapters import Adapter
from deltatune.core.config import RunSettings
from deltatune.core.method import Method
from deltatune.core.task import Batch, Example, Row, Task
from deltatune.data.batch import collate
from deltatune.data.load import Splits
from deltatune.data.tasks import encode
from deltatune.data.usable import usable
from deltatune.engine.precision import base_dtype
from deltatune.finetuning import Running, resolve
from deltatune.ground import Ground, attached
from deltatune.rehearsal.clock import Clock, affordable
from deltatune.rehearsal.equal import output_of
from deltatune.rehearsal.some_rows import place_of, sampled
from deltatune.store.run import RunFolder
from deltatune.train.teacher import teacher_of

MOST_ROWS, FEWEST_ROWS = 5_000, 200
"""Training rows that are encoded."""
TRIED = 32
"""Rows by which the time to encode one is measured."""


@dataclass(eq=False)
class Stage:
    """What the checks of a model act on."""

    settings: RunSettings
    """The config's."""
    splits: Splits
    """All rows."""
    running: Running
    """The run on some of them."""
    start: dict[str, Tensor]
    """The adapter as it was attached."""
    clock: Clock
    folder: Path
    """Where anything may be written."""
    pace_s: float = 0.0
    """Seconds of a pass per row and unit of length; 0 until the longest batch has been tried."""

    @property
    def ground(self) -> Ground:
        """Base, some rows, and these as the model reads them."""
        return self.running.ground

    @property
    def task(self) -> Task:
        """The fitted task."""
        return self.running.task

    @property
    def adapter(self) -> Adapter:
        """The adapter that will be trained."""
        return self.running.adapter

    @property
    def model(self) -> nn.Module:
        """The network that carries it."""
        return self.adapter.model

    @property
    def rate(self) -> float:
        """Peak learning rate of the config."""
        return self.settings.training.learning_rate or self.adapter.method.learning_rate

    def reset(self) -> None:
        """The adapter as it was attached."""
        self.adapter.load_state_dict(self.start)
        for parameter in self.adapter.parameters():
            parameter.grad = None

    def batch(self, examples: Sequence[Example]) -> Batch:
        """Examples as the model takes them, on its device."""
        device = next(self.model.parameters()).device
        return {n: t.to(device) for n, t in collate(self.task, examples, self.ground.loaded.processor).items()}

    def loss(self, examples: Sequence[Example]) -> tuple[float, float | None]:
        """Loss of the adapter on examples, and that of a model that finds every answer equally likely."""
        batch = self.batch(examples)
        with self.adapter.roster.activated(self.adapter.name):
            output = output_of(self.model, batch)
        unread = self.task.unread(output)
        chance = None if unread is None else float(self.task.loss(unread, batch))
        return float(self.task.loss(output, batch)), chance

    def place(self, row: Row) -> str:
        """`file:line` of a row."""
        return place_of(row, self.splits)


def stage_of(settings: RunSettings, method: Method, splits: Splits, clock: Clock, folder: Path) -> Stage:
    """Loads the model, encodes some rows and attaches the adapter; raises what a training would raise."""
    training = settings.training
    set_seed(training.seed)
    loaded = splits.task.load(settings.model, base_dtype(training.bf16))
    few = sampled(splits, _rows_within(clock.share(0.1), splits, loaded.processor), training.seed)
    few, examples = usable(few, loaded.processor, settings.data.max_rejected)
    ground = Ground(few, examples, loaded)
    adapter = attached(ground, method, training.seed)
    own = training.model_copy(update={"trunk_cache_gb": 0.0})
    scratch = settings.model_copy(update={"training": own, "output_dir": os.fspath(folder / "run")})
    teacher = teacher_of(training.distillation, splits.task, loaded, adapter, few.train)
    resolved = resolve(scratch, splits.task, method)
    running = Running(scratch, resolved, ground, adapter, RunFolder(folder / "run"), quiet=True, teacher=teacher)
    running.keep_trunk([running])
    start = {name: tensor.detach().clone() for name, tensor in adapter.state_dict().items()}
    return Stage(settings, splits, running, start, clock, folder)


def _rows_within(seconds: float, splits: Splits, processor: object) -> int:
    """How many rows can be encoded in so many seconds."""
    rows = splits.train[:TRIED]
    encode(splits.task, rows[:1], processor)  # the first call warms up
    began = time.perf_counter()
    encode(splits.task, rows, processor)
    each = (time.perf_counter() - began) / len(rows)
    return affordable(seconds, each, FEWEST_ROWS, MOST_ROWS)
