"""Every example config: readable by today's settings, and, where its inputs have been made, run as it stands."""

import ast
import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from deltatune.core import registry
from deltatune.core.config import RunSettings, read_yaml

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = sorted((ROOT / "examples").glob("*.yaml"))
SCRIPTS = [path for folder in ("examples", "benchmarks") for path in sorted((ROOT / folder).rglob("*.py"))]


def inputs(settings: RunSettings) -> list[str]:
    data = settings.data
    return [settings.model, *(source for source in (data.train, data.validation, data.test) if source)]


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_it_is_readable_and_says_how_to_make_its_inputs(path):
    settings = RunSettings.parse(read_yaml(path), "")
    registry.task(settings.task)
    registry.method(settings.method)
    comment = "".join(line for line in path.read_text().splitlines(keepends=True) if line.startswith("#"))
    assert "examples/models.py" in comment and "examples/data.py" in comment
    assert all(name.startswith(".cache/") for name in inputs(settings))


def test_every_task_has_an_example():
    typed = [RunSettings.parse(read_yaml(path), "").task for path in EXAMPLES]
    assert {task if isinstance(task, str) else task["type"] for task in typed} == set(registry.tasks())


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_script_imports_what_there_is(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("deltatune"):
            module = importlib.import_module(node.module)
            for alias in node.names:
                if not hasattr(module, alias.name):
                    importlib.import_module(f"{node.module}.{alias.name}")


@pytest.mark.example
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_it_runs_as_it_stands_and_beats_what_was_there_before(path, tmp_path):
    settings = RunSettings.parse(read_yaml(path), "")
    missing = [name for name in inputs(settings) if not (ROOT / name).exists()]
    if missing:
        pytest.skip(f"{', '.join(missing)} not made yet: see the first lines of {path.name}")
    command = [sys.executable, "-m", "deltatune.cli.main", "train", str(path), "--output_dir", str(tmp_path / "run")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env={**os.environ, "HF_HUB_OFFLINE": "1"})
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "run" / "results.json").read_text())
    metric = found["metric"]
    better = found["test"][metric] - found["before"][metric]
    lower = metric in registry.task(settings.task).lower_is_better
    assert (-better if lower else better) > 0
