"""Sinks: other places that see the log of a training, by `training.report_to`; accelerate's trackers, nothing unasked.

tensorboard writes into the run folder; trackio, mlflow and wandb go where their own environment variables say.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from deltatune.core.errors import SettingsError
from deltatune.train.job import Job

logger = logging.getLogger("deltatune")

PROJECT = "deltatune"
"""Project or experiment that runs are put under."""
PLAIN = (bool, int, float, str)
LONGEST = 250
"""Characters of a setting that is none of these; mlflow takes no longer ones."""


def check(names: Sequence[str]) -> None:
    """Raises `SettingsError` for a sink whose package is not installed."""
    missing = [name for name in names if find_spec(name) is None]
    if missing:
        raise SettingsError(
            f"training.report_to: {', '.join(missing)} is not installed", hint=f"pip install {' '.join(missing)}"
        )


class Sinks:
    """The sinks of one training; one that fails is left out from then on, and said."""

    def __init__(self, trackers: Sequence[Any]) -> None:
        self.trackers = list(trackers)

    def log(self, line: Mapping[str, Any]) -> None:
        """A line of metrics.jsonl: its numbers, as `train/...` or `validation/...`."""
        part = "validation" if "validation" in line else "train"
        own = {**line, **line.get("validation", {})}
        numbers = {name: value for name, value in own.items() if isinstance(value, int | float) and name != "step"}
        values = {f"{part}/{name}": float(value) for name, value in numbers.items()}
        for tracker in tuple(self.trackers) if values else ():
            with self._trying(tracker):
                tracker.log(values, step=line["step"])

    def begin(self, settings: Mapping[str, Any]) -> None:
        """Opens them, with the settings of the run."""
        for tracker in tuple(self.trackers):
            with self._trying(tracker):
                tracker.start()
                tracker.store_init_configuration(dict(settings))

    def finish(self) -> None:
        """Closes them."""
        for tracker in tuple(self.trackers):
            with self._trying(tracker):
                tracker.finish()

    @contextmanager
    def _trying(self, tracker: Any) -> Iterator[None]:
        """A training does not end for a place that only watches it."""
        try:
            yield
        except Exception as error:
            logger.warning("report_to: %s is left out from here: %s: %s", tracker.name, type(error).__name__, error)
            self.trackers.remove(tracker)


@contextmanager
def opened(job: Job, *, main: bool) -> Iterator[Sinks]:
    """The sinks of a training, in the main process alone."""
    found = Sinks([_tracker(name, job.folder.path) for name in job.settings.report_to] if main else [])
    found.begin(_flat(job))
    try:
        yield found
    finally:
        found.finish()


def _tracker(name: str, folder: Path) -> Any:
    from accelerate import tracking

    run = folder.resolve().name
    make = {
        "tensorboard": lambda: tracking.TensorBoardTracker("tensorboard", logging_dir=folder),
        "trackio": lambda: tracking.TrackioTracker(PROJECT, name=run),
        "mlflow": lambda: tracking.MLflowTracker(PROJECT, run_name=run),
        "wandb": lambda: tracking.WandBTracker(PROJECT, name=run),
    }
    return make[name]()


def _flat(job: Job) -> dict[str, bool | int | float | str]:
    """Task, method and training settings as one level of plain values."""
    groups = {"task": job.task, "method": job.handle.method, "training": job.settings}
    found: dict[str, Any] = {"task.type": job.task.type, "method.type": job.handle.method.type}
    for group, own in groups.items():
        found |= {f"{group}.{name}": value for name, value in own.model_dump(mode="json").items() if value is not None}
    return {name: value if isinstance(value, PLAIN) else str(value)[:LONGEST] for name, value in found.items()}
