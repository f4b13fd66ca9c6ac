"""Finetuning: one run, from its settings to a tested adapter in a folder."""

import logging
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import set_seed
from torch import nn

from deltatune.adapters import Adapter, attach, load
from deltatune.core import registry
from deltatune.core.config import RunSettings, override, read_yaml
from deltatune.core.errors import DeltatuneError, SettingsError
from deltatune.core.method import Method
from deltatune.core.task import SOURCES, Example, Loaded, Task
from deltatune.data.load import Splits
from deltatune.data.load import load as load_splits
from deltatune.data.usable import usable
from deltatune.engine.attention_by_shape import choose_attention
from deltatune.engine.fingerprint import exact_hash
from deltatune.engine.precision import base_dtype
from deltatune.engine.roster import roster_of
from deltatune.evaluate.curves import draw
from deltatune.evaluate.score import score
from deltatune.store import adapter as folders
from deltatune.store.run import RunFolder, writing
from deltatune.train.loop import Job, Trained, check, train
from deltatune.train.teacher import Teacher, teacher_of
from deltatune.train.trunk import kept

logger = logging.getLogger("deltatune")


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


def check_config(path: str | Path, overrides: Mapping[str, str] | None = None, *, show_mask: int = 0) -> dict[str, Any]:
    """Reads, checks, splits and encodes the rows of a YAML file as a training would, and trains nothing.

    `rows` and `truncated` count every part, `rejected` and `near_duplicates` are listed, and `shown` has the first
    `show_mask` training rows in pieces of text that the loss counts or not. Raises what a training would raise.
    """
    settings = RunSettings.parse(override(read_yaml(Path(path)), overrides or {}), "")
    registry.method(settings.method)
    splits = load_splits(settings.data, registry.task(settings.task), Path.cwd())
    task = splits.task
    processor = task.load(settings.model).processor
    splits, examples = usable(splits, processor, settings.data.max_rejected)
    shown = [(splits.places[id(row)], task.shown(row, processor)) for row in splits.train[:show_mask]]
    if shown and not any(pieces for _, pieces in shown):
        raise SettingsError(f"{task.type} reads no text of which the loss counts a part", hint="leave show_mask out")
    return {
        "task": task.type,
        "rows": {name: len(rows) for name, rows in splits.parts.items()},
        "rejected": [row.as_json() for row in splits.rejected],
        "truncated": {name: task.truncated(found) for name, found in examples.items()},
        "near_duplicates": splits.near,
        "shown": [
            {
                "file": place.file,
                "line": place.line,
                "pieces": [{"text": text, "learned": learned} for text, learned in pieces],
            }
            for place, pieces in shown
        ],
    }


def finetune(
    *,
    task: str | Mapping[str, Any],
    model: str,
    data: Mapping[str, Any],
    method: Method | str | Mapping[str, Any] = "lora",
    output_dir: str | Path,
    training: Mapping[str, Any] | None = None,
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
        "output_dir": str(output_dir),
    }
    return _run(RunSettings.parse(values, ""), resume=resume, allowed=allow_change, quiet=quiet)


def _run(settings: RunSettings, *, resume: bool, allowed: Collection[str], quiet: bool) -> Run:
    task, chosen = registry.task(settings.task), registry.method(settings.method)
    resolved = _resolved(settings, task, chosen)
    folder = RunFolder(Path(settings.output_dir))
    folder.check(resolved, resume=resume, allowed=allowed)
    splits = load_splits(settings.data, task, Path.cwd())
    set_seed(settings.training.seed)
    loaded = splits.task.load(settings.model, base_dtype(settings.training.bf16))
    splits, examples = usable(splits, loaded.processor, settings.data.max_rejected)
    adapter = _attached(loaded, splits.task, _fitting(chosen, loaded, splits.task), settings.training.seed)
    teacher = teacher_of(settings.training.distillation, splits.task, loaded, adapter, splits.train)

    def begin() -> None:
        folder.open(resolved, resume=resume)
        folder.write_rejected([row.as_json() for row in splits.rejected])

    return _trained(settings, splits, examples, loaded, adapter, folder, teacher, begin, resume=resume, quiet=quiet)


