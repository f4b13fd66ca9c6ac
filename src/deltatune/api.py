"""The public functions: attach and load for any loop, finetune for the whole way from rows to a tested adapter."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from accelerate.utils import set_seed
from torch import nn

from deltatune.core import registry
from deltatune.core.config import RunSettings, override, read_yaml
from deltatune.core.errors import DataError, DeltatuneError, SettingsError
from deltatune.core.method import Method
from deltatune.core.task import Loaded, Row, Task
from deltatune.data.check import Placed, Rejected, records_of
from deltatune.data.load import Splits, rows_of
from deltatune.data.load import load as load_splits
from deltatune.data.read import read
from deltatune.engine import attach as engine
from deltatune.engine.anatomy import Anatomy
from deltatune.engine.compose import Average, Node, Rows, Stack
from deltatune.engine.describe import describe
from deltatune.engine.fingerprint import exact_hash
from deltatune.engine.materialize import materialize as materialized
from deltatune.engine.meta import from_config
from deltatune.engine.precision import base_dtype, choose_attention
from deltatune.engine.roster import roster_of
from deltatune.evaluate.answer import answers
from deltatune.evaluate.curves import draw
from deltatune.evaluate.score import score
from deltatune.store import adapter as folders
from deltatune.store.run import RunFolder
from deltatune.train.loop import Job, Trained, train

__all__ = [
    "Adapter",
    "Average",
    "Rows",
    "Run",
    "Stack",
    "active",
    "attach",
    "evaluate",
    "finetune",
    "inspect",
    "load",
    "materialize",
    "method",
    "predict",
    "prepare",
    "train_config",
]

logger = logging.getLogger("deltatune")

method = registry.method


class Adapter(engine.Handle):
    """One adapter on one model: switch it, train it, merge it, save it."""

    def save(
        self,
        folder: str | Path,
        *,
        base_model: str | None = None,
        facts: Mapping[str, Any] | None = None,
        task_type: str | None = None,
    ) -> Path:
        """Writes the adapter folder (peft's format where peft has the method), whole or not at all."""
        file = self.export(base_model=base_model, facts=facts, task_type=task_type)
        return folders.write(file, Path(folder))


def attach(model: nn.Module, method: Method, *, name: str = "default", seed: int = 0) -> Adapter:
    """Attaches a new adapter to a model, which stays the same object; its base is frozen.

    Raises `AdapterError` for a bad or taken name, `SettingsError` when the method has no place in this model.

    >>> import deltatune
    >>> layer = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> adapter = deltatune.attach(layer, deltatune.LoRA(r=2, target_modules="0"))
    >>> adapter.trainable_parameters
    32
    """
    return Adapter(model, engine.attach(model, method, name=name, seed=seed).name)


def load(model: nn.Module, folder: str | Path, *, name: str | None = None, trainable: bool = False) -> Adapter:
    """Attaches a saved adapter, ours or peft's, ready to serve; `trainable` to train it on.

    Raises `AdapterError` for a damaged folder, another base, or tensors that do not fit; nothing stays attached then.
    """
    file = folders.read(Path(folder))
    handle = engine.attach_file(model, file, folders.tensors_at, name=name)
    handle.trainable(trainable)
    return Adapter(model, handle.name)


def prepare(
    model: nn.Module,
    method: Method,
    *,
    name: str = "default",
    seed: int = 0,
    base_dropout: bool = False,
    gradient_checkpointing: bool = False,
) -> nn.Module:
    """The model with a new adapter, ready for any loop: base without dropout unless asked for, adapter in training.

    A trainer that calls `model.train()` switches the base's dropout on again.
    """
    choose_attention(model)
    adapter = attach(model, method, name=name, seed=seed)
    model.train(base_dropout)
    adapter.train_mode(True)
    if gradient_checkpointing:
        adapter.checkpoint()
    return model


def materialize(adapter: Adapter, condition: int | torch.Tensor, *, name: str) -> Adapter:
    """The plain adapter that a conditional one is for one task id or vector [C], with equal outputs.

    Raises `AdapterError` for an adapter that is not conditional and for an impossible condition.
    """
    return Adapter(adapter.model, materialized(adapter, condition, name=name).name)


def active(model: nn.Module, composition: Node) -> Any:
    """A context in which a composition of attached adapters acts: a name, `Stack`, `Average`, `Rows`, or None."""
    return roster_of(model).activated(composition)


@dataclass(frozen=True, slots=True)
class Run:
    """A finished training: its folder and the content of results.json."""

    folder: Path
    results: dict[str, Any]

    @property
    def adapter(self) -> Path:
        """Folder of the best adapter."""
        return self.folder / "adapter"


def train_config(
    path: str | Path, overrides: Mapping[str, str] | None = None, *, resume: bool = False, quiet: bool = False
) -> Run:
    """Trains what a YAML file describes; `overrides` are dotted keys (`training.learning_rate`) with YAML values."""
    values = override(read_yaml(Path(path)), overrides or {})
    return _run(RunSettings.parse(values, ""), resume=resume, quiet=quiet)


def finetune(
    *,
    task: str | Mapping[str, Any],
    model: str,
    data: Mapping[str, Any],
    method: Method | str | Mapping[str, Any] = "lora",
    output_dir: str | Path,
    training: Mapping[str, Any] | None = None,
    resume: bool = False,
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
        "output_dir": str(output_dir),
    }
    return _run(RunSettings.parse(values, ""), resume=resume, quiet=quiet)


def evaluate(source: str | Path, data: str, *, model: str | None = None, batch_size: int = 64) -> dict[str, Any]:
    """Metrics of a run or adapter on a labelled file; `model` names the base where it is not the recorded one.

    `rejected` lists rows that could not be scored.
    """
    task, loaded, columns = _restored(source, model)
    found = rows_of(read(data, Path.cwd()), task, columns, labelled=True)
    rows = [place.row for place in found if isinstance(place, Placed)]
    rejected = [place for place in found if isinstance(place, Rejected)]
    if not rows:
        raise DataError(f"{data}: no row can be scored", hint=_reason(rejected[0]))
    examples = task.encode(rows, loaded.processor)
    result = score(loaded.model, task, loaded.processor, rows, examples, batch_size)
    return {**result, "truncated": task.truncated(examples), "rejected": [_reason(r) for r in rejected]}


def predict(
    source: str | Path,
    *,
    texts: Sequence[str] | None = None,
    rows: Sequence[Row] | None = None,
    file: str | None = None,
    model: str | None = None,
    batch_size: int = 64,
) -> list[dict[str, Any]]:
    """Answers of a run or adapter, one per text or row, in order; a row that cannot be used has an `error`."""
    if sum(given is not None for given in (texts, rows, file)) != 1:
        raise SettingsError("predict takes texts, or rows, or a file")
    task, loaded, columns = _restored(source, model)
    if file is not None:
        places = rows_of(read(file, Path.cwd()), task, columns, labelled=False)
    else:
        table = records_of(list(rows) if rows is not None else [{"text": text} for text in texts or ()])
        places = rows_of(table, task, {}, labelled=False)
    good = [place.row for place in places if isinstance(place, Placed)]
    examples = task.encode(good, loaded.processor) if good else []
    found = iter(answers(loaded.model, task, loaded.processor, examples, batch_size)[0])
    return [next(found) if isinstance(place, Placed) else {"error": _reason(place)} for place in places]


def inspect(model: str) -> dict[str, Any]:
    """The map of a model by hub name or folder, built without weights; raises `SettingsError` when it has no config."""
    return describe(Anatomy.of(from_config(model)))


# -- one run


def _run(settings: RunSettings, *, resume: bool, quiet: bool) -> Run:
    task, chosen = registry.task(settings.task), registry.method(settings.method)
    resolved = _resolved(settings, task, chosen)
    folder = RunFolder(Path(settings.output_dir))
    folder.check(resolved, resume=resume)
    splits = load_splits(settings.data, task, Path.cwd())
    set_seed(settings.training.seed)
    loaded = splits.task.load(settings.model, base_dtype(settings.training.bf16))
    adapter = _attached(loaded, chosen, settings.training.seed)
    folder.open(resolved, resume=resume)
    folder.write_rejected([row.as_json() for row in splits.rejected])
    return _trained(settings, splits, loaded, adapter, folder, resume=resume, quiet=quiet)


def _trained(
    settings: RunSettings,
    splits: Splits,
    loaded: Loaded,
    adapter: Adapter,
    folder: RunFolder,
    *,
    resume: bool,
    quiet: bool,
) -> Run:
    task, processor, network = splits.task, loaded.processor, loaded.model
    size = settings.training.per_device_eval_batch_size
    examples = {name: task.encode(rows, processor) for name, rows in _parts(splits).items()}
    base = set(adapter.roster.frozen)
    hash_before = exact_hash(network, base)
    network.to("cuda" if torch.cuda.is_available() else "cpu")

    def scored(part: str, *, interval: bool) -> dict[str, Any]:
        return score(network, task, processor, _parts(splits)[part], examples[part], size, interval=interval)

    facts = {
        "task": {"type": task.type, **task.model_dump(mode="json")},
        "columns": settings.data.columns,
        "dtype": str(next(network.parameters()).dtype).removeprefix("torch."),
    }
    name = str(Path(settings.model).resolve()) if Path(settings.model).is_dir() else settings.model

    def save() -> None:
        adapter.save(folder.adapter, base_model=name, task_type=task.peft_task, facts=facts)

    before = scored("test", interval=True)
    job = Job(
        adapter,
        task,
        processor,
        examples["train"],
        settings.training,
        lambda: scored("validation", interval=False),
        save,
        folder,
        quiet,
    )
    done = train(job, resume=resume)
    results = _results(settings, splits, adapter, done) | {
        "before": before,
        "validation": scored("validation", interval=True),
        "test": scored("test", interval=True),
    }
    facts["results"] = {
        part: {k: v for k, v in results[part].items() if isinstance(v, float)} for part in ("validation", "test")
    }
    save()
    results["adapter_bytes"] = folders.size(folder.adapter)
    results["truncated"] = {name: task.truncated(found) for name, found in examples.items()}
    results["base"] = {"sha256_before": hash_before, "sha256_after": exact_hash(network, base)}
    if results["base"]["sha256_before"] != results["base"]["sha256_after"]:
        raise DeltatuneError("the base model's weights changed while training", hint="please report this as a bug")
    folder.write_results(results)
    _draw(folder, settings.training.metric_for_best_model or task.metric, task)
    return Run(folder.path, results)


def _results(settings: RunSettings, splits: Splits, adapter: Adapter, done: Trained) -> dict[str, Any]:
    task = splits.task
    names = {name: len(rows) for name, rows in _parts(splits).items()}
    baseline, metrics = task.baseline(splits.train, splits.test)
    base = sum(p.numel() for n, p in adapter.model.named_parameters() if n in adapter.roster.frozen)
    return {
        "task": task.type,
        "method": adapter.method.type,
        "base_model": settings.model,
        "trainable_parameters": adapter.trainable_parameters,
        "total_parameters": base,
        "rows": {**names, "rejected": len(splits.rejected)},
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
        },
        "baseline": {"name": baseline, **metrics},
    }


