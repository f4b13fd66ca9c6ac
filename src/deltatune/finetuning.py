"""Finetuning: one run, from its settings to a tested adapter in a folder."""

import json
import logging
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import set_seed
from torch import nn

from deltatune.adapters import Adapter
from deltatune.advise.ahead import Ahead
from deltatune.core import registry
from deltatune.core.config import RunSettings, override, read_yaml
from deltatune.core.errors import DeltatuneError
from deltatune.core.method import Method
from deltatune.core.task import SOURCES, Example, Task
from deltatune.data.load import Splits, content_hash
from deltatune.data.load import load as load_splits
from deltatune.data.usable import usable
from deltatune.engine.fingerprint import exact_hash
from deltatune.engine.precision import base_dtype
from deltatune.evaluate.answer import Answered, answers
from deltatune.evaluate.forgetting import Known, forgotten
from deltatune.evaluate.score import measured
from deltatune.ground import Ground, attached
from deltatune.report import curves
from deltatune.report.run import write as write_report
from deltatune.store import adapter as folders
from deltatune.store.run import RunFolder, writing
from deltatune.train import sinks
from deltatune.train.loop import Job, Trained, check, train
from deltatune.train.memory import resident_bytes
from deltatune.train.teacher import Teacher, teacher_of
from deltatune.train.trunk import kept

logger = logging.getLogger("deltatune")


@dataclass(frozen=True, slots=True)
class Run:
    """A finished training: its folder and the content of results.json."""

    folder: Path
    results: dict[str, Any]

    @classmethod
    def read(cls, folder: Path) -> "Run":
        """A run that was finished before; raises `OSError` when it was not."""
        return cls(folder, json.loads((folder / "results.json").read_text(encoding="utf-8")))

    @property
    def adapter(self) -> Path:
        """Folder of the best adapter."""
        return self.folder / "adapter"


def train_config(
    path: str | Path,
    overrides: Mapping[str, str] | None = None,
    *,
    resume: bool = False,
    allow_change: Collection[str] = (),
    quiet: bool = False,
) -> Run:
    """Trains what a YAML file describes; `overrides` are dotted keys (`training.learning_rate`) with YAML values.

    `allow_change` names the settings that a resumed run may have otherwise than when it began.
    """
    values = override(read_yaml(Path(path)), overrides or {})
    return _run(RunSettings.parse(values, ""), resume=resume, allowed=allow_change, quiet=quiet)


def finetune(
    *,
    task: str | Mapping[str, Any],
    model: str,
    data: Mapping[str, Any],
    method: Method | str | Mapping[str, Any] = "lora",
    output_dir: str | Path,
    training: Mapping[str, Any] | None = None,
    forgetting: Mapping[str, Any] | None = None,
    resume: bool = False,
    allow_change: Collection[str] = (),
    quiet: bool = False,
) -> Run:
    """Trains, evaluates and saves an adapter: the same as `deltatune train`, with the settings as arguments."""
    given = {"type": method.type, **method.model_dump()} if isinstance(method, Method) else method
    values = {
        "task": task,
        "model": model,
        "data": dict(data),
        "method": given,
        "training": dict(training or {}),
        "forgetting": None if forgetting is None else dict(forgetting),
        "output_dir": str(output_dir),
    }
    return _run(RunSettings.parse(values, ""), resume=resume, allowed=allow_change, quiet=quiet)


def _run(settings: RunSettings, *, resume: bool, allowed: Collection[str], quiet: bool) -> Run:
    task, chosen = registry.task(settings.task), registry.method(settings.method)
    sinks.check(settings.training.report_to)
    resolved, resident = resolve(settings, task, chosen), resident_bytes()
    folder = RunFolder(Path(settings.output_dir), completed)
    folder.check(resolved, resume=resume, allowed=allowed)
    splits = load_splits(settings.data, task, Path.cwd())
    set_seed(settings.training.seed)
    loaded = splits.task.load(settings.model, base_dtype(settings.training.bf16))
    splits, examples = usable(splits, loaded.processor, settings.data.max_rejected)
    ground = Ground(splits, examples, loaded, Known.of(settings, splits, loaded.model))
    adapter = attached(ground, chosen, settings.training.seed)
    teacher = teacher_of(settings.training.distillation, splits.task, loaded, adapter, splits.train)
    running = Running(settings, resolved, ground, adapter, folder, quiet=quiet, teacher=teacher)
    ahead = Ahead(adapter, resident, settings.model)
    running.keep_trunk([running])
    running.forecast = ahead.of(splits.task, loaded.processor, running.examples, settings.training)
    running.begin(resume=resume)
    return running.finish(train(running.job, resume=resume))


