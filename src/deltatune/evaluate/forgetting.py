"""Forgetting: what the base knew, before and after; adapter on, off and merged.

Three measures: how alike the base's representations of rows are (CKA, any model with blocks), its loss on texts (where
its checkpoint has a language-model head), and the metric of an old task (where that has a trained head).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from deltatune.core.config import ForgettingSettings, RunSettings
from deltatune.core.errors import DataError, DeltatuneError
from deltatune.core.task import Example, Row, Task
from deltatune.data.load import Splits
from deltatune.data.read import read
from deltatune.engine.handle import Handle
from deltatune.evaluate.language import Language
from deltatune.evaluate.old_task import OldTask
from deltatune.evaluate.representations import represented
from deltatune.ops.similarity import cka


@dataclass(frozen=True)
class Known:
    """What is looked at: so many validation rows, texts, and an old task where one is named."""

    rows: int
    texts: Sequence[str]
    old: OldTask | None

    @classmethod
    def of(cls, settings: RunSettings, splits: Splits, network: Any) -> "Known | None":
        """By the settings, before anything is trained; None where they ask for nothing.

        Raises `DataError` and `SettingsError` for files, rows and heads that cannot be used.
        """
        asked = settings.forgetting
        if asked is None:
            return None
        texts = general_texts(asked, splits.validation[: asked.rows], splits.task)
        seed = settings.data.split_seed
        return cls(
            asked.rows, texts, None if asked.old is None else OldTask.of(asked.old, network, settings.model, seed)
        )


def forgotten(
    handle: Handle,
    task: Task,
    processor: Any,
    examples: Sequence[Example],
    texts: Sequence[str],
    base: str,
    batch_size: int = 64,
    old: OldTask | None = None,
) -> dict[str, Any]:
    """Agreement with the base on examples, losses on texts, an old task's metric; what cannot be measured says why.

    `merged` is None for a method that cannot be merged.
    """
    found = {
        "rows": len(examples),
        "texts": len(texts),
        "agreement": _agreement(handle, partial(represented, handle.model, task, processor, examples, batch_size)),
        "language": _language(handle, texts, base),
    }
    return found if old is None else {**found, "old": _old(handle, old, batch_size)}


def _agreement(handle: Handle, vectors: Callable[[], Tensor]) -> dict[str, Any]:
    try:
        found = _states(handle, vectors)
        return {name: None if own is None else cka(found["off"], own) for name, own in found.items()}
    except (DeltatuneError, ValueError) as error:
        return {"why": str(error)}


def _language(handle: Handle, texts: Sequence[str], base: str) -> dict[str, Any]:
    if not texts:
        return {"why": "there are no texts"}
    try:
        language = Language.around(handle.model, base)
    except DeltatuneError as error:
        return {"why": str(error)}
    return {"kind": language.kind, **_states(handle, lambda: language.loss(texts))}


def _old(handle: Handle, old: OldTask, batch_size: int) -> dict[str, Any]:
    task = old.task
    about = {
        "task": task.type,
        "metric": task.metric,
        "lower_is_better": task.metric in task.lower_is_better,
        "rows": len(old.rows),
        "rejected": old.rejected,
    }
    try:
        return {**about, **_states(handle, lambda: old.metric(batch_size))}
    except (DeltatuneError, ValueError) as error:
        return {**about, "why": str(error)}


def _states(handle: Handle, measure: Callable[[], Any]) -> dict[str, Any]:
    """What is measured with the adapter off, on, and merged into the base, which is then put back."""
    with handle.roster.activated(None):
        off = measure()
    with handle.roster.activated(handle.name):
        on = measure()
        if not handle.method.can.merge:
            return {"off": off, "on": on, "merged": None}
        handle.merge()
        try:
            return {"off": off, "on": on, "merged": measure()}
        finally:
            handle.unmerge()


def general_texts(asked: ForgettingSettings, rows: Sequence[Row], task: Task) -> list[str]:
    """The texts of the file that is named, else those that the rows themselves have.

    Raises `DataError` for a file without a column `text`.
    """
    if asked.texts is None:
        found = [" ".join(row[word] for word in task.key if isinstance(row.get(word), str)) for row in rows]
        return [text for text in found if text]
    table = read(asked.texts, Path.cwd())
    if "text" not in table.columns:
        raise DataError(f"{asked.texts} has no column text", hint=f"it has {', '.join(table.columns)}")
    texts = [record.values.get("text") for record in table.records if record.problem is None]
    return [text for text in texts if isinstance(text, str) and text.strip()][: asked.rows]
