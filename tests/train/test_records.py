"""A disk that refuses costs a warning first and the training last; never a checkpoint that was there."""

import errno
import os

import pytest

from deltatune.core.errors import SettingsError, StorageError
from deltatune.store import atomic, state
from deltatune.store.run import RunFolder
from deltatune.train.loop import Stopped, train
from train.test_resume import interrupted
from train.toy import job


@pytest.fixture
def full_at(monkeypatch):
    """Makes the disk full for some of the checkpoints, counted from 1; gives the list of all tries."""

    def fill(*failing: int) -> list[int]:
        tries, save = [], state.save

        def attempt(folder, values):
            tries.append(len(tries) + 1)
            if tries[-1] in failing:
                raise OSError(errno.ENOSPC, "No space left on device")
            save(folder, values)

        monkeypatch.setattr(state, "save", attempt)
        return tries

    return fill


def test_training_goes_on_when_a_checkpoint_fails_now_and_then(tmp_path, full_at, caplog):
    full_at(2, 3, 5, 6)
    assert train(job(tmp_path, max_steps=7, eval_steps=1)).steps == 7
    assert caplog.text.count("No space left on device; training goes on") == 4
    assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == ["checkpoint-4", "checkpoint-7"]


def test_the_third_failure_in_a_row_ends_it_and_the_last_checkpoint_stays(tmp_path, full_at):
    tries = full_at(2, 3, 4)
    with pytest.raises(StorageError, match="a checkpoint cannot be written: .*No space left.*; make room") as caught:
        train(job(tmp_path, max_steps=9, eval_steps=1))
    assert caught.value.exit_code == 4
    assert len(tries) == 4
    assert atomic.newest_valid(tmp_path, "checkpoint-") == tmp_path / "checkpoint-1"
    assert not list(tmp_path.glob(".staging*"))


def test_a_step_is_saved_once_though_a_signal_comes_at_its_evaluation(tmp_path, full_at):
    tries = full_at()
    with pytest.raises(Stopped):
        train(interrupted(job(tmp_path, gradient_accumulation_steps=2, eval_steps=2), 2))
    assert tries == [1]


def test_a_signal_does_not_claim_to_have_saved_what_it_could_not(tmp_path, full_at):
    full_at(1)
    with pytest.raises(StorageError, match="a checkpoint cannot be written") as caught:
        train(interrupted(job(tmp_path, gradient_accumulation_steps=2), 1))
    assert caught.value.exit_code == 4


def test_a_best_adapter_that_cannot_be_written_is_still_in_the_handle(tmp_path, caplog):
    work = job(tmp_path, max_steps=2)

    def refuse():
        raise PermissionError("read-only")

    object.__setattr__(work, "save_best", refuse)
    assert train(work).best_step == 2
    assert "the best adapter cannot be written" in caplog.text


def test_a_folder_that_becomes_read_only_keeps_its_checkpoint_and_ends_the_training(tmp_path, monkeypatch):
    def refused(path, *args, **kwargs):
        if ".staging-checkpoint" in str(path) and (tmp_path / "checkpoint-1").exists():
            raise OSError(errno.EROFS, "Read-only file system", str(path))
        made(path, *args, **kwargs)

    made = os.mkdir
    monkeypatch.setattr(os, "mkdir", refused)
    with pytest.raises(StorageError, match="Read-only file system"):
        train(job(tmp_path, max_steps=9, eval_steps=1))
    assert [path.name for path in tmp_path.glob("*checkpoint*")] == ["checkpoint-1"]
    assert atomic.problem(tmp_path / "checkpoint-1") is None


def test_a_folder_that_cannot_be_made_is_an_error_of_the_disk(tmp_path, monkeypatch):
    def refused(path, *args, **kwargs):
        raise OSError(errno.EROFS, "Read-only file system", str(path))

    monkeypatch.setattr(os, "mkdir", refused)
    with pytest.raises(StorageError, match="Read-only file system.*make room"):
        RunFolder(tmp_path / "run").open({}, resume=False)


def test_two_trainings_do_not_share_a_folder(tmp_path):
    work = job(tmp_path)
    with work.folder.locked(), pytest.raises(SettingsError, match="another training is running"):
        train(job(tmp_path))
    assert not (tmp_path / "metrics.jsonl").exists()
