"""Locks between processes: who waits, who is seen, and that a killed process holds nothing."""

import fcntl
import subprocess
import sys

import pytest

from deltatune.core.errors import StorageError
from deltatune.store.lock import alone, held

HOLDS = "import sys, pathlib; from deltatune.store.lock import alone\n"
HOLDS += "with alone(pathlib.Path(sys.argv[1])): print('in', flush=True); sys.stdin.read()"


@pytest.fixture
def other(tmp_path):
    """Another process inside the lock."""
    command = [sys.executable, "-c", HOLDS, str(tmp_path / "lock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        yield process
        process.kill()


def test_who_comes_second_waits_and_then_says_so(tmp_path, other):
    assert held(tmp_path / "lock")
    with pytest.raises(StorageError, match="another process has held .*lock for 0.1 s"), alone(tmp_path / "lock", 0.1):
        pass


def test_a_killed_process_holds_nothing(tmp_path, other):
    other.kill()
    other.wait()
    assert not held(tmp_path / "lock")
    with alone(tmp_path / "lock", 0.0):
        assert held(tmp_path / "lock")
    assert not held(tmp_path / "lock")
    assert not held(tmp_path / "never")


def test_any_number_can_look_at_once_and_one_that_comes_waits_for_them(tmp_path):
    path = tmp_path / "lock"
    path.touch()
    with path.open() as looking:
        fcntl.flock(looking.fileno(), fcntl.LOCK_SH)  # a look that takes long
        assert not held(path)
        with pytest.raises(StorageError, match="another process"), alone(path, 0.1):
            pass
    with alone(path, 0.0):
        assert held(path)