def _parts(splits: Splits) -> dict[str, list[Row]]:
    return {"train": splits.train, "validation": splits.validation, "test": splits.test}


def _attached(loaded: Loaded, chosen: Method, seed: int) -> Adapter:
    """The adapter with the head: what the checkpoint lacks must be trained, and the head belongs to the task."""
    choose_attention(loaded.model)
    anatomy = roster_of(loaded.model).anatomy
    whole = chosen.modules_to_save or tuple(dict.fromkeys((*loaded.new, *anatomy.heads)))
    return attach(loaded.model, chosen.model_copy(update={"modules_to_save": whole or None}), seed=seed)


def _resolved(settings: RunSettings, task: Task, chosen: Method) -> dict[str, Any]:
    """Every setting with its value, defaults included."""
    return {
        **settings.model_dump(mode="json"),
        "task": {"type": task.type, **task.model_dump(mode="json")},
        "method": {"type": chosen.type, **chosen.model_dump(mode="json")},
    }


def _draw(folder: RunFolder, metric: str, task: Task) -> None:
    try:
        draw(folder.metrics, folder.curves, metric, lower_is_better=metric in task.lower_is_better)
    except ModuleNotFoundError:
        logger.warning("no curves.png: matplotlib is missing (pip install 'deltatune[report]')")


