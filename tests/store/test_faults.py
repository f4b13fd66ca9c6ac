"""Every system call of a save fails in turn, or the process dies at it: no checkpoint is lost, half or wrong."""

import errno
import io
import os
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError

from deltatune.store import atomic, state

CALLS = ("mkdir", "open", "close", "fsync", "rename", "replace", "unlink", "rmdir", "scandir", "listdir", "stat")
PREFIX = "checkpoint-"


class Faults:
    """Counts the calls that a save makes of the system and lets one of them go wrong."""

    def __init__(self, patch: pytest.MonkeyPatch, fail_at: int = 0, wrong=None) -> None:
        self.made: list[str] = []
        self.fail_at, self.wrong = fail_at, wrong
        for name in CALLS:
            patch.setattr(os, name, self.watched(name, getattr(os, name)))
        patch.setattr(io, "open", self.opening(io.open))
        patch.setattr(state, "save_file", self.saving(state.save_file))

    def due(self, name: str) -> bool:
        """Notes a call; whether it is the one to go wrong."""
        self.made.append(name)
        return len(self.made) == self.fail_at

    def watched(self, name, call):
        def made(*args, **kwargs):
            if self.due(name):
                if name == "close":  # Linux closes the file whatever it says
                    call(*args, **kwargs)
                self.wrong(name)
            return call(*args, **kwargs)

        return made

    def opening(self, call):
        """A file that may be refused, or be written by half."""

        def made(*args, **kwargs):
            if self.due("io.open"):
                self.wrong("io.open")
            file = call(*args, **kwargs)
            if file.writable():
                write = file.write

                def halved(content):
                    if self.due("write"):
                        write(content[: len(content) // 2])
                        file.flush()
                        self.wrong("write")
                    return write(content)

                file.write = halved
            return file

        return made

    def saving(self, call):
        """Tensors that are written by half."""

        def made(tensors, path):
            call(tensors, path)
            if self.due("save_file"):
                os.truncate(path, path.stat().st_size // 2)
                self.wrong("save_file")

        return made


def refuse(name: str) -> None:
    """The disk is full or broken."""
    if name == "save_file":
        raise SafetensorError("No space left on device")
    raise OSError(errno.ENOSPC, "No space left on device", name)


def die(name: str) -> None:
    """The process is gone, as by a kill -9."""
    os._exit(9)


def save(run: Path, step: int) -> None:
    """A checkpoint as a training writes it; the newest two are kept."""
    with atomic.folder(run / f"{PREFIX}{step}") as staging:
        state.save(staging, {"step": step, "weights": torch.full((100,), float(step))})
    atomic.prune(run, PREFIX, 2)


def before(run: Path) -> Path:
    """A run with two checkpoints, so that the next one throws one away."""
    run.mkdir()
    save(run, 1), save(run, 2)
    return run


def calls(run: Path) -> list[str]:
    """The calls of one save."""
    before(run)
    with pytest.MonkeyPatch.context() as patch:
        faults = Faults(patch)
        save(run, 3)
    return faults.made


def assert_nothing_lost(run: Path, where: object) -> None:
    """Whatever has the name of a checkpoint is whole; the last good one is there, and the next save succeeds."""
    found = atomic.numbered(run, PREFIX)
    for step, path in found:
        assert atomic.problem(path) is None, where
        assert state.load(path)["weights"].tolist() == [float(step)] * 100, where
    assert 2 in dict(found), where
    save(run, 4)
    assert [step for step, _ in atomic.numbered(run, PREFIX)][-1] == 4, where


def test_a_save_makes_enough_calls_for_the_faults_to_mean_something(tmp_path):
    made = calls(tmp_path / "run")
    assert len(made) >= 30
    assert {"mkdir", "open", "fsync", "rename", "write", "save_file", "unlink", "rmdir"} <= set(made)


def test_a_save_in_which_any_call_fails_loses_nothing_and_says_so(tmp_path, monkeypatch):
    made = calls(tmp_path / "counted")
    for fail_at in range(1, len(made) + 1):
        run = before(tmp_path / str(fail_at))
        failed = False
        with pytest.MonkeyPatch.context() as patch:
            faults = Faults(patch, fail_at, refuse)
            try:
                save(run, 3)
            except OSError:
                failed = True
        where = (fail_at, faults.made[-1], made[fail_at - 1])
        assert failed or (run / f"{PREFIX}3").exists(), where  # only the deletion of what is in the trash may fail
        assert_nothing_lost(run, where)
        monkeypatch.setattr(atomic, "alive", lambda owner: False)
        atomic.sweep(run)
        assert not list(run.glob(".*")), where


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_process_that_dies_at_any_call_of_a_save_loses_nothing(tmp_path, monkeypatch):
    made = calls(tmp_path / "counted")
    monkeypatch.setattr(atomic, "alive", lambda owner: False)
    for fail_at in range(1, len(made) + 1):
        run = before(tmp_path / str(fail_at))
        child = os.fork()
        if child == 0:
            with pytest.MonkeyPatch.context() as patch:
                Faults(patch, fail_at, die)
                save(run, 3)
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9, fail_at
        atomic.sweep(run)
        assert not list(run.glob(".*")), fail_at
        assert_nothing_lost(run, fail_at)
