"""Many: several runs on one base, one set of rows and one trunk; small ones in passes that they share.

What each writes is what `finetune` alone would have written: the same folder, the same numbers.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import set_seed
from torch import Tensor

from deltatune.adapters import Adapter
from deltatune.core import registry
from deltatune.core.config import RunSettings
from deltatune.core.errors import DeltatuneError, SettingsError
from deltatune.core.method import Method
from deltatune.data.load import load as load_splits
from deltatune.data.usable import usable
from deltatune.engine.attach import NAME
from deltatune.engine.blocks import under
from deltatune.engine.precision import base_dtype
from deltatune.engine.roster import roster_of
from deltatune.engine.trunk import trunk_of
from deltatune.evaluate.forgetting import Known
from deltatune.finetuning import Run, Running, completed, resolve
from deltatune.ground import Ground, attached
from deltatune.store.run import RunFolder
from deltatune.store.state import random_state, restore_random_state
from deltatune.train import sinks
from deltatune.train.loop import train_together
from deltatune.train.packs import packs

logger = logging.getLogger("deltatune")


def finetune_many(
    runs: Mapping[str, Mapping[str, Any]],
    *,
    task: str | Mapping[str, Any],
    model: str,
    data: Mapping[str, Any],
    output_dir: str | Path,
    training: Mapping[str, Any] | None = None,
    adapters_per_pass: int | None = None,
    resume: bool = False,
    quiet: bool = False,
) -> dict[str, Run]:
    """Trains a run for each of `runs`, whose settings (`method`, `training`) go over the common ones.

    The folder of a run is `output_dir/<its name>`, with the results that `finetune` writes. Model, rows and the frozen
    blocks below the trained ones are loaded, read and run once for all. `adapters_per_pass` are at most as many as
    share each pass of a training: those of equal batches whose adapters can stand side by side, the others take turns.
    None is 1 on a CPU, where larger passes are no faster, and 8 on a GPU; the memory of activations grows with it.
    `resume` returns finished runs as they are and goes on with the others.

    Raises `SettingsError` before anything is trained, for settings that no base can share (`bf16`, distillation,
    several processes); `DeltatuneError` at the end when runs had to stop at a loss that is not finite.
    """
    if adapters_per_pass is None:
        adapters_per_pass = 8 if torch.cuda.is_available() else 1
    common = {"task": task, "model": model, "data": dict(data)}
    plans = [plan(name, own, common, training or {}, Path(output_dir), resume=resume) for name, own in runs.items()]
    check(plans, adapters_per_pass)
    found = {one.name: Run.read(one.folder.path) for one in plans if one.finished}
    failures: dict[str, DeltatuneError] = {}
    if open_plans := [one for one in plans if not one.finished]:
        base = Base(open_plans[0].settings)
        for name, done in sweep(base, open_plans, adapters_per_pass, quiet=quiet):
            if isinstance(done, Run):
                found[name] = done
            else:
                failures[name] = done
    if failures:
        text = "; ".join(f"{name}: {error}" for name, error in failures.items())
        raise DeltatuneError(
            f"{len(failures)} of {len(plans)} runs ended early: {text}", hint="the others are finished"
        )
    return {name: found[name] for name in runs}


@dataclass(frozen=True)
class Plan:
    """One run before anything is loaded."""

    name: str
    settings: RunSettings
    method: Method
    resolved: Mapping[str, Any]
    folder: RunFolder
    resume: bool
    trial: bool = False
    """Only scored on the validation rows."""

    @property
    def finished(self) -> bool:
        """Whether its results are there already."""
        return self.resume and self.folder.results.is_file()

    @property
    def seed(self) -> int:
        """Of its rows' order and its initial values."""
        return self.settings.training.seed


def plan(
    name: str,
    own: Mapping[str, Any],
    common: Mapping[str, Any],
    training: Mapping[str, Any],
    output_dir: Path,
    *,
    resume: bool,
    trial: bool = False,
) -> Plan:
    """A run by its name and what it has of its own; raises `SettingsError` for settings that are wrong."""
    if not NAME.fullmatch(name):
        raise SettingsError(f"runs.{name}: a run's name is its adapter's: lower-case letters, digits, - and _")
    wrong = set(own) - {"method", "training"}
    if wrong:
        raise SettingsError(f"runs.{name}.{min(wrong)}: a run has a method and training settings of its own")
    given = own.get("method", "lora")
    chosen = {"type": given.type, **given.model_dump()} if isinstance(given, Method) else given
    values = {
        "method": chosen,
        "training": {**training, **own.get("training", {})},
        "output_dir": str(output_dir / name),
    }
    settings = RunSettings.parse({**common, **values}, f"runs.{name}")
    method = registry.method(settings.method)
    resolved, folder = resolve(settings, registry.task(settings.task), method), RunFolder(output_dir / name, completed)
    resume = resume and (folder.path / "config.yaml").is_file()
    folder.check(resolved, resume=resume)
    return Plan(name, settings, method, resolved, folder, resume, trial)


