"""First config: a commented YAML file for a proposal, with settings to begin with."""

import json
from pathlib import Path

import yaml

from deltatune.core.config import read_yaml
from deltatune.core.errors import SettingsError, did_you_mean
from deltatune.rehearsal.proposal import Proposal

GOALS = {
    "quality": ("{type: lora, r: 8, lora_alpha: 16, target_modules: all-linear}", "the best answers"),
    "memory": ("{type: bitfit}", "the least memory in training: biases alone"),
    "speed": ("{type: adapter, placement: parallel}", "the shortest steps"),
    "size": ("{type: ia3}", "the smallest file: one scale per channel"),
}
"""Goal -> method, and what it is good at: docs/results/quality.md measures all methods on one task."""
PASSES = ((500, 20), (3_000, 8), (20_000, 4))
"""Rows of a file up to which so many passes are proposed; 2 for larger ones."""


def first_config(path: Path, proposal: Proposal, data: str, rows: int, model: str, goal: str, output_dir: str) -> str:
    """The text of the file at `path`; raises `SettingsError` for an unknown goal."""
    if goal not in GOALS:
        raise SettingsError(f"goal {goal!r} is unknown", hint=did_you_mean(goal, GOALS))
    method, why = GOALS[goal]
    columns = ", ".join(f"{word}: {quoted(name)}" for word, name in proposal.columns.items())
    where = f"{{train: {quoted(data)}" + (f", columns: {{{columns}}}}}" if columns else "}")
    epochs = next((passes for most, passes in PASSES if rows <= most), 2)
    named = "a folder" if Path(model).is_dir() else "a hub name: it is fetched the first time; a folder works too"
    return f"""# {proposal.title}.
# deltatune check {path.name}      tries it, in about a minute
# deltatune train {path.name}      every key: docs/training.md, docs/data.md, docs/tasks/{proposal.task}.md
task: {proposal.task}
model: {quoted(model)} # {named}
# a tenth of the rows each is split off for validation and test; name files of your own with validation: and test:
data: {where}
method: {method} # for {why}; others: deltatune methods
training:
  num_train_epochs: {epochs} # {rows:,} rows; stops earlier when the validation rows get no better
  per_device_train_batch_size: {16 if rows > 100 else 8}
  # learning_rate: the method's own; deltatune check draws what others would do
output_dir: {quoted(output_dir)}
"""


def quoted(text: str) -> str:
    """A text as a YAML scalar.

    >>> quoted("runs/one"), quoted("a: b")
    ('runs/one', '"a: b"')
    """
    try:
        plain = bool(yaml.safe_load(f"{{word: {text}}}") == {"word": text})
    except yaml.YAMLError:
        plain = False
    return text if plain else json.dumps(text, ensure_ascii=False)


def write(text: str, path: Path) -> None:
    """Writes a new file; raises `SettingsError` for one that is there, and for a folder that is not."""
    if path.exists():
        raise SettingsError(f"{path} is there already", hint="name another file, or take it away first")
    if not path.parent.is_dir():
        raise SettingsError(f"folder {path.parent} does not exist", hint="make it first")
    path.write_text(text, encoding="utf-8")
    read_yaml(path)