# -- a saved adapter


def _restored(source: str | Path, model: str | None) -> tuple[Task, Loaded, Mapping[str, str]]:
    """Task, model with its adapter, and column names, from a run folder or an adapter folder.

    The base has the precision it was trained in, so that scores are those of the training.
    """
    file = folders.read(_adapter_folder(Path(source)))
    if "task" not in file.facts:
        raise SettingsError(f"{source} does not say what task it was trained for", hint="load it with deltatune.load")
    task = registry.task(cast(Mapping[str, Any], file.facts["task"]))
    base = model or file.base_model
    if base is None:
        raise SettingsError(f"{source} does not name its base model", hint="name it with --model")
    dtype = {"bfloat16": torch.bfloat16}.get(file.facts.get("dtype", ""), torch.float32)
    loaded = task.load(base, dtype)
    choose_attention(loaded.model)
    engine.attach_file(loaded.model, file, folders.tensors_at)
    loaded.model.to("cuda" if torch.cuda.is_available() else "cpu").eval()
    return task, loaded, file.facts.get("columns", {})


def _adapter_folder(path: Path) -> Path:
    return path / "adapter" if (path / "adapter").is_dir() else path


def _reason(row: Rejected) -> str:
    return f"{row.file}:{row.line}: {row.reason}"