def check(plans: Sequence[Plan], adapters_per_pass: int = 1) -> None:
    """Raises `SettingsError` for runs that cannot share a base."""
    if not plans:
        raise SettingsError("runs: name at least one")
    if adapters_per_pass < 1:
        raise SettingsError(f"adapters_per_pass is at least 1 (got {adapters_per_pass})")
    if PartialState().num_processes > 1:
        raise SettingsError("runs share one process", hint="start some of them in each process")
    for one in plans:
        _check_one(one, adapters_per_pass)
    for key in ("bf16", "gradient_checkpointing"):
        if len({getattr(one.settings.training, key) for one in plans}) > 1:
            raise SettingsError(f"training.{key} differs between the runs, and they share one base")


def _check_one(one: Plan, adapters_per_pass: int) -> None:
    """Raises `SettingsError` for what a run cannot have beside others."""
    if one.settings.training.distillation is not None:
        raise SettingsError(f"runs.{one.name}.training.distillation: a teacher acts in the base that runs share")
    if one.settings.training.compile and adapters_per_pass > 1:
        raise SettingsError(
            f"runs.{one.name}.training.compile: a compiled block runs one adapter",
            hint="set adapters_per_pass to 1",
        )
    sinks.check(one.settings.training.report_to)
    if adapters_per_pass > 1 and set(one.settings.training.report_to) - {"tensorboard"}:
        raise SettingsError(
            f"runs.{one.name}.training.report_to: these keep one run at a time, and passes are shared",
            hint="report_to: [tensorboard], or adapters_per_pass=1",
        )


class Base:
    """A model and rows as a run of each seed finds them, for one sweep after another."""

    def __init__(self, settings: RunSettings) -> None:
        splits = load_splits(settings.data, registry.task(settings.task), Path.cwd())
        self.model, self.dtype = settings.model, base_dtype(settings.training.bf16)
        self.seeds: dict[int, tuple[Any, dict[str, Tensor]]] = {}
        """The random generators and the new modules of the base as a run of this seed finds them."""
        set_seed(settings.training.seed)
        loaded = splits.task.load(settings.model, self.dtype)
        splits, examples = usable(splits, loaded.processor, settings.data.max_rejected)
        self.ground = Ground(splits, examples, loaded, Known.of(settings, splits, loaded.model))
        self._note(settings.training.seed, loaded.model)

    def start(self, seed: int) -> None:
        """The base and the random generators as a run of this seed finds them when its model is loaded."""
        loaded = self.ground.loaded
        if seed not in self.seeds:
            set_seed(seed)
            self._note(seed, self.ground.splits.task.load(self.model, self.dtype).model if loaded.new else loaded.model)
        random, new = self.seeds[seed]
        parameters = dict(loaded.model.named_parameters())
        with torch.no_grad():
            for path, tensor in new.items():
                parameters[path].copy_(tensor)
        restore_random_state(random)

    def _note(self, seed: int, model: Any) -> None:
        own = {
            path: tensor
            for path, tensor in model.named_parameters()
            if any(under(path, new) for new in self.ground.loaded.new)
        }
        self.seeds[seed] = random_state(), {path: tensor.detach().clone() for path, tensor in own.items()}


def sweep(
    base: Base, plans: Sequence[Plan], adapters_per_pass: int = 1, *, quiet: bool
) -> Iterator[tuple[str, Run | DeltatuneError]]:
    """Every run by name as it ends, or why it had to stop, in groups of one trunk; the base is as it was at the end."""
    roster = roster_of(base.ground.loaded.model)
    there = set(roster.adapters)
    pairs = []
    try:
        for one in plans:
            base.start(one.seed)
            adapter = attached(base.ground, one.method, one.seed, one.name)
            running = Running(
                *(one.settings, one.resolved, base.ground, adapter, one.folder),
                quiet=quiet,
                label=one.name,
                trial=one.trial,
            )
            pairs.append((one, running))
        for _, group in groupby(sorted(pairs, key=_alike), key=_alike):
            yield from _group(base, list(group), adapters_per_pass)
    finally:
        for name in reversed([name for name in roster.adapters if name not in there]):
            if name in roster.adapters:  # parts leave with what they are parts of
                Adapter(base.ground.loaded.model, name).detach()


def _alike(pair: tuple[Plan, Running]) -> tuple[int, Any]:
    """Blocks in the trunk, and whether and how it is kept."""
    settings = pair[0].settings.training
    limits = settings.trunk_cache_gb, settings.trunk_cache_dir, settings.trunk_disk_gb
    return len(trunk_of(pair[1].adapter)), (settings.base_dropout, settings.per_device_eval_batch_size, limits)


def _group(base: Base, pairs: Sequence[tuple[Plan, Running]], limit: int) -> Iterator[tuple[str, Run | DeltatuneError]]:
    """Runs with the same trunk, one pack after another."""
    runs = [running for _, running in pairs]
    runs[0].keep_trunk(runs)
    for one, running in pairs:
        base.start(one.seed)
        running.begin(resume=one.resume)
    of_handle = {running.adapter.name: (one, running) for one, running in pairs}
    resumed = [[running.job] for one, running in pairs if one.resume]  # each stands somewhere else
    fresh = packs([running.job for one, running in pairs if not one.resume], limit)
    for pack in [*resumed, *fresh]:
        members = [of_handle[job.handle.name] for job in pack]
        base.start(members[0][0].seed)
        for (one, running), done in zip(members, train_together(pack, resume=members[0][0].resume), strict=True):
            base.start(one.seed)
            yield one.name, done if isinstance(done, DeltatuneError) else running.finish(done)
    if (trunk := runs[0].adapter.roster.trunk) is not None:
        trunk.leave()
