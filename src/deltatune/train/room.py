"""Room: a pass that does not fit into memory is cut in two; the step and its gradient stay what they were."""

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from deltatune.core.errors import DeltatuneError
from deltatune.engine.handle import Handle
from deltatune.train.plan import Step

logger = logging.getLogger("deltatune")

SAID = ("out of memory", "can't allocate memory", "ALLOC_FAILED")
"""How torch says so where it has no class for it."""


@dataclass
class Room:
    """How much fits into one pass, as far as it was found out; part of a checkpoint."""

    cells: int | None = None
    """Most rows times the longest of them in a pass; None: everything has fitted so far."""

    def fitted(
        self,
        step: Step,
        lengths: Sequence[int],
        handles: Sequence[Handle],
        backward: Callable[[Step], list[Tensor]],
        forget: Callable[[], None],
    ) -> list[Tensor]:
        """The losses of `backward` over all micro-batches, cut until they fit.

        After a failure it starts anew, and `forget` drops the gradients: a backward that broke off has added some.
        Raises `DeltatuneError` when single rows do not fit.
        """
        notes = _versions(handles)
        while True:
            parts = [part for rows in step for part in self._cut(rows, lengths)]
            try:
                return backward(parts)
            except (RuntimeError, MemoryError) as error:
                if not out_of_memory(error):
                    raise
                said = str(error)  # the error itself holds on to the tensors of the pass
            self._shrink(parts, lengths, said)
            if _versions(handles) != notes:
                raise DeltatuneError(
                    f"out of memory while {handles[0].method.type} was taking notes of gradients: {said}",
                    hint="lower training.per_device_train_batch_size, raise gradient_accumulation_steps",
                )
            forget()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()

    def _cut(self, rows: list[int], lengths: Sequence[int]) -> Iterator[list[int]]:
        if self.cells is None or len(rows) == 1 or _cells(rows, lengths) <= self.cells:
            yield rows
            return
        half = (len(rows) + 1) // 2
        yield from self._cut(rows[:half], lengths)
        yield from self._cut(rows[half:], lengths)

    def _shrink(self, parts: Step, lengths: Sequence[int], said: str) -> None:
        largest = max(parts, key=lambda rows: _cells(rows, lengths))
        if all(len(rows) == 1 for rows in parts):
            raise DeltatuneError(
                f"one row of length {lengths[largest[0]]} does not fit into memory: {said}",
                hint="training.gradient_checkpointing: true, shorter rows, or a smaller model",
            )
        self.cells = _cells(largest, lengths) // 2
        logger.warning(
            "out of memory with %d rows in a pass: from now on they come in two; a step has as many rows as before",
            len(largest),
        )


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory did not suffice, on a device or on the machine.

    >>> out_of_memory(torch.OutOfMemoryError("CUDA")), out_of_memory(RuntimeError("CUDA out of memory. Tried"))
    (True, True)
    >>> out_of_memory(RuntimeError("shapes differ"))
    False
    """
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(word in str(error) for word in SAID)


def _cells(rows: Sequence[int], lengths: Sequence[int]) -> int:
    return len(rows) * max(lengths[row] for row in rows)


def _versions(handles: Sequence[Handle]) -> list[int]:
    """Changes whenever a buffer of an adapter does: what a backward noted there cannot be taken back."""
    return [buffer._version for handle in handles for module in handle.modules() for buffer in module.buffers()]
