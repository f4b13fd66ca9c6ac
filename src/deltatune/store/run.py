"""The run folder: everything one training wrote, and nothing of another.

config.yaml  changes.jsonl  environment.json  rejected.jsonl  noted.jsonl  metrics.jsonl  bad_steps.jsonl  stacks.txt
checkpoint-N/  adapter/  results.json  answers.jsonl
"""

import fcntl
import json
import os
import platform
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
import yaml

from deltatune.core.config import read_yaml
from deltatune.core.errors import DeltatuneError, SettingsError, StorageError, did_you_mean
from deltatune.store import atomic

PACKAGES = ("deltatune", "torch", "transformers", "accelerate", "safetensors", "tokenizers", "numpy", "scikit-learn")
CHECKPOINT = "checkpoint-"
FREE_TO_CHANGE = ("output_dir",)
"""Settings that a resumed run may have otherwise."""
CHANGEABLE = frozenset(
    f"training.{name}"
    for name in (
        *("num_train_epochs", "max_steps", "early_stopping_patience", "eval_steps", "logging_steps"),
        *("learning_rate", "weight_decay", "lr_scheduler_type", "warmup_steps", "max_grad_norm"),
        *("save_total_limit", "per_device_eval_batch_size", "gradient_checkpointing", "report_to"),
        *("trunk_cache_dir", "trunk_disk_gb", "compile"),
        *("watts_per_core", "kg_co2_per_kwh"),
    )
)
"""Settings that a resumed run may have otherwise when they are named: rows, their order and the weights stay."""


Changes = dict[str, tuple[Any, Any]]
"""Dotted setting -> its value when the run began, and now."""


