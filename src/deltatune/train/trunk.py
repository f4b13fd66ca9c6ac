"""The trunk of a run: which rows skip it, and where what leaves it is kept.

Memory, up to `trunk_cache_gb`. A folder, when one is named or memory is too little: under a key that follows from the
trunk and the rows, so that any other run with both finds it. Whoever finds an entry runs its first rows again and
compares, to the bit.
"""

import hashlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from deltatune.core.config import TrainingSettings
from deltatune.core.task import CONDITION, TRUNK, Batch, Example, Task, inputs_of
from deltatune.data.batch import by_length, collate
from deltatune.engine.handle import Handle
from deltatune.engine.trunk import Trunk, Unkept, trunk_of
from deltatune.store.kept import Shelf, users_folder
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
    `trunk_cache_gb` of memory and `trunk_disk_gb` of a disk. The adapters must have the same trunk.
    """
    handle, blocks = handles[0], trunk_of(handles[0])
    usual = type(task).run is Task.run and not any(CONDITION in example for example in parts["train"])
    if not (blocks and usual) or settings.base_dropout or not settings.trunk_cache_gb:
        return parts, {}
    trunk = Trunk(handle, blocks)
    rows = _Rows(trunk, task, processor, settings)
    found: Parts
    try:
        found = rows.numbered(parts)
    except Unkept as reason:
        logger.info("all blocks run in every step: %s", reason)
        if not isinstance(reason, TooLarge):  # adapters that share a pass still run it once
            trunk.leave()
            return parts, {}
        trunk.rows.clear()
        found = parts
    for other in handles[1:]:
        trunk.cover(other)
    handle.roster.trunk = trunk
    if found is parts:
        return parts, {}
    said = {"blocks": len(blocks), "rows": len(trunk.rows), "bytes": trunk.bytes}
    logger.info("%(blocks)d frozen blocks run once for %(rows)d rows; %(bytes)d bytes are kept", said)
    if rows.shelf is None:
        return found, said
    logger.info("they are in %s (%d of %d parts were there)", rows.shelf.folder, rows.found, len(parts))
    return found, {**said, "folder": str(rows.shelf.folder), "parts_found": rows.found}


class _Rows:
    """The rows of a run on their way through the trunk."""

    def __init__(self, trunk: Trunk, task: Task, processor: Any, settings: TrainingSettings) -> None:
        self.trunk, self.task, self.processor, self.settings = trunk, task, processor, settings
        self.device = next(trunk.model.parameters()).device
        self.shelf: Shelf | None = None
        self.found = 0
        """Parts that another run had kept."""
        self.first: dict[int, list[Tensor]] = {}
        """id of a part -> what leaves the trunk for its first batch, where that has run."""
        self.identity = ""

    def numbered(self, parts: Parts) -> Parts:
        """The examples with the numbers of their kept rows; raises `Unkept` when they are not kept."""
        train = parts["train"]
        first = self._batches(train)[0]
        rows = self.first[id(train)] = self._run(train, first)
        per_unit = sum(row.nbytes for row in rows) / max(1, sum(train[index]["length"] for index in first))
        sizes = {name: per_unit * sum(example["length"] for example in part) for name, part in parts.items()}
        self.shelf = self._place(sum(sizes.values()))
        self.identity = self.trunk.identity() if self.shelf else ""
        return {name: self._part(part, sizes[name]) for name, part in parts.items()}

    def _place(self, size: float) -> Shelf | None:
        """The folder that rows of this size go to, None for memory; raises `TooLarge` when neither has room."""
        named = self.settings.trunk_cache_dir
        if named is None and size <= self.settings.trunk_cache_gb * 1e9:
            return None
        shelf = Shelf(Path(named) if named else users_folder(), self.settings.trunk_disk_gb * 1e9)
        if (reason := shelf.why_not(size)) is not None:
            memory = "" if named else f"more than {self.settings.trunk_cache_gb:g} GB (training.trunk_cache_gb) and "
            raise TooLarge(f"what leaves the lower blocks takes about {size / 1e9:.1f} GB, {memory}{reason}")
        return shelf

    def _part(self, part: Sequence[Example], size: float) -> list[Example]:
        batches = self._batches(part)
        if self.shelf is None:
            rows = [row for rows in self._computed(part, batches) for row in rows]
        else:
            rows = self._shelved(self.shelf, part, batches, size)
        found = list(part)
        order = [index for indices in batches for index in indices]
        for index, number in zip(order, self.trunk.add(rows), strict=True):
            found[index] = {**part[index], TRUNK: number}
        return found

    def _shelved(
        self, shelf: Shelf, part: Sequence[Example], batches: Sequence[list[int]], size: float
    ) -> list[Tensor]:
        """The rows of a part from the folder, computed and put there first when they are not."""
        if not batches:
            return []
        key = self._key(part, batches)
        with shelf.alone(key):
            rows = shelf.find(key)
            if rows is not None and self._own(rows, part, batches[0]):
                self.found += 1
                return rows
            try:
                with shelf.writing(key, size) as writer:
                    for computed in self._computed(part, batches):
                        writer.add(computed)
            except OSError as error:
                raise TooLarge(f"{shelf.folder} cannot keep what leaves the lower blocks: {error}") from error
            rows = shelf.find(key)
        if rows is None:
            raise TooLarge(f"{shelf.folder} does not give back what leaves the lower blocks")
        return rows

    def _own(self, rows: Sequence[Tensor], part: Sequence[Example], first: Sequence[int]) -> bool:
        """Whether an entry has a row for every example and its first ones are those that leave the trunk here."""
        (again,) = self._computed(part, [first])
        if len(rows) == len(part) and all(map(torch.equal, rows, again)):
            return True
        logger.warning("rows kept by another run are not those of this one: they are made anew")
        return False

    def _computed(self, part: Sequence[Example], batches: Sequence[Sequence[int]]) -> Iterator[list[Tensor]]:
        """The rows of the first or more batches of a part."""
        known = self.first.pop(id(part), None)
        for indices in batches:
            yield self._run(part, indices) if known is None else known
            known = None

    def _run(self, part: Sequence[Example], indices: Sequence[int]) -> list[Tensor]:
        batch = {name: tensor.to(self.device) for name, tensor in self._batch(part, indices).items()}
        with asleep(self.trunk.model), torch.no_grad():
            rows = self.trunk.run(batch)
        if len(rows) != len(indices):
            raise Unkept("a row of the task is not one row of the model")
        return rows

    def _batches(self, part: Sequence[Example]) -> list[list[int]]:
        return by_length([example["length"] for example in part], self.settings.per_device_eval_batch_size)

    def _batch(self, part: Sequence[Example], indices: Sequence[int]) -> Batch:
        return collate(self.task, [part[index] for index in indices], self.processor)

    def _key(self, part: Sequence[Example], batches: Sequence[list[int]]) -> str:
        """sha256 (hex) of the trunk and of all that the model reads of these rows, batch for batch."""
        digest = hashlib.sha256(self.identity.encode())
        for indices in batches:
            for name, tensor in sorted(inputs_of(self._batch(part, indices)).items()):
                digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
                digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
        return digest.hexdigest()
