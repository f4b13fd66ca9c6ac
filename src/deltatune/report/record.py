"""Record: everything a page about a run is made of, as the run folder and its rows have it."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from deltatune.core import registry
from deltatune.core.config import RunSettings, Settings, read_yaml
from deltatune.core.task import Row, Task
from deltatune.data.load import Splits
from deltatune.report import curves
from deltatune.store.run import RunFolder


@dataclass(frozen=True)
class RunRecord:
    """A finished run."""

    folder: Path
    results: Mapping[str, Any]
    config: Mapping[str, Any]
    """Every setting with its value."""
    environment: Mapping[str, Any]
    lines: Sequence[Mapping[str, Any]]
    """metrics.jsonl"""
    rejected: Sequence[Mapping[str, Any]]
    answers: Sequence[Mapping[str, Any]]
    """answers.jsonl: file, line and answer of every row."""
    task: Task
    """The fitted one."""
    rows: Sequence[Row]
    """The test rows, in the order of the answers."""

    @classmethod
    def read(cls, folder: RunFolder, splits: Splits) -> "RunRecord":
        """What a run wrote; raises `OSError` where it is not finished."""
        return cls(
            folder.path,
            json.loads(folder.results.read_text(encoding="utf-8")),
            read_yaml(folder.path / "config.yaml"),
            json.loads((folder.path / "environment.json").read_text(encoding="utf-8")),
            curves.read(folder.metrics),
            folder.read_rejected(),
            folder.read_answers(),
            splits.task,
            splits.test,
        )

    @property
    def metric(self) -> str:
        """The main metric of the task."""
        return str(self.results["metric"])

    @property
    def chosen_by(self) -> str:
        """The validation metric that chose the adapter."""
        return str(self.config["training"]["metric_for_best_model"] or self.metric)

    @cached_property
    def title(self) -> str:
        """The method's name for people."""
        return registry.method(self.config["method"]).title

    def changed(self) -> dict[str, Any]:
        """Settings that are not at their defaults, by their dotted names."""
        settings = RunSettings.parse(self.config, "config.yaml")
        groups: dict[str, Settings] = {
            "task": registry.task(settings.task),
            "data": settings.data,
            "method": registry.method(settings.method),
            "training": settings.training,
        }
        return {
            f"{group}.{name}": value
            for group, own in groups.items()
            for name, value in own.model_dump(mode="json").items()
            if name in own.model_dump(exclude_defaults=True)
        }
