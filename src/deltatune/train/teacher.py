"""Teacher: whose answers a training learns from, and how it is made to answer without leaving a trace."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig

from deltatune.core.config import DistillationSettings
from deltatune.core.errors import SettingsError
from deltatune.core.method import AdapterFile
from deltatune.core.task import Batch, Example, Loaded, Row, Task, inputs_of
from deltatune.data.tasks import encode
from deltatune.engine.conditions import told
from deltatune.engine.handle import Handle
from deltatune.engine.stored import attach_file
from deltatune.store import adapter as folders

NAME = "distillation-teacher"
"""Of a teacher's adapter on the student's base."""


@dataclass(frozen=True)
class Teacher:
    """A model that answers in evaluation mode, without gradient, and never changes."""

    model: nn.Module
    acting: Callable[[], AbstractContextManager[Any]] = nullcontext
    """What acts in the model while it answers."""
    processor: Any = None
    examples: Sequence[Example] = field(default=())
    """The training rows as this teacher reads them; empty where it reads what the student reads."""

    def answer(self, batch: Batch, **wanted: Any) -> Any:
        """The model's output; modes and active adapters are restored, also after an exception."""
        with self.acting(), told(self.model, batch), asleep(self.model), torch.no_grad():
            return self.model(**inputs_of(batch), **wanted)


@contextmanager
def asleep(model: nn.Module) -> Iterator[None]:
    """Evaluation mode inside the block; every module's own mode is restored."""
    awake = [module for module in model.modules() if module.training]
    for module in awake:
        module.training = False
    try:
        yield
    finally:
        for module in awake:
            module.training = True


def teacher_of(
    settings: DistillationSettings | None, task: Task, loaded: Loaded, handle: Handle, rows: Sequence[Row]
) -> Teacher | None:
    """The teacher that the settings name, if they name one; `rows` are the training rows.

    Raises `SettingsError` when its answers would be random, or mean other labels.
    """
    if settings is None:
        return None
    if task.predicts == "sets":
        raise SettingsError(f"distillation has no answers to compare in {task.type}: they come in no order")
    name = settings.teacher
    if name == "base":
        if loaded.new and settings.alpha:
            raise SettingsError(
                f"distillation.teacher base cannot answer: its {', '.join(loaded.new)} is new and untrained",
                hint="name a trained teacher (a run, an adapter or a model folder), or set distillation.alpha: 0",
            )
        return Teacher(handle.model, handle.disabled)
    if name in handle.roster.adapters and name != handle.name:
        return Teacher(handle.model, partial(handle.roster.activated, name))
    folder = next((path for path in (Path(name) / "adapter", Path(name)) if _is_adapter(path)), None)
    if folder is not None:
        return _adapted(folder, task, loaded, handle, rows)
    _check_labels(name, task, _labels_of_model(name))
    own = task.load(name, _dtype(loaded.model))
    _check_head(name, own.new)
    return _own(own, task, rows)


def _adapted(folder: Path, task: Task, loaded: Loaded, handle: Handle, rows: Sequence[Row]) -> Teacher:
    """An adapter folder: on the student's own base where that is the same, else on a base of its own."""
    file = folders.read(folder)
    _check_labels(str(folder), task, file.facts.get("task", {}).get("labels"))
    if _same(file, loaded.model):
        before = handle.roster.active
        attached = attach_file(handle.model, file, folders.tensors_at, name=NAME)
        attached.trainable(False)
        handle.roster.active = before
        return Teacher(handle.model, partial(handle.roster.activated, NAME))
    if file.base_model is None:
        raise SettingsError(f"distillation.teacher {folder} does not name its base model")
    own = task.load(file.base_model, _dtype(loaded.model))
    attach_file(own.model, file, folders.tensors_at, name=NAME).trainable(False)
    _check_head(str(folder), [path for path in own.new if not any(p.startswith(path) for p in file.saved)])
    return _own(own, task, rows)


def _own(own: Loaded, task: Task, rows: Sequence[Row]) -> Teacher:
    """A teacher with a model of its own, which reads the rows in its own tokens."""
    if task.mixes:
        raise SettingsError(
            "a teacher with a model of its own reads rows as they are, and the student reads them mixed",
            hint="take mixup out, or name a teacher on the same base",
        )
    own.model.requires_grad_(False)
    examples = task.pack(encode(task, rows, own.processor), own.model, own.processor)
    return Teacher(own.model, processor=own.processor, examples=examples)


def _is_adapter(folder: Path) -> bool:
    return (folder / "adapter_config.json").is_file()


def _same(file: AdapterFile, model: Any) -> bool:
    """Whether an adapter belongs on this base, by its name."""
    own = model.config._name_or_path
    return file.base_model is not None and Path(file.base_model).resolve() == Path(own).resolve()


def _dtype(model: nn.Module) -> torch.dtype:
    return next(model.parameters()).dtype


def _check_head(name: str, new: Sequence[str]) -> None:
    if new:
        raise SettingsError(
            f"distillation.teacher {name} cannot answer: it has no trained {', '.join(new)} for this task",
            hint="train the teacher for the task first",
        )


def _check_labels(name: str, task: Task, theirs: Sequence[str] | None) -> None:
    """Raises when the same output means another label to the teacher."""
    own = task.model_dump(mode="json").get("labels")
    if not own or not theirs or list(own) == list(theirs):
        return
    raise SettingsError(
        f"distillation.teacher {name} has the labels {', '.join(theirs)}, the task has {', '.join(own)}",
        hint=f"set task.labels: [{', '.join(theirs)}]"
        if set(own) == set(theirs)
        else "take a teacher for the same labels",
    )


def _labels_of_model(name: str) -> list[str] | None:
    """Names that a checkpoint gives its classes; None where it only numbers them."""
    try:
        names = AutoConfig.from_pretrained(name, trust_remote_code=False).id2label
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise SettingsError(f"distillation.teacher {name!r} is no adapter and no model: {reason}") from None
    found = [names[index] for index in sorted(names)]
    return None if all(label == f"LABEL_{index}" for index, label in enumerate(found)) else found
