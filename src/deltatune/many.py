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

from deltatune.core import registry
from deltatune.core.config import RunSettings, TrainingSettings
from deltatune.core.errors import DeltatuneError, SettingsError
from deltatune.core.method import Method
from deltatune.data.load import load as load_splits
from deltatune.data.usable import usable
from deltatune.engine.attach import NAME
from deltatune.engine.blocks import under
from deltatune.engine.precision import base_dtype
from deltatune.engine.trunk import trunk_of
from deltatune.finetuning import Ground, Run, Running, attached, completed, resolve
from deltatune.store.run import RunFolder
from deltatune.store.state import random_state, restore_random_state
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
    plans = [_plan(name, own, common, training or {}, Path(output_dir), resume=resume) for name, own in runs.items()]
    _check(plans, adapters_per_pass)
    found = {plan.name: Run.read(plan.folder.path) for plan in plans if plan.finished}
    failures: dict[str, DeltatuneError] = {}
    open_plans = [plan for plan in plans if not plan.finished]
    if open_plans:
        sweep = _Sweep(open_plans, quiet=quiet)
        for name, done in sweep.run(adapters_per_pass):
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
class _Plan:
    """One run before anything is loaded."""

    name: str
    settings: RunSettings
    method: Method
    resolved: Mapping[str, Any]
    folder: RunFolder
    resume: bool

    @property
    def finished(self) -> bool:
        """Whether its results are there already."""
        return self.resume and self.folder.results.is_file()

    @property
    def seed(self) -> int:
        """Of its rows' order and its initial values."""
        return self.settings.training.seed


def _plan(
    name: str,
    own: Mapping[str, Any],
    common: Mapping[str, Any],
    training: Mapping[str, Any],
    output_dir: Path,
    *,
    resume: bool,
) -> _Plan:
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
    return _Plan(name, settings, method, resolved, folder, resume)


def _check(plans: Sequence[_Plan], adapters_per_pass: int) -> None:
    """Raises `SettingsError` for runs that cannot share a base."""
    if not plans:
        raise SettingsError("runs: name at least one")
    if adapters_per_pass < 1:
        raise SettingsError(f"adapters_per_pass is at least 1 (got {adapters_per_pass})")
    if PartialState().num_processes > 1:
        raise SettingsError("runs share one process", hint="start some of them in each process")
    for plan in plans:
        if plan.settings.training.distillation is not None:
            raise SettingsError(f"runs.{plan.name}.training.distillation: a teacher acts in the base that runs share")
    for key in ("bf16", "gradient_checkpointing"):
        if len({getattr(plan.settings.training, key) for plan in plans}) > 1:
            raise SettingsError(f"training.{key} differs between the runs, and they share one base")


class _Sweep:
    """The runs on their base, in groups of one seed and one trunk."""

    def __init__(self, plans: Sequence[_Plan], *, quiet: bool) -> None:
        first = plans[0].settings
        splits = load_splits(first.data, registry.task(first.task), Path.cwd())
        self.model, self.dtype = first.model, base_dtype(first.training.bf16)
        self.seeds: dict[int, tuple[Any, dict[str, Tensor]]] = {}
        """The random generators and the new modules of the base as a run of this seed finds them."""
        set_seed(plans[0].seed)
        loaded = splits.task.load(first.model, self.dtype)
        splits, examples = usable(splits, loaded.processor, first.data.max_rejected)
        self.ground = Ground(splits, examples, loaded)
        self._note(plans[0].seed, loaded.model)
        self.pairs: list[tuple[_Plan, Running]] = []
        for plan in plans:
            self._start(plan.seed)
            adapter = attached(self.ground, plan.method, plan.seed, plan.name)
            running = Running(
                plan.settings, plan.resolved, self.ground, adapter, plan.folder, quiet=quiet, label=plan.name
            )
            self.pairs.append((plan, running))

    def run(self, limit: int) -> Iterator[tuple[str, Run | DeltatuneError]]:
        """Every run by name as it ends, or why it had to stop."""

        def alike(pair: tuple[_Plan, Running]) -> tuple[int, Any]:
            plan, running = pair
            return len(trunk_of(running.adapter)), _keeping(plan.settings.training)

        for _, group in groupby(sorted(self.pairs, key=alike), key=alike):
            pairs = list(group)
            runs = [running for _, running in pairs]
            runs[0].keep_trunk(runs)
            for plan, running in pairs:
                self._start(plan.seed)
                running.begin(resume=plan.resume)
            yield from self._trained(pairs, limit)
            if (trunk := runs[0].adapter.roster.trunk) is not None:
                trunk.leave()

    def _trained(
        self, pairs: Sequence[tuple[_Plan, Running]], limit: int
    ) -> Iterator[tuple[str, Run | DeltatuneError]]:
        of_handle = {running.adapter.name: (plan, running) for plan, running in pairs}
        resumed = [[running.job] for plan, running in pairs if plan.resume]  # each stands somewhere else
        fresh = packs([running.job for plan, running in pairs if not plan.resume], limit)
        for pack in [*resumed, *fresh]:
            members = [of_handle[job.handle.name] for job in pack]
            self._start(members[0][0].seed)
            for (plan, running), done in zip(members, train_together(pack, resume=members[0][0].resume), strict=True):
                self._start(plan.seed)
                yield plan.name, done if isinstance(done, DeltatuneError) else running.finish(done)

    def _start(self, seed: int) -> None:
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


def _keeping(settings: TrainingSettings) -> tuple[Any, ...]:
    """Settings that say whether and how the trunk is kept."""
    return settings.base_dropout, settings.trunk_cache_gb, settings.per_device_eval_batch_size
