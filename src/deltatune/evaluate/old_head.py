"""Old head: what a checkpoint was trained for before, and whether its outputs are what some rows call them."""

import re
from collections.abc import Sequence
from typing import Any

from transformers import AutoConfig

from deltatune.core.errors import DataError, SettingsError
from deltatune.core.pretrained import processor_of
from deltatune.core.task import Loaded, Row, Task
from deltatune.engine.blocks import under

NUMBERED = re.compile(r"LABEL_\d+")
"""What transformers calls an output that nobody named."""
SHOWN = 8
"""Names that an error lists."""


def headed(given: Task, rows: Sequence[Row], source: str, dtype: Any) -> tuple[Task, Loaded]:
    """The task as the head of a checkpoint was trained for it, and the network with that head.

    Raises `SettingsError` for a head that is not in the checkpoint, and for one whose outputs the rows call otherwise;
    `DataError` for rows that are no task.
    """
    there = _names(given, rows)
    config = processor_of(AutoConfig, source, f"a model for {given.type}")
    outputs = [str(name) for _, name in sorted((config.id2label or {}).items())]
    draft = given.model_copy(update={"labels": tuple(outputs)}) if there else _fitted(given, rows)
    loaded = draft.load(source, dtype)
    _check_trained(loaded.new, loaded.model, given, source)
    if not there:
        return draft, loaded
    own = list(config.architectures or ())
    if own and type(loaded.model).__name__ not in own:
        raise SettingsError(f"forgetting.old: the head of {source} is that of {own[0]}, which is no {given.type}")
    labels = _labels(given, outputs, there, source)
    return _fitted(given.model_copy(update={"labels": labels}), rows), loaded


def unnamed(given: Task) -> Task:
    """The task as it is before anybody says what its outputs are called."""
    return given.model_copy(update={"labels": None}) if "labels" in type(given).model_fields else given


def _names(given: Task, rows: Sequence[Row]) -> Sequence[str]:
    """What the rows call answers; empty for a task whose answers have no names."""
    return _fitted(unnamed(given), rows).label_names if "labels" in type(given).model_fields else ()


def _fitted(task: Task, rows: Sequence[Row]) -> Task:
    try:
        return task.fit(rows)
    except DataError as error:
        raise DataError(f"forgetting.old.data: {error}") from None


def _check_trained(new: Sequence[str], whole: Any, task: Task, source: str) -> None:
    """Raises `SettingsError` where parts of the head are not in the checkpoint."""
    if missing := [path for path in new if not under(path, whole.base_model_prefix)]:
        raise SettingsError(
            f"forgetting.old: {source} has no trained head of {task.type}: {', '.join(missing[:3])} would start at "
            "random",
            hint="name the folder of a checkpoint that was trained for it (forgetting.old.model)",
        )


def _labels(given: Task, outputs: Sequence[str], there: Sequence[str], source: str) -> tuple[str, ...]:
    """What the outputs are called in rows that know the names `there`."""
    labels = tuple(given.label_names) or _numbers(outputs, there) or tuple(outputs)
    head = f"forgetting.old: the head of {source} has {len(outputs)} outputs, {_listed(outputs)}"
    if len(labels) != len(outputs):
        raise SettingsError(f"{head}; task.labels has {len(labels)} names")
    if unknown := [name for name in there if name not in labels]:
        raise SettingsError(
            f"{head}; the rows are labelled {_listed(unknown)}",
            hint=f"say what the outputs are in the rows, in their order: {_mapping(given, outputs, there)}",
        )
    return labels


def _numbers(outputs: Sequence[str], there: Sequence[str]) -> tuple[str, ...] | None:
    """Numbers for outputs that nobody named, where the rows have numbers: LABEL_3 is their 3.

    >>> _numbers(["LABEL_0", "LABEL_1"], ["1", "0"]), _numbers(["LABEL_0", "LABEL_1"], ["no", "yes"])
    (('0', '1'), None)
    """
    numbers = tuple(str(number) for number in range(len(outputs)))
    return numbers if all(map(NUMBERED.fullmatch, outputs)) and set(there) <= set(numbers) else None


def _mapping(given: Task, outputs: Sequence[str], there: Sequence[str]) -> str:
    """Settings that would do: each output under its own name where only the spelling differs, else in the rows' order.

    >>> from deltatune.core.registry import task
    >>> _mapping(task("text-classification"), ["LABEL_0", "LABEL_1"], ["bad", "good"])
    'forgetting.old.task: {type: text-classification, labels: [bad, good]} if LABEL_0 is bad, LABEL_1 is good'
    """
    spelled = {name.casefold(): name for name in there}
    rest = iter([name for name in there if name.casefold() not in {output.casefold() for output in outputs}])
    labels = [spelled.get(output.casefold()) or next(rest, "...") for output in outputs]
    pairs = ", ".join(f"{output} is {label}" for output, label in list(zip(outputs, labels, strict=True))[:SHOWN])
    return f"forgetting.old.task: {{type: {given.type}, labels: [{', '.join(labels)}]}} if {pairs}"


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")