class Running:
    """A run between its settings and its results, on a base that others may have adapters on too.

    A trial only helps to choose settings: it is scored on the validation rows and never sees the test rows.
    """

    def __init__(
        self,
        settings: RunSettings,
        resolved: Mapping[str, Any],
        ground: Ground,
        adapter: Adapter,
        folder: RunFolder,
        *,
        quiet: bool = False,
        teacher: Teacher | None = None,
        label: str = "",
        trial: bool = False,
    ) -> None:
        self.settings, self.resolved, self.ground = settings, resolved, ground
        self.adapter, self.folder, self.quiet, self.teacher = adapter, folder, quiet, teacher
        self.label, self.trial = label, trial
        self.base = set(adapter.roster.frozen)
        self.hash_before = exact_hash(ground.loaded.model, self.base)
        self.examples: Mapping[str, Sequence[Example]] = {}
        self.trunk: dict[str, Any] = {}
        self.before: dict[str, Any] = {}
        self.forecast: dict[str, Any] = {}
        self.latest: Answered | None = None
        self.best: Answered | None = None
        """Answers of the best adapter so far to the validation rows."""
        task, path = ground.splits.task, Path(settings.model)
        self.name = str(path.resolve()) if path.is_dir() else settings.model
        self.facts: dict[str, Any] = {
            "task": {"type": task.type, **task.model_dump(mode="json")},
            "columns": settings.data.columns,
            "dtype": str(next(ground.loaded.model.parameters()).dtype).removeprefix("torch."),
        }

    @property
    def task(self) -> Task:
        """The fitted task."""
        return self.ground.splits.task

    def keep_trunk(self, runs: "Sequence[Running]") -> None:
        """Packs the rows and runs the frozen blocks below once, for all `runs` with the same trunk."""
        loaded, encoded = self.ground.loaded, self.ground.examples
        loaded.model.to("cuda" if torch.cuda.is_available() else "cpu")
        packed = encoded | {"train": self.task.pack(encoded["train"], loaded.model, loaded.processor)}
        handles = [run.adapter for run in runs]
        with self.adapter.roster.activated(self.adapter.name):
            examples, trunk = kept(handles, self.task, loaded.processor, packed, self.settings.training)
        for run in runs:
            run.examples, run.trunk = examples, trunk

    def begin(self, *, resume: bool) -> None:
        """Scores the adapter as it starts, checks the settings by it, and makes the folder."""
        if not self.trial:
            self.before = self.measured("test", self.answers("test"))
            check(self.job, self.before)  # whatever is wrong with the settings shows before there is a folder
        self.folder.open(self.resolved, resume=resume)
        self.folder.write_rejected([row.as_json() for row in self.ground.splits.rejected])
        self.folder.write_noted([note.as_json() for note in self.ground.splits.notes])

    @cached_property
    def job(self) -> Job:
        """What the loop is given."""
        return Job(
            self.adapter,
            self.task,
            self.ground.loaded.processor,
            self.examples["train"],
            self.settings.training,
            self.validate,
            self.keep_best,
            self.folder,
            self.quiet,
            self.teacher,
            partial(_places, self.ground.splits, self.examples["train"]),
            self.label,
            content_hash(self.ground.splits.train, self.task),
        )

    def answers(self, part: str) -> Answered:
        """What the adapter alone answers to a part of the rows."""
        loaded, size = self.ground.loaded, self.settings.training.per_device_eval_batch_size
        with self.adapter.roster.activated(self.adapter.name):
            return answers(loaded.model, self.task, loaded.processor, self.examples[part], size)

    def measured(self, part: str, answered: Answered, *, interval: bool = True) -> dict[str, Any]:
        """Metrics of answers to a part of the rows."""
        return measured(self.task, answered, self.ground.splits.parts[part], interval=interval)

    def validate(self) -> dict[str, Any]:
        """Metrics of the adapter as it is on the validation rows."""
        self.latest = self.answers("validation")
        return self.measured("validation", self.latest, interval=False)

    def keep_best(self) -> None:
        """Writes the adapter, and remembers what it answered: at the end it need not be asked again."""
        self.best = self.latest
        self.save()

    def validation(self, done: Trained) -> dict[str, Any]:
        """Metrics of the best adapter on the validation rows; it is asked again where it comes from before a resume."""
        if self.best is not None:
            metrics = self.measured("validation", self.best)
            if metrics[self.settings.training.metric_for_best_model or self.task.metric] == done.best_metric:
                return metrics
        return self.measured("validation", self.answers("validation"))

    def tested(self) -> dict[str, Any]:
        """Metrics of the adapter on the test rows and the time it took; every answer is written with its place."""
        started, splits = time.perf_counter(), self.ground.splits
        answered = self.answers("test")
        seconds = time.perf_counter() - started
        places = [splits.places[id(row)] for row in splits.test]
        self.folder.write_answers(
            {"file": place.file, "line": place.line, "answer": answer}
            for place, answer in zip(places, answered[0], strict=True)
        )
        return {"test": self.measured("test", answered), "answering": {"seconds": seconds, "rows": len(places)}}

    def forgotten(self) -> dict[str, Any]:
        """What the base forgot, where that is asked for."""
        known, size = self.ground.known, self.settings.training.per_device_eval_batch_size
        if known is None:
            return {}
        examples, processor = self.ground.examples["validation"][: known.rows], self.ground.loaded.processor
        own = forgotten(self.adapter, self.task, processor, examples, known.texts, self.name, size, known.old)
        return {"forgetting": own}

    def save(self) -> None:
        """Writes the adapter as it is."""
        self.adapter.save(self.folder.adapter, base_model=self.name, task_type=self.task.peft_task, facts=self.facts)

    def finish(self, done: Trained) -> Run:
        """Tests the trained adapter and writes adapter and results."""
        task, encoded = self.task, self.ground.examples
        results = _results(self.settings, self.ground.splits, self.adapter, done)
        results["validation"] = self.validation(done)
        if not self.trial:
            results |= self.ground.baselines | {"before": self.before} | self.tested() | self.forgotten()
            results["energy"] = self.facts["energy"] = done.spent.of_run(self.settings, task, results)
        self.facts["results"] = {
            part: {k: v for k, v in results[part].items() if isinstance(v, float)}
            for part in ("validation", "test")
            if part in results
        }
        with writing(str(self.folder.adapter)):
            self.save()
        results["adapter_bytes"] = folders.size(self.folder.adapter)
        results["truncated"] = {name: task.truncated(found) for name, found in encoded.items()}
        results["trunk"], results["forecast"] = self.trunk, self.forecast
        hash_after = _unchanged(self.ground.loaded.model, self.base, self.hash_before)
        results["base"] = {"sha256_before": self.hash_before, "sha256_after": hash_after}
        self.folder.write_results(results)
        if not self.trial:
            _draw(self.folder, self.settings.training.metric_for_best_model or task.metric, task)
            _report(self.folder, self.ground.splits)
        return Run(self.folder.path, results)


