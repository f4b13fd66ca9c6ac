"""Checkpoints: everything that makes a resumed training equal to one that was never interrupted."""

import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from deltatune.core.errors import DataError, DeltatuneError
from deltatune.engine.attach import Handle
from deltatune.store import atomic, state
from deltatune.train.distill import Distillation
from deltatune.train.guards import Guards
from deltatune.train.plan import Plan, Position
from deltatune.train.room import Room
from deltatune.train.stopping import Best
from deltatune.train.window import Window

logger = logging.getLogger("deltatune")

VERSION = 2
"""Of the layout of a checkpoint; another one is refused."""


@dataclass
class Training:
    """Everything that changes while training, but for the random generators."""

    handle: Handle
    optimizer: torch.optim.Optimizer
    schedule: Any
    peak: float
    """Learning rate of the settings, or of the method."""
    window: Window
    position: Position
    best: Best
    guards: Guards = field(default_factory=Guards)
    room: Room = field(default_factory=Room)
    distillation: Distillation | None = None

    @property
    def rate(self) -> float:
        """Peak learning rate now."""
        return self.peak * self.guards.rate_factor


def write(folder: Path, training: Training, plan: Plan, random: list[dict[str, Any]]) -> None:
    """Writes a checkpoint whole or not at all; `random` has the state of the generators of every process."""
    with atomic.folder(folder) as staging:
        state.save(
            staging,
            {
                "version": VERSION,
                "rows": plan.fingerprint(),
                "content": plan.content,
                "adapter": training.handle.state_dict(),
                "optimizer": training.optimizer.state_dict(),
                "schedule": training.schedule.state_dict(),
                "window": training.window.state_dict(),
                "position": asdict(training.position),
                "best": vars(training.best),
                "guards": vars(training.guards),
                "room": vars(training.room),
                "distillation": training.distillation.state_dict() if training.distillation else {},
                "random": random,
            },
        )


def read(folder: Path, training: Training, plan: Plan, process: int = 0) -> None:
    """Puts a training and the random generators where they were when the checkpoint was written.

    Raises `DataError` when the training rows are others, `DeltatuneError` for a checkpoint of another layout.
    """
    found = state.load(folder)
    if found["version"] != VERSION:
        raise DeltatuneError(
            f"{folder} has layout {found['version']}, this version of deltatune reads {VERSION}",
            hint="resume with the version that wrote it (environment.json)",
        )
    before = found.get("content", plan.content)  # checkpoints of earlier versions know lengths and tasks alone
    if found["rows"] != plan.fingerprint() or before != plan.content:
        raise DataError(
            f"the training rows are not those that {folder} was trained on",
            hint="put the old rows back, or start a new run",
        )
    training.handle.load_state_dict(found["adapter"])
    paces = [(group["initial_lr"], group["weight_decay"]) for group in training.optimizer.param_groups]
    training.optimizer.load_state_dict(found["optimizer"])
    training.schedule.load_state_dict(found["schedule"])
    training.guards, training.room = Guards(**found["guards"]), Room(**found["room"])
    _pace(training, paces)
    training.window.load_state_dict(found["window"])
    if training.distillation is not None:
        training.distillation.load_state_dict(found["distillation"])
    training.position = Position(**found["position"])
    training.best = Best(**{**found["best"], "patience": training.best.patience})
    if process < len(found["random"]):
        state.restore_random_state(found["random"][process])


def _pace(training: Training, paces: Sequence[tuple[float, float]]) -> None:
    """Rates and decays as the settings say now: they may have been changed on purpose."""
    schedule, groups = training.schedule, training.optimizer.param_groups
    schedule.base_lrs = [rate * training.guards.rate_factor for rate, _ in paces]
    for group, rate, shape, (_, decay) in zip(groups, schedule.base_lrs, schedule.lr_lambdas, paces, strict=True):
        group.update(initial_lr=rate, lr=rate * shape(schedule.last_epoch), weight_decay=decay)


def halve(training: Training) -> None:
    """Half the learning rate from here on."""
    training.guards.halved = True
    groups = training.optimizer.param_groups
    _pace(training, [(group["initial_lr"], group["weight_decay"]) for group in groups])
