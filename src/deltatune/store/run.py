"""The run folder: everything one training wrote, and nothing of another.

    config.yaml  environment.json  metrics.jsonl  rejected.jsonl  checkpoint-N/  adapter/  results.json
"""

import json
import os
import platform
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import yaml

from deltatune.core.config import read_yaml
from deltatune.core.errors import SettingsError
from deltatune.store import atomic

PACKAGES = ("deltatune", "torch", "transformers", "accelerate", "safetensors", "tokenizers", "numpy", "scikit-learn")
FREE_TO_CHANGE = ("output_dir",)
"""Settings that a resumed run may have otherwise."""


class RunFolder:
    """Paths and files of one run."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.metrics = path / "metrics.jsonl"
        self.adapter = path / "adapter"
        self.results = path / "results.json"
        self.curves = path / "curves.png"

    def check(self, settings: Mapping[str, Any], *, resume: bool) -> None:
        """Whether a run may write here; nothing is written.

        Raises `SettingsError` when the folder holds another run, when there is none to resume, or when settings
        changed since.
        """
        if resume:
            _check_resumable(self.path / "config.yaml", settings)
        elif self.path.exists() and (not self.path.is_dir() or any(self.path.iterdir())):
            raise SettingsError(f"output_dir {self.path} is not empty", hint="--resume goes on; or choose another one")

    def open(self, settings: Mapping[str, Any], *, resume: bool) -> None:
        """Makes the folder of a new run, or tidies the one to go on with."""
        self.path.mkdir(parents=True, exist_ok=True)
        atomic.sweep(self.path)
        if not resume:
            config = yaml.safe_dump(dict(settings), sort_keys=False, allow_unicode=True)
            atomic.write_text(self.path / "config.yaml", config)
            described = json.dumps(environment(), indent=2, sort_keys=True)
            atomic.write_text(self.path / "environment.json", described + "\n")

    def log(self, line: Mapping[str, Any]) -> None:
        """Appends a line to metrics.jsonl."""
        with self.metrics.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def forget_after(self, step: int) -> None:
        """Drops the lines of metrics.jsonl behind a step: a resumed run writes them again."""
        if not self.metrics.exists():
            return
        lines = self.metrics.read_text(encoding="utf-8").splitlines()
        kept = [line for line in lines if _step(line) <= step]
        atomic.write_text(self.metrics, "".join(f"{line}\n" for line in kept))

    def write_results(self, results: Mapping[str, Any]) -> None:
        """Writes results.json."""
        atomic.write_text(self.results, json.dumps(results, indent=2) + "\n")

    def write_rejected(self, rejected: Sequence[Mapping[str, Any]]) -> None:
        """Writes rejected.jsonl: file, line, reason and content of every row that was not used."""
        text = "".join(json.dumps(row, ensure_ascii=False, default=str) + "\n" for row in rejected)
        atomic.write_text(self.path / "rejected.jsonl", text)

    def checkpoint(self, step: int) -> Path:
        """Folder of the checkpoint of a step."""
        return self.path / f"checkpoint-{step}"


def environment() -> dict[str, Any]:
    """What the run ran on: versions, processor, threads, accelerator."""
    import torch

    cuda = torch.cuda.is_available()
    return {
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "packages": {name: _version(name) for name in PACKAGES},
        "cpu_count": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name() if cuda else "cpu",
    }


def _check_resumable(config: Path, settings: Mapping[str, Any]) -> None:
    if not config.is_file():
        raise SettingsError(f"nothing to resume in {config.parent}", hint="start without --resume")
    before, now = _flat(read_yaml(config)), _flat(settings)
    changed = sorted(key for key in before.keys() | now.keys()
                     if before.get(key) != now.get(key) and key.split(".")[0] not in FREE_TO_CHANGE)
    if changed:
        shown = ", ".join(f"{key} {before.get(key)!r} -> {now.get(key)!r}" for key in changed[:5])
        raise SettingsError(f"settings changed since the run started: {shown}", hint="put them back, or start a new run")


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = list(value) if isinstance(value, tuple) else value
    return flat


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
