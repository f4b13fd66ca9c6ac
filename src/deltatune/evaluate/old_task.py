"""Old task: what the head of an earlier training reaches on its own rows, with the backbone as it is now."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from deltatune.core import registry
from deltatune.core.config import OldTaskSettings
from deltatune.core.errors import DataError, SettingsError
from deltatune.core.task import Example, Row, Task
from deltatune.data.check import Placed, Rejected, summary
from deltatune.data.load import rows_of
from deltatune.data.read import read
from deltatune.data.split import sample
from deltatune.data.usable import with_reasons
from deltatune.engine.blocks import base_parameters
from deltatune.evaluate.around import around, gathered
from deltatune.evaluate.old_head import headed, unnamed
from deltatune.evaluate.score import score

logger = logging.getLogger("deltatune")


@dataclass(frozen=True)
class OldTask:
    """A head around the backbone of the network that is trained, and rows that it learned to answer."""

    task: Task
    network: Any
    processor: Any
    rows: Sequence[Row]
    examples: Sequence[Example]
    rejected: int
    """Rows of the file that cannot be used."""

    @classmethod
    def of(cls, asked: OldTaskSettings, network: Any, model: str, seed: int) -> "OldTask":
        """Head and rows by the settings; `network` was read from the checkpoint `model`, the rows are drawn by a seed.

        Raises `SettingsError` for a checkpoint without a trained head of the task, for one of another backbone, and
        where the names of its outputs are not those of the rows; `DataError` where no row can be used.
        """
        source, given = asked.model or model, registry.task(asked.task)
        places = rows_of(read(asked.data, Path.cwd()), unnamed(given), asked.columns, labelled=True)
        task, loaded = headed(given, _good(places), source, next(network.parameters()).dtype)
        places = [_again(place, task) for place in places]
        drawn = sample(task.compose(_good(places)), asked.rows, seed)
        examples, reasons = with_reasons(task, drawn, loaded.processor)
        kept = [index for index, reason in enumerate(reasons) if reason is None]
        if not kept:
            raise DataError(f"forgetting.old.data: no row of {asked.data} can be read, such as: {reasons[0]}")
        wrong = [place for place in places if isinstance(place, Rejected)]
        if wrong:
            logger.warning("forgetting.old.data: %s", summary(wrong, len(places)))
        own: Any = loaded.model
        backbone = own.base_model
        whole = around(own, network, source, f"trained head of {task.type}")
        _check_backbone(backbone, network.base_model, source, model)
        rows, read_ones = [drawn[index] for index in kept], [examples[index] for index in kept]
        return cls(task, whole, loaded.processor, rows, read_ones, len(wrong) + len(drawn) - len(kept))

    def metric(self, batch_size: int) -> float:
        """The task's metric with the backbone as it is now; raises `DataError` where these rows have none."""
        gathered(self.network)
        found = score(self.network, self.task, self.processor, self.rows, self.examples, batch_size, interval=False)
        if self.task.metric not in found:
            raise DataError(f"{self.task.metric} cannot be computed on these {len(self.rows)} rows")
        return float(found[self.task.metric])


def _good(places: Sequence[Placed | Rejected]) -> list[Row]:
    """The rows that can be used; raises `DataError` where there is none."""
    found = [place.row for place in places if isinstance(place, Placed)]
    if not found:
        wrong = [place for place in places if isinstance(place, Rejected)]
        raise DataError(f"forgetting.old.data: {summary(wrong, len(wrong))}")
    return found


def _again(place: Placed | Rejected, task: Task) -> Placed | Rejected:
    """A row looked at again by the task that knows its labels."""
    wrong = task.check(place.row) if isinstance(place, Placed) else None
    return place if wrong is None else Rejected(place.file, place.line, wrong, place.row)


def _check_backbone(own: Any, trained: Any, source: str, model: str) -> None:
    """Raises `SettingsError` where a head learned on another backbone than the one that is trained now."""
    there = dict(base_parameters(trained))
    other = [path for path, tensor in base_parameters(own) if not torch.equal(tensor, there[path].to(tensor.device))]
    if other:
        raise SettingsError(
            f"forgetting.old: the head of {source} learned on another backbone than that of {model}: "
            f"{len(other)} tensors differ, such as {other[0]}",
            hint="train from the checkpoint that has the head (model)",
        )
