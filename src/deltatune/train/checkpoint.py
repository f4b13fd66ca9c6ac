"""Checkpoints: everything that makes a resumed training equal to one that was never interrupted."""

import logging
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch

from deltatune.engine.attach import Handle
from deltatune.store import atomic, state
from deltatune.store.run import RunFolder
from deltatune.train.stopping import Best

if TYPE_CHECKING:
    from deltatune.train.loop import State

logger = logging.getLogger("deltatune")

PREFIX = "checkpoint-"


@dataclass(frozen=True)
class Saved:
    """What a checkpoint holds besides the random generators."""

    handle: Handle
    optimizer: torch.optim.Optimizer
    schedule: Any
    position: "State"
    best: Best


def write(folder: RunFolder, saved: Saved, keep: int) -> None:
    """Writes `checkpoint-<step>` whole or not at all, then drops old ones."""
    final = folder.checkpoint(saved.position.step)
    if final.exists():
        return
    schedule = {key: value for key, value in saved.schedule.state_dict().items() if not key.startswith("lr_lambdas")}
    with atomic.folder(final) as staging:
        state.save(staging, {
            "adapter": saved.handle.state_dict(),
            "optimizer": saved.optimizer.state_dict(),
            "schedule": schedule,
            "position": asdict(saved.position),
            "best": {key: value for key, value in vars(saved.best).items()},
            "random": state.random_state(),
        })
    atomic.prune(folder.path, PREFIX, keep)


def restore(folder: RunFolder, saved: Saved) -> None:
    """Goes back to the newest checkpoint that is whole; to the start when there is none yet."""
    newest = atomic.newest_valid(folder.path, PREFIX)
    if newest is None:
        logger.warning("no usable checkpoint in %s yet: starting from the beginning", folder.path)
        folder.forget_after(0)
        return
    found = state.load(newest)
    saved.handle.load_state_dict(found["adapter"])
    saved.optimizer.load_state_dict(found["optimizer"])
    saved.schedule.load_state_dict(found["schedule"])
    for target, values in ((saved.position, found["position"]), (saved.best, found["best"])):
        for name, value in values.items():
            setattr(target, name, value)
    folder.forget_after(saved.position.step)
    state.restore_random_state(found["random"])
    logger.warning("going on from %s", newest)
