"""The trunk of a run: which rows skip it, and whether what leaves it fits."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from deltatune.core.config import TrainingSettings
from deltatune.core.task import CONDITION, TRUNK, Example, Task
from deltatune.data.batch import by_length, collate
from deltatune.engine.handle import Handle
from deltatune.engine.trunk import Trunk, Unkept, trunk_of
from deltatune.train.teacher import asleep

logger = logging.getLogger("deltatune")

Parts = Mapping[str, Sequence[Example]]


class TooLarge(Unkept):
    """What leaves the trunk does not fit."""


def kept(
    handles: Sequence[Handle], task: Task, processor: Any, parts: Parts, settings: TrainingSettings
) -> tuple[Parts, dict[str, Any]]:
    """The examples of all parts with the numbers of their kept rows, and what to say of the trunk in the results.

    They come back as they are when there is no trunk, when it is not frozen, or when it would take more than
    `trunk_cache_gb`. The adapters must have the same trunk.
    """
    handle, blocks = handles[0], trunk_of(handles[0])
    usual = type(task).run is Task.run and not any(CONDITION in example for example in parts["train"])
    if not (blocks and usual) or settings.base_dropout or not settings.trunk_cache_gb:
        return parts, {}
    trunk = Trunk(handle, blocks)
    found: Parts
    try:
        found = {name: _part(trunk, task, processor, part, parts, settings) for name, part in parts.items()}
    except Unkept as reason:
        logger.info("all blocks run in every step: %s", reason)
        if not isinstance(reason, TooLarge):  # adapters that share a pass still run it once
            trunk.leave()
            return parts, {}
        found = parts
    for other in handles[1:]:
        trunk.cover(other)
    handle.roster.trunk = trunk
    if found is parts:
        return parts, {}
    said = {"blocks": len(blocks), "rows": len(trunk.rows), "bytes": trunk.bytes}
    logger.info("%(blocks)d frozen blocks run once for %(rows)d rows; %(bytes)d bytes are kept", said)
    return found, said


def _part(
    trunk: Trunk, task: Task, processor: Any, part: Sequence[Example], parts: Parts, settings: TrainingSettings
) -> list[Example]:
    numbered: list[Example] = list(part)
    device = next(trunk.model.parameters()).device
    for indices in by_length([example["length"] for example in part], settings.per_device_eval_batch_size):
        batch = collate(task, [part[index] for index in indices], processor)
        with asleep(trunk.model), torch.no_grad():
            numbers = trunk.keep({name: tensor.to(device) for name, tensor in batch.items()})
        if len(numbers) != len(indices):
            raise Unkept("a row of the task is not one row of the model")
        for index, number in zip(indices, numbers, strict=True):
            numbered[index] = {**part[index], TRUNK: number}
        expected = trunk.bytes / len(trunk.rows) * sum(map(len, parts.values()))
        if expected > settings.trunk_cache_gb * 1e9:
            trunk.rows.clear()
            raise TooLarge(
                f"what leaves the lower blocks takes about {expected / 1e9:.1f} GB (training.trunk_cache_gb)"
            )
    return numbered
