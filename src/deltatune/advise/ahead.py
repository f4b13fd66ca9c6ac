"""Ahead: the forecast of a run that is about to begin, from its adapter on a copy of the model without values."""

import logging
from pathlib import Path
from typing import Any

import torch

from deltatune.advise.batches import of_training, steps_of
from deltatune.advise.forecast import Parts, forecast, work_of
from deltatune.core.config import TrainingSettings
from deltatune.core.task import Task
from deltatune.engine.handle import Handle
from deltatune.engine.valueless import without_values

logger = logging.getLogger("deltatune")


class Ahead:
    """Looks at a run before its trunk is kept; `process` are the bytes that were there before the model."""

    def __init__(self, adapter: Handle, process: int, model: str) -> None:
        self.process, self.stored = process, stored_bytes(model)
        self.handle = Handle(without_values(adapter.model), adapter.name)

    def of(self, task: Task, processor: Any, parts: Parts, settings: TrainingSettings) -> dict[str, Any]:
        """The forecast as plain values; `unknown` says why where there is none."""
        device = "cuda" if torch.cuda.is_available() else "cpu"
        try:
            work = work_of(self.handle, task, processor, parts, settings, device)
            steps = steps_of(of_training(parts["train"], settings).count, settings)
            found = forecast(
                self.handle,
                work,
                settings,
                parts,
                steps=steps,
                process=self.process,
                stored=self.stored,
                device=device,
            )
        except Exception as error:  # a foreign forward may ask for values that are not there
            reason = f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error) else ''}"[:200]
            logger.info("no forecast of memory and time: %s", reason)
            return {"unknown": reason}
        return found.as_json()


def stored_bytes(model: str) -> int:
    """Bytes of the weights files in a model's folder; zero where it is none on this disk."""
    folder = Path(model)
    files = [*folder.glob("*.safetensors"), *folder.glob("*.bin")] if folder.is_dir() else []
    return sum(file.stat().st_size for file in files)
