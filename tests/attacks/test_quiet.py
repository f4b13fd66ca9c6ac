"""Nothing is told to anybody: no socket after the start unless a name of the hub asks for it; two runs do not meet."""

import json
import os
import shutil
import subprocess
import sys

import pytest
import torch
import yaml
from safetensors.torch import load_file

import deltatune
from words import csv_file, model_folder, reviews

HEARD = """
import sys
seen = []
HARMLESS = ("socket.__new__", "socket.gethostname")

def hear(event, args):
    if event.startswith(("socket.", "urllib.", "http.", "ftplib.", "smtplib.")) and event not in HARMLESS:
        seen.append(f"{event} {args!r}"[:200])
        raise OSError("no sockets here")

sys.addaudithook(hear)
from deltatune.cli.main import build

for words in sys.stdin.read().splitlines():
    try:
        build()(words.split("\\t"))
    except SystemExit as end:
        assert not end.code, (words, end.code)
assert not seen, seen
import huggingface_hub.constants
assert huggingface_hub.constants.HF_HUB_DISABLE_TELEMETRY
"""


@pytest.fixture
def place(tmp_path):
    """Rows, a model and a config."""
    model_folder(tmp_path / "model")
    csv_file(tmp_path / "reviews.csv", reviews(80))
    config = {
        "task": "text-classification",
        "model": "model",
        "data": {"train": "reviews.csv"},
        "method": {"type": "lora", "r": 2, "target_modules": "all-linear", "lora_dropout": 0.1},
        "training": {"max_steps": 4, "per_device_train_batch_size": 8, "bf16": False},
        "output_dir": "run",
    }
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(config))
    return tmp_path


def environment():
    """Ours, without the switch that keeps the hub's library quiet."""
    mine = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    return {**mine, "OMP_NUM_THREADS": "1"}


COMMANDS = (
    "check\trun.yaml\t--accept\tlearning rate",
    "train\trun.yaml\t--quiet",
    "evaluate\trun\t--data\treviews.csv",
    "predict\trun\t--text\ta superb film",
    "inspect\tmodel",
    "methods",
    "tasks",
)


ALONE = ("unshare", "--map-root-user", "--net")
"""Before a command: it has no network at all."""


def without_network():
    """The same where the system lets a process give up its network, else nothing."""
    able = shutil.which("unshare") and not subprocess.run([*ALONE, "true"], capture_output=True).returncode
    return ALONE if able else ()


@pytest.mark.timeout(600)
def test_no_command_opens_a_socket_on_local_files_or_needs_a_network(place):
    words = [*without_network(), sys.executable, "-c", HEARD]
    done = subprocess.run(
        words, input="\n".join(COMMANDS), cwd=place, env=environment(), capture_output=True, text=True, timeout=500
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert (place / "run" / "results.json").is_file()


def told(folder):
    """What a run found, without how long it took, what that took, and what was expected of a machine that is busy."""
    found = json.loads((folder / "results.json").read_text())
    found = {key: value for key, value in found.items() if key not in ("energy", "forecast", "answering")}
    return {**found, "train": {k: v for k, v in found["train"].items() if k not in ("seconds", "peak_memory_bytes")}}


@pytest.mark.timeout(600)
def test_two_runs_at_once_are_each_what_they_are_alone(place, monkeypatch):
    monkeypatch.chdir(place)
    command = [sys.executable, "-m", "deltatune.cli.main", "train", "run.yaml", "--quiet", "--output_dir"]
    both = [
        subprocess.Popen([*command, name], cwd=place, env=environment(), stdout=subprocess.DEVNULL)
        for name in ("one", "other")
    ]
    alone = deltatune.train_config("run.yaml", {"output_dir": "alone"}, quiet=True)
    assert [process.wait(500) for process in both] == [0, 0]
    weights = "adapter/adapter_model.safetensors"
    for name in ("one", "other"):
        assert told(place / name) == told(alone.folder)
        found, wanted = load_file(place / name / weights), load_file(alone.folder / weights)  # headers have any order
        assert found.keys() == wanted.keys()
        assert all(torch.equal(found[key], tensor) for key, tensor in wanted.items())