def _unchanged(network: nn.Module, base: set[str], before: str) -> str:
    """The hash of the base's weights; raises `DeltatuneError` when it is not what it was."""
    after = exact_hash(network, base)
    if after != before:
        raise DeltatuneError("the base model's weights changed while training", hint="please report this as a bug")
    return after


def _places(splits: Splits, examples: Sequence[Example], number: int) -> list[dict[str, Any]]:
    """File and line of the rows of a training example."""
    places = [splits.places[id(splits.train[row])] for row in examples[number].get(SOURCES, [number])]
    return [{"file": place.file, "line": place.line} for place in places]


def _results(settings: RunSettings, splits: Splits, adapter: Adapter, done: Trained) -> dict[str, Any]:
    task = splits.task
    names = {name: len(rows) for name, rows in splits.parts.items()}
    base = sum(p.numel() for n, p in adapter.model.named_parameters() if n in adapter.roster.frozen)
    return {
        "task": task.type,
        "method": adapter.method.type,
        "base_model": settings.model,
        "trainable_parameters": adapter.trainable_parameters,
        "total_parameters": base,
        "rows": {**names, "rejected": len(splits.rejected)},
        "accounts": splits.accounts.as_json(),
        "near_duplicates": {"rows": len(splits.near), "first": splits.near[:20]},
        "data_sha256": splits.fingerprint,
        "metric": task.metric,
        "train": {
            "steps": done.steps,
            "seconds": round(done.seconds, 2),
            "tokens": done.tokens,
            "peak_memory_bytes": done.peak_memory_bytes,
            "best_step": done.best_step,
            "stopped": done.stopped,
            "learning_rate": done.learning_rate,
            "seed": settings.training.seed,
            "resumed_at": done.resumed_at,
            "examples": done.examples,
            "together": done.together,
        },
    }


def resolve(settings: RunSettings, task: Task, chosen: Method) -> dict[str, Any]:
    """Every setting with its value, defaults included."""
    return {
        **settings.model_dump(mode="json"),
        "task": {"type": task.type, **task.model_dump(mode="json")},
        "method": {"type": chosen.type, **chosen.model_dump(mode="json")},
    }


def completed(values: Mapping[str, Any]) -> dict[str, Any]:
    """Every setting of a run from its config.yaml; an earlier version may have known fewer."""
    settings = RunSettings.parse(values, "config.yaml")
    return resolve(settings, registry.task(settings.task), registry.method(settings.method))


def _draw(folder: RunFolder, metric: str, task: Task) -> None:
    try:
        lines = curves.read(folder.metrics)
        curves.draw(lines, folder.curves, metric, lower_is_better=metric in task.lower_is_better)
    except ModuleNotFoundError:
        logger.warning("no curves.png: matplotlib is missing (pip install 'deltatune[report]')")


def _report(folder: RunFolder, splits: Splits) -> None:
    """The page about a run; without it the run is what it is."""
    try:
        write_report(folder, splits)
    except Exception as error:  # rows and libraries of others: whatever it is, adapter and results are written
        logger.warning("no report.html: %s: %s", type(error).__name__, error)
