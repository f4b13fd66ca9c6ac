"""Processes are stopped and killed; what they had saved is usable, and what follows is equal to the bit."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from deltatune.store import atomic, state
from train.test_resume import assert_same_checkpoint
from train.toy import lines

pytestmark = pytest.mark.crash
LAST = 12
"""Steps of the training."""


class Stage:
    """The process that forks the victims."""

    def __init__(self) -> None:
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        self.process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("victims.py"))],
            env=environment,
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )

    def ask(self, *words: object) -> int:
        """The answer to a line."""
        print(*words, file=self.process.stdin, flush=True)
        return int(self.process.stdout.readline())


@pytest.fixture(scope="module")
def stage():
    found = Stage()
    yield found
    found.process.communicate()


@pytest.fixture(scope="module")
def straight(stage, tmp_path_factory):
    """The folder of a training that nobody disturbed."""
    folder = tmp_path_factory.mktemp("straight")
    assert stage.ask("wait", stage.ask("train", folder, 0)) == 0
    return folder


def wait_for_a_line(folder: Path) -> None:
    """Until the log has begun: the training is under way."""
    while not (folder / "metrics.jsonl").exists():
        time.sleep(0.01)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stopped_training_says_how_to_go_on_and_can(stage, straight, tmp_path, number, code):
    folder = tmp_path / "run"
    victim = stage.ask("train", folder, 0.1)
    wait_for_a_line(folder)
    os.kill(victim, number)
    assert stage.ask("wait", victim) == code
    messages = (tmp_path / "run.err").read_text()
    assert "once more to stop at once" in messages and "go on with the same command and --resume" in messages
    assert 0 < len(lines(folder)) < len(lines(straight))
    assert stage.ask("wait", stage.ask("train", folder, 0)) == 0
    assert lines(folder) == lines(straight)
    assert_same_checkpoint(straight, folder, LAST)


def test_a_second_signal_stops_at_once(stage, tmp_path):
    folder = tmp_path / "run"
    victim = stage.ask("train", folder, 2)
    wait_for_a_line(folder)  # the end of a step: its checkpoint is still to come, and the next step takes 4 s
    time.sleep(1)
    os.kill(victim, signal.SIGINT)
    while "once more" not in (tmp_path / "run.err").read_text():
        time.sleep(0.01)
    os.kill(victim, signal.SIGINT)
    assert stage.ask("wait", victim) == -signal.SIGINT


@pytest.mark.parametrize("kills", [20, pytest.param(200, marks=pytest.mark.torture)])
def test_no_kill_costs_a_confirmed_save_or_leaves_an_unusable_one(stage, tmp_path, kills):
    chance, confirmed = random.Random(0), tmp_path / "confirmed"
    confirmed.touch()
    unfinished = 0
    for _ in range(kills):
        victim = stage.ask("save", tmp_path, 0)
        time.sleep(chance.uniform(0.02, 0.2))
        os.kill(victim, signal.SIGKILL)
        assert stage.ask("wait", victim) == -signal.SIGKILL
        found = atomic.numbered(tmp_path, "checkpoint-")
        assert [(atomic.problem(path), float(state.load(path)["tensor"][-1])) for _, path in found] == [
            (None, number) for number, _ in found
        ]
        assert max((number for number, _ in found), default=0) >= confirmed.stat().st_size
        unfinished += len(list(tmp_path.glob(".*")))
        atomic.sweep(tmp_path)
        assert not list(tmp_path.glob(".*"))
    assert confirmed.stat().st_size > 5 and unfinished > 0


def test_a_second_process_is_refused_and_the_first_goes_on(stage, straight, tmp_path):
    folder = tmp_path / "run"
    first = stage.ask("train", folder, 0.1)
    wait_for_a_line(folder)
    assert stage.ask("wait", stage.ask("train", folder, 0)) == 2
    assert "another training is running" in (tmp_path / "run.err").read_text()
    assert stage.ask("wait", first) == 0
    assert lines(folder) == lines(straight)
    assert_same_checkpoint(straight, folder, LAST)


def test_a_training_that_is_killed_again_and_again_ends_as_if_nothing_had_been(stage, straight, tmp_path):
    folder = tmp_path / "run"
    for life in range(1, 50):
        victim = stage.ask("train", folder, 0.02)
        time.sleep(0.1 + 0.05 * life)
        os.kill(victim, signal.SIGKILL)  # a child that has ended waits to be asked for
        code = stage.ask("wait", victim)
        if code == 0:
            break
        assert code == -signal.SIGKILL
    assert life > 2
    assert lines(folder) == lines(straight)
    assert_same_checkpoint(straight, folder, LAST)