class RunFolder:
    """Paths and files of one run.

    `complete` gives what an earlier version wrote into config.yaml the settings that are newer, at their defaults.
    """

    def __init__(self, path: Path, complete: Callable[[Mapping[str, Any]], Mapping[str, Any]] = dict) -> None:
        self.path = path
        self.complete = complete
        self.metrics = path / "metrics.jsonl"
        self.bad_steps = path / "bad_steps.jsonl"
        self.adapter = path / "adapter"
        self.results = path / "results.json"
        self.answers = path / "answers.jsonl"
        self.curves = path / "curves.png"

    def check(self, settings: Mapping[str, Any], *, resume: bool, allowed: Collection[str] = ()) -> None:
        """Whether a run may write here; nothing is written. `allowed` are dotted settings that may have changed.

        Raises `SettingsError` when the folder holds another run, when there is none to resume, or when other settings
        changed since.
        """
        if fixed := sorted(set(allowed) - CHANGEABLE):
            raise SettingsError(f"{fixed[0]} cannot change in a run", hint=did_you_mean(fixed[0], CHANGEABLE))
        if resume:
            _check_resumable(self._changes(settings), set(allowed))
        elif allowed:
            raise SettingsError(f"{min(allowed)} may change only when a run is resumed", hint="add --resume")
        elif self.path.exists() and not self.path.is_dir():
            raise SettingsError(f"output_dir {self.path} is a file", hint="choose another one")
        elif self.path.exists() and any(not file.name.startswith(".") for file in self.path.iterdir()):
            raise SettingsError(f"output_dir {self.path} {self._content()}", hint=self._way_out())

    def open(self, settings: Mapping[str, Any], *, resume: bool) -> None:
        """Makes the folder of a new run, or tidies the one to go on with.

        Raises `StorageError` when the disk refuses, `SettingsError` when another run began here since `check`.
        """
        with writing(str(self.path)):
            self.path.mkdir(parents=True, exist_ok=True)
            atomic.sweep(self.path)
            config = yaml.safe_dump(dict(settings), sort_keys=False, allow_unicode=True)
            if not resume:
                self._begin(config)
            elif changes := self._changes(settings):
                self._note(changes)
                atomic.write_text(self.path / "config.yaml", config)

    def _begin(self, config: str) -> None:
        path = self.path / "config.yaml"
        if path.exists() and path.read_text(encoding="utf-8") != config:
            raise SettingsError(f"output_dir {self.path} {self._content()}", hint="choose another output_dir")
        atomic.write_text(path, config)
        atomic.write_text(self.path / "environment.json", json.dumps(environment(), indent=2, sort_keys=True) + "\n")

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keeps every other training out of the folder; the lock of a killed process is void.

        Raises `SettingsError` when a training is running here, `StorageError` when the disk refuses.
        """
        with writing(str(self.path)):
            lock = (self.path / ".lock").open("w")
        with lock as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise SettingsError(
                    f"another training is running in {self.path}",
                    hint="wait for it, stop it, or use another output_dir",
                ) from None
            yield

    def log(self, line: Mapping[str, Any]) -> None:
        """Appends a line to metrics.jsonl."""
        _append(self.metrics, line)

    def log_bad(self, line: Mapping[str, Any]) -> None:
        """Appends a line to bad_steps.jsonl."""
        _append(self.bad_steps, line)

    def forget_after(self, step: int, *, bad_too: bool = True) -> None:
        """Drops the lines of metrics.jsonl and bad_steps.jsonl behind a step: a resumed run writes them again."""
        for path in (self.metrics, self.bad_steps) if bad_too else (self.metrics,):
            if path.exists():
                lines = path.read_text(encoding="utf-8").splitlines()
                atomic.write_text(path, "".join(f"{line}\n" for line in lines if _step(line) <= step))

    def write_results(self, results: Mapping[str, Any]) -> None:
        """Writes results.json; raises `StorageError` when the disk refuses."""
        with writing(str(self.results)):
            atomic.write_text(self.results, json.dumps(results, indent=2) + "\n")

    def write_rejected(self, rejected: Sequence[Mapping[str, Any]]) -> None:
        """Writes rejected.jsonl: file, line, reason and content of every row that was not used.

        Raises `StorageError` when the disk refuses.
        """
        _write_lines(self.path / "rejected.jsonl", rejected)

    def write_answers(self, answers: Iterable[Mapping[str, Any]]) -> None:
        """Writes answers.jsonl: file and line of every test row, and what the trained adapter answered to it.

        Raises `StorageError` when the disk refuses.
        """
        _write_lines(self.answers, answers)

    def read_answers(self) -> list[dict[str, Any]]:
        """The lines of answers.jsonl."""
        return _read_lines(self.answers)

    def read_rejected(self) -> list[dict[str, Any]]:
        """The lines of rejected.jsonl."""
        return _read_lines(self.path / "rejected.jsonl")

    def write_noted(self, noted: Iterable[Mapping[str, Any]]) -> None:
        """Writes noted.jsonl: file, line and reason of every row that is good and not used, not used whole, or near.

        Raises `StorageError` when the disk refuses.
        """
        _write_lines(self.path / "noted.jsonl", noted)

    def checkpoint(self, step: int) -> Path:
        """Folder of the checkpoint of a step."""
        return self.path / f"{CHECKPOINT}{step}"

    def newest_checkpoint(self) -> Path | None:
        """The newest checkpoint that is whole, None when none was written yet; damaged newer ones are deleted.

        Raises `DeltatuneError` when there are checkpoints and none is whole.
        """
        newest = atomic.newest_valid(self.path, CHECKPOINT)
        present = [path for _, path in atomic.numbered(self.path, CHECKPOINT)]
        if newest is None and present:
            raise DeltatuneError(
                f"no checkpoint in {self.path} is whole: {present[-1].name}: {atomic.problem(present[-1])}",
                hint="delete the checkpoints to start from the beginning with --resume",
            )
        for path in present[present.index(newest) + 1 :] if newest else ():
            atomic.discard(path)
        return newest

    def prune_checkpoints(self, keep: int) -> None:
        """Deletes all but the newest `keep` checkpoints."""
        atomic.prune(self.path, CHECKPOINT, keep)

    def drop_checkpoints(self) -> None:
        """Deletes the checkpoints of a run that is finished."""
        for _, path in atomic.numbered(self.path, CHECKPOINT):
            atomic.discard(path)

    def _changes(self, settings: Mapping[str, Any]) -> Changes:
        """Settings that the run began with otherwise; raises `SettingsError` when there is no run."""
        config = self.path / "config.yaml"
        if not config.is_file():
            raise SettingsError(f"nothing to resume in {self.path}", hint="start without --resume")
        before, now = _flat(self.complete(read_yaml(config))), _flat(settings)
        return {
            key: (before.get(key), now.get(key))
            for key in sorted(before.keys() | now.keys())
            if before.get(key) != now.get(key) and key.split(".")[0] not in FREE_TO_CHANGE
        }

    def _note(self, changes: Changes) -> None:
        """Lines of changes.jsonl: what changed, and the checkpoint that stood when it did."""
        present = atomic.numbered(self.path, CHECKPOINT)
        step = present[-1][0] if present else 0
        for key, (before, now) in changes.items():
            _append(self.path / "changes.jsonl", {"setting": key, "before": before, "now": now, "step": step})

    def _content(self) -> str:
        if not (self.path / "config.yaml").is_file():
            return "is not empty"
        return "holds a finished run" if self.results.is_file() else "holds an unfinished run"

    def _way_out(self) -> str:
        if (self.path / "config.yaml").is_file() and not self.results.is_file():
            return "go on with --resume, or choose another output_dir"
        return "choose another output_dir"


@contextmanager
def writing(what: str) -> Iterator[None]:
    """Raises `StorageError` where the disk refuses what the block writes."""
    try:
        yield
    except OSError as error:
        raise StorageError(
            f"{what} cannot be written: {error}", hint="make room on the disk, then go on with --resume"
        ) from error


def environment() -> dict[str, Any]:
    """What the run ran on: versions, processor, threads, accelerator."""
    cuda = torch.cuda.is_available()
    return {
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "packages": {name: _version(name) for name in PACKAGES},
        "cpu_count": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name() if cuda else "cpu",
    }


def _check_resumable(changes: Changes, allowed: set[str]) -> None:
    refused = {key: change for key, change in changes.items() if key not in allowed}
    if not refused:
        return
    shown = ", ".join(f"{key} {before!r} -> {now!r}" for key, (before, now) in list(refused.items())[:5])
    if refused.keys() <= CHANGEABLE:
        hint = f"put them back, or accept them with {' '.join(f'--allow-change {key}' for key in refused)}"
    else:
        hint = "put them back, or start a new run"
    raise SettingsError(f"settings changed since the run started: {shown}", hint=hint)


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = list(value) if isinstance(value, tuple) else value
    return flat


def _write_lines(path: Path, lines: Iterable[Mapping[str, Any]]) -> None:
    text = "".join(json.dumps(line, ensure_ascii=False, default=str) + "\n" for line in lines)
    with writing(str(path)):
        atomic.write_text(path, text)


def _read_lines(path: Path) -> list[dict[str, Any]]:
    """What `_write_lines` wrote; `splitlines` would cut at U+2028 and its like, which stand in texts as they are."""
    with path.open(encoding="utf-8", newline="\n") as file:
        return [json.loads(line) for line in file]


def _append(path: Path, line: Mapping[str, Any]) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


def _step(line: str) -> int:
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):  # the torn last line of a killed run
        return sys.maxsize


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
