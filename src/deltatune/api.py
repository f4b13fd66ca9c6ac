"""The public functions: attach and load for any loop, finetune for the whole way from rows to a tested adapter."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch

from deltatune.adapters import Adapter, active, attach, blend, load, materialize, prepare
from deltatune.advise.rank import Goal
from deltatune.advising import advice
from deltatune.comparison.compare import Comparison
from deltatune.comparison.compare import compare as compare_methods
from deltatune.comparison.live import Watching
from deltatune.comparison.opening import Tune, folder_of
from deltatune.comparison.worker import join
from deltatune.core import registry
from deltatune.core.config import RunSettings, override, read_yaml
from deltatune.core.errors import DataError, SettingsError
from deltatune.core.method import Method
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
    "Comparison",
    "Rehearsal",
    "Rows",
    "Run",
    "Stack",
    "active",
    "advise",
    "attach",
    "blend",
    "check_config",
    "compare",
    "compare_config",
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


def advise(
    config: str | Path | Mapping[str, Any], *, goal: Goal = "quality", memory_gb: float | None = None
) -> dict[str, Any]:
    """Methods ranked for a config (a YAML file or its content), what each will take, and settings to begin with.

    Loads no weights. Raises what a training would raise, `SettingsError` when no method meets the goal or the memory.
    """
    values = config if isinstance(config, Mapping) else read_yaml(Path(config))
    return advice(values, goal=goal, memory_gb=memory_gb)


def evaluate(source: str | Path, data: str, *, model: str | None = None, batch_size: int = 64) -> dict[str, Any]:
    """Metrics of a run or adapter on a labelled file; `model` names the base where it is not the recorded one.

    `rejected` lists rows that could not be scored, `account` says where every row of the file went: read = rejected +
    unused + used.
    """
    task, loaded, columns = _restored(source, model)
    found = rows_of(read(data, Path.cwd()), task, columns, labelled=True)
    given = [place.row for place in found if isinstance(place, Placed)]
    rows = task.compose(given) if given else []
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
    if file is None and not len(rows if rows is not None else texts or ()):
        return []
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
    composed = task.compose(good) if good else []
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


def compare_config(
    path: str | Path,
    overrides: Mapping[str, str] | None = None,
    *,
    methods: Sequence[str] | Mapping[str, Any] = (),
    seeds: int = 3,
    budget: float | None = None,
    tune: Tune = "rates",
    trials: int | None = None,
    output_dir: str | Path | None = None,
    resume: bool = False,
    quiet: bool = False,
) -> Comparison:
    """Compares methods and baselines on the rows of a YAML file, the same as `deltatune compare`."""
    settings = RunSettings.parse(override(read_yaml(Path(path)), overrides or {}), "")
    watching = Watching(quiet=quiet)
    how: dict[str, Any] = {"seeds": seeds, "budget": budget, "tune": tune, "trials": trials, "output_dir": output_dir}
    with watching.shown():
        return compare_methods(settings, methods, **how, resume=resume, watch=watching)


def compare(
    methods: Sequence[str] | Mapping[str, Any],
    *,
    task: str | Mapping[str, Any],
    model: str,
    data: Mapping[str, Any],
    output_dir: str | Path,
    training: Mapping[str, Any] | None = None,
    forgetting: Mapping[str, Any] | None = None,
    seeds: int = 3,
    budget: float | None = None,
    tune: Tune = "rates",
    trials: int | None = None,
    resume: bool = False,
    quiet: bool = False,
) -> Comparison:
    """Trains, tests and weighs methods on one's own rows, with a linear probe and full fine-tuning beside them.

    `methods` are names, or settings by names of one's own (`{"small": LoRA(r=2), "large": LoRA(r=64)}`). The learning
    rate of each is searched by successive halving, or with `tune="settings"` rate and size by Optuna in so many
    `trials`, or with `"none"` nothing; then each is trained whole with `seeds` seeds. `budget` is the seconds for all
    of it, and what did not fit is said in `left_out`. Chosen is the best on the validation rows; differences on the
    test rows come with intervals and corrected p-values. `resume` goes on after a kill.
    """
    common: dict[str, Any] = {"task": task, "model": model, "data": dict(data), "training": dict(training or {})}
    common["forgetting"] = dict(forgetting or {})
    first = next(iter(methods), "lora")
    given = methods[first] if isinstance(methods, Mapping) else first
    values = {**common, "method": _as_settings(given), "output_dir": str(output_dir)}
    watching = Watching(quiet=quiet)
    how: dict[str, Any] = {"seeds": seeds, "budget": budget, "tune": tune, "trials": trials, "output_dir": output_dir}
    with watching.shown():
        return compare_methods(RunSettings.parse(values, ""), methods, **how, resume=resume, watch=watching)


def join_comparison(
    path: str | Path,
    overrides: Mapping[str, str] | None = None,
    *,
    output_dir: str | Path | None = None,
    quiet: bool = False,
) -> int:
    """Takes part in the search of a comparison that another process began (`tune="settings"`), until it ends.

    The number of trials that were made here; the config, or `output_dir`, says where. Raises `SettingsError` where no
    search of this config runs.
    """
    settings = RunSettings.parse(override(read_yaml(Path(path)), overrides or {}), "")
    watching = Watching(quiet=quiet)
    with watching.shown():
        return join(settings, folder_of(settings, output_dir), watching)


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


def _as_settings(given: Any) -> Any:
    """A method as a config has it."""
    return {"type": given.type, **given.model_dump(mode="json")} if isinstance(given, Method) else given


def _adapter_folder(path: Path) -> Path:
    return path / "adapter" if (path / "adapter").is_dir() else path


def _reason(row: Rejected) -> str:
    return _at(row, row.reason)


def _at(place: Placed | Rejected | None, reason: str) -> str:
    """A reason with where its row stands; a row that the task composed stands nowhere."""
    return reason if place is None else f"{place.file}:{place.line}: {reason}"