def _trained(
    settings: RunSettings,
    splits: Splits,
    encoded: dict[str, list[Example]],
    loaded: Loaded,
    adapter: Adapter,
    folder: RunFolder,
    teacher: Teacher | None,
    begin: Callable[[], None],
    *,
    resume: bool,
    quiet: bool,
) -> Run:
    task, processor, network = splits.task, loaded.processor, loaded.model
    size = settings.training.per_device_eval_batch_size
    truncated = {name: task.truncated(found) for name, found in encoded.items()}
    base = set(adapter.roster.frozen)
    hash_before = exact_hash(network, base)
    network.to("cuda" if torch.cuda.is_available() else "cpu")
    packed = encoded | {"train": task.pack(encoded["train"], network, processor)}
    examples, trunk = kept(adapter, task, processor, packed, settings.training)

    def scored(part: str, *, interval: bool) -> dict[str, Any]:
        return score(network, task, processor, splits.parts[part], examples[part], size, interval=interval)

    facts = {
        "task": {"type": task.type, **task.model_dump(mode="json")},
        "columns": settings.data.columns,
        "dtype": str(next(network.parameters()).dtype).removeprefix("torch."),
    }
    name = str(Path(settings.model).resolve()) if Path(settings.model).is_dir() else settings.model

    def save() -> None:
        adapter.save(folder.adapter, base_model=name, task_type=task.peft_task, facts=facts)

    validated = partial(scored, "validation", interval=False)
    rows, places = examples["train"], partial(_places, splits, examples["train"])
    job = Job(adapter, task, processor, rows, settings.training, validated, save, folder, quiet, teacher, places)
    before = scored("test", interval=True)
    check(job, before)  # whatever is wrong with the settings shows before there is a folder
    begin()
    done = train(job, resume=resume)
    results = _results(settings, splits, adapter, done) | {
        "before": before,
        "validation": scored("validation", interval=True),
        "test": scored("test", interval=True),
    }
    facts["results"] = {
        part: {k: v for k, v in results[part].items() if isinstance(v, float)} for part in ("validation", "test")
    }
    with writing(str(folder.adapter)):
        save()
    results["adapter_bytes"] = folders.size(folder.adapter)
    results["truncated"] = truncated
    results["trunk"] = trunk
    results["base"] = {"sha256_before": hash_before, "sha256_after": _unchanged(network, base, hash_before)}
    folder.write_results(results)
    _draw(folder, settings.training.metric_for_best_model or task.metric, task)
    return Run(folder.path, results)


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
    baseline, metrics = task.baseline(splits.train, splits.test)
    base = sum(p.numel() for n, p in adapter.model.named_parameters() if n in adapter.roster.frozen)
    return {
        "task": task.type,
        "method": adapter.method.type,
        "base_model": settings.model,
        "trainable_parameters": adapter.trainable_parameters,
        "total_parameters": base,
        "rows": {**names, "rejected": len(splits.rejected)},
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
        },
        "baseline": {"name": baseline, **metrics},
        "baselines": task.baselines(splits.train, splits.test),
    }


def _attached(loaded: Loaded, task: Task, chosen: Method, seed: int) -> Adapter:
    """The adapter with what the checkpoint lacks, which must be trained, and the head where it belongs to the task."""
    choose_attention(loaded.model)
    names = [_read(loaded.model, source) if Path(source).is_dir() else source for source in chosen.reads()]
    chosen = chosen.reading(names) if names else chosen
    heads = roster_of(loaded.model).anatomy.heads if task.trains_head else ()
    whole = chosen.modules_to_save or tuple(dict.fromkeys((*loaded.new, *heads)))
    return attach(loaded.model, chosen.model_copy(update={"modules_to_save": whole or None}), seed=seed)


def _read(model: nn.Module, source: str) -> str:
    """Attaches the adapter of a run or adapter folder that another one works on, named after the folder."""
    path = Path(source)
    folder = path / "adapter" if (path / "adapter").is_dir() else path
    word = (folder.parent if folder.name == "adapter" else folder).resolve().name.lower()
    name = re.sub("[^a-z0-9_-]+", "-", word).strip("-_")[:56] or "read"
    taken = roster_of(model).adapters
    name = next(each for each in (name, *(f"{name}-{n}" for n in range(2, 1000))) if each not in taken)
    return load(model, folder, name=name).name


def _fitting(chosen: Method, loaded: Loaded, task: Task) -> Method:
    """The method for the tasks of the rows, with its texts as token ids where there is a tokenizer."""
    if task.many is not None:
        chosen = chosen.for_tasks(len(task.many.names))
    tokenizer = loaded.tokenizer
    if tokenizer is None:
        return chosen
    return chosen.worded(lambda text: list(tokenizer(text, add_special_tokens=False)["input_ids"]), task.label_names)


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
