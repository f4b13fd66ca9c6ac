"""The public functions: attach and load for any loop, finetune for the whole way from rows to a tested adapter."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch

from deltatune.adapters import Adapter, active, attach, blend, load, materialize, prepare
from deltatune.core import registry
from deltatune.core.errors import DataError, SettingsError
from deltatune.core.task import Loaded, Row, Task
from deltatune.data.accounts import FileAccount
from deltatune.data.check import Placed, Rejected, records_of
from deltatune.data.columns import Columns
from deltatune.data.load import rows_of
from deltatune.data.read import read
from deltatune.data.usable import with_reasons
from deltatune.engine.anatomy import Anatomy
from deltatune.engine.attention_by_shape import choose_attention
from deltatune.engine.compose import Average, Rows, Stack
from deltatune.engine.describe import describe
from deltatune.engine.meta import from_config
from deltatune.engine.stored import attach_file
from deltatune.evaluate import pictures
from deltatune.evaluate.answer import answers
from deltatune.evaluate.score import score
from deltatune.finetuning import Run, finetune, train_config
from deltatune.many import finetune_many
from deltatune.rehearsal.rehearse import Rehearsal, rehearse
from deltatune.rehearsal.rows import check_config
from deltatune.store import adapter as folders

__all__ = [
    "Adapter",
    "Average",
    "Rehearsal",
    "Rows",
    "Run",
    "Stack",
    "active",
    "attach",
    "blend",
    "check_config",
    "evaluate",
    "finetune",
    "finetune_many",
    "inspect",
    "load",
    "materialize",
    "method",
    "predict",
    "prepare",
    "rehearse",
    "train_config",
]

method = registry.method


def evaluate(source: str | Path, data: str, *, model: str | None = None, batch_size: int = 64) -> dict[str, Any]:
    """Metrics of a run or adapter on a labelled file; `model` names the base where it is not the recorded one.

    `rejected` lists rows that could not be scored, `account` says where every row of the file went: read = rejected +
    unused + used.
    """
    task, loaded, columns = _restored(source, model)
    found = rows_of(read(data, Path.cwd()), task, columns, labelled=True)
    given = [place.row for place in found if isinstance(place, Placed)]
    rows = task.compose(given)
    account = FileAccount(
        data, len(found), len(found) - len(given), len(task.unused(given, rows)), task.consists_of(rows)
    )
    encoded, wrong = with_reasons(task, rows, loaded.processor)
    places = {id(place.row): place for place in found}
    rejected = [_reason(place) for place in found if isinstance(place, Rejected)]
    rejected += [_at(places.get(id(row)), why) for row, why in zip(rows, wrong, strict=True) if why is not None]
    good = [index for index, why in enumerate(wrong) if why is None]
    if not good:
        raise DataError(f"{data}: no row can be scored", hint=rejected[0])
    rows, examples = [rows[index] for index in good], [encoded[index] for index in good]
    result = score(loaded.model, task, loaded.processor, rows, examples, batch_size)
    return {**result, "truncated": task.truncated(examples), "rejected": rejected, "account": account.as_json()}


def predict(
    source: str | Path,
    *,
    texts: Sequence[str] | None = None,
    rows: Sequence[Row] | None = None,
    file: str | None = None,
    model: str | None = None,
    batch_size: int = 64,
    draw: str | Path | None = None,
) -> list[dict[str, Any]]:
    """Answers of a run or adapter, one per text or row, in order; a row that cannot be used has an `error`.

    Where the task makes one row of several (the items of a user), one answer per such row, then the errors. `draw` is a
    folder for pictures of the answers (boxes on images), numbered as they are.
    """
    if sum(given is not None for given in (texts, rows, file)) != 1:
        raise SettingsError("predict takes texts, or rows, or a file")
    task, loaded, columns = _restored(source, model)
    if draw is not None:
        pictures.check(task)
    if file is not None:
        places = rows_of(read(file, Path.cwd()), task, columns, labelled=False)
    else:
        table = records_of(
            list(rows) if rows is not None else [{next(iter(task.columns)): text} for text in texts or ()]
        )
        places = rows_of(table, task, {}, labelled=False)
    good = [place.row for place in places if isinstance(place, Placed)]
    composed = task.compose(good)
    known = {id(place.row): place for place in places}
    encoded, wrong = with_reasons(task, composed, loaded.processor)
    examples = [example for example, why in zip(encoded, wrong, strict=True) if why is None]
    answer = iter(answers(loaded.model, task, loaded.processor, examples, batch_size)[0])
    found = [
        next(answer) if why is None else {"error": _at(known.get(id(row)), why)}
        for row, why in zip(composed, wrong, strict=True)
    ]
    bad = [{"error": _reason(place)} for place in places if isinstance(place, Rejected)]
    if composed != good:
        drawn, found = [*composed, *([None] * len(bad))], [*found, *bad]
    else:
        one, other = iter(found), iter(bad)
        drawn = [place.row if isinstance(place, Placed) else None for place in places]
        found = [next(other) if row is None else next(one) for row in drawn]
    if draw is not None:
        pictures.draw(task, drawn, found, Path(draw))
    return found


def inspect(model: str) -> dict[str, Any]:
    """The map of a model by hub name or folder, built without weights; raises `SettingsError` when it has no config."""
    return describe(Anatomy.of(from_config(model)))


# -- a saved adapter


def _restored(source: str | Path, model: str | None) -> tuple[Task, Loaded, Columns]:
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
    attach_file(loaded.model, file, folders.tensors_at)
    loaded.model.to("cuda" if torch.cuda.is_available() else "cpu").eval()
    return task, loaded, file.facts.get("columns", {})


def _adapter_folder(path: Path) -> Path:
    return path / "adapter" if (path / "adapter").is_dir() else path


def _reason(row: Rejected) -> str:
    return _at(row, row.reason)


def _at(place: Placed | Rejected | None, reason: str) -> str:
    """A reason with where its row stands; a row that the task composed stands nowhere."""
    return reason if place is None else f"{place.file}:{place.line}: {reason}"
