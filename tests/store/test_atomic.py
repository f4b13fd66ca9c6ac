"""A folder is whole or not there, whatever fails and whoever is killed."""

import errno
import json
import os
import shutil
from pathlib import Path

import pytest

from deltatune.core.errors import DeltatuneError
from deltatune.store import atomic
from deltatune.store.owner import this_process

DEAD = "1.12345"
"""A process number that lives, with a start time that was not its."""


def write(final: Path, text: str = "one") -> Path:
    with atomic.folder(final) as staging:
        (staging / "a.bin").write_bytes(text.encode() * 50)
        (staging / "b.json").write_text(json.dumps({"text": text}))
    return final


def content(folder: Path) -> str:
    return json.loads((folder / "b.json").read_text())["text"]


def hidden(parent: Path) -> list[str]:
    return sorted(path.name for path in parent.iterdir() if path.name.startswith("."))


def test_a_written_folder_is_whole_and_nothing_else_is_left(tmp_path):
    folder = write(tmp_path / "deep" / "x-1")
    assert sorted(path.name for path in folder.iterdir()) == ["a.bin", "b.json", "manifest.json"]
    assert atomic.problem(folder) is None and not hidden(folder.parent)


def test_the_new_folder_takes_the_place_of_the_old(tmp_path):
    write(tmp_path / "x"), write(tmp_path / "x", "two")
    assert content(tmp_path / "x") == "two" and not hidden(tmp_path)


def test_a_file_in_the_way_is_refused(tmp_path):
    (tmp_path / "x").write_text("mine")
    with pytest.raises(DeltatuneError, match="is a file where a folder is to be written"):
        write(tmp_path / "x")
    assert (tmp_path / "x").read_text() == "mine" and not hidden(tmp_path)


@pytest.mark.parametrize("name", ["a.bin", "b.json", "manifest.json"])
def test_every_flipped_bit_is_detected(tmp_path, name):
    folder = write(tmp_path / "x")
    path = folder / name
    good = path.read_bytes()
    for position in range(0, len(good), max(1, len(good) // 40)):
        path.write_bytes(good[:position] + bytes([good[position] ^ 4]) + good[position + 1 :])
        if name != "manifest.json" or json_differs(good, path.read_bytes()):
            assert atomic.problem(folder) is not None, position
    path.write_bytes(good)
    assert atomic.problem(folder) is None


def json_differs(one: bytes, other: bytes) -> bool:
    """Whether two texts mean something else; a changed space between keys does no harm."""
    try:
        return json.loads(one) != json.loads(other)
    except ValueError:
        return True


@pytest.mark.parametrize("name", ["a.bin", "b.json", "manifest.json"])
def test_every_truncated_file_is_detected(tmp_path, name):
    folder = write(tmp_path / "x")
    good = (folder / name).read_bytes()
    for size in (0, 1, len(good) // 2, len(good) - 2):
        (folder / name).write_bytes(good[:size])
        assert atomic.problem(folder) is not None, size


def test_missing_and_extra_files_are_named(tmp_path):
    folder = write(tmp_path / "x")
    (folder / "c").touch()
    assert atomic.problem(folder) == "files differ from the manifest: c"
    (folder / "c").unlink(), (folder / "b.json").unlink()
    assert atomic.problem(folder) == "files differ from the manifest: b.json"


@pytest.mark.parametrize("manifest", ["[]", "1", '{"a.bin": 1}', '{"a.bin": {"bytes": 150}}', "", "\ud800"])
def test_a_senseless_manifest_is_a_problem_and_no_crash(tmp_path, manifest):
    folder = write(tmp_path / "x")
    (folder / "manifest.json").write_bytes(manifest.encode("utf-8", "surrogatepass"))
    assert atomic.problem(folder) is not None


def failing(counter: list[str], function, fail_at: int):
    """The function, with an error of the disk at the given count of all watched calls."""

    def call(*args, **kwargs):
        counter.append(function.__name__)
        if len(counter) == fail_at:
            raise OSError(errno.EIO, function.__name__)
        return function(*args, **kwargs)

    return call


def attempt(final: Path, fail_at: int) -> tuple[list[str], bool]:
    """A save in which one system call fails: the calls it made, and whether it said so."""
    counter: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        for name in ("fsync", "rename", "replace"):
            patch.setattr(os, name, failing(counter, getattr(os, name), fail_at))
        try:
            write(final, "new")
        except OSError:
            return counter, True
    return counter, False


@pytest.mark.parametrize(("before", "calls"), [(None, 8), ("old", 9)])
def test_any_failing_system_call_leaves_the_old_folder_or_the_new(tmp_path, before, calls):
    for fail_at in range(1, calls + 2):
        final = tmp_path / str(fail_at) / "x"
        if before:
            write(final, before)
        counter, failed = attempt(final, fail_at)
        assert failed == (fail_at <= calls), counter
        assert not hidden(final.parent)
        found = content(final) if final.exists() else None
        assert found == (before if fail_at < calls else "new"), counter  # the last call makes the rename durable
        assert found is None or atomic.problem(final) is None


def test_everything_is_synced_before_it_is_renamed(tmp_path, monkeypatch):
    """The order a power cut asks for: files, manifest, folder, rename, parent."""
    events: list[str] = []
    sync, rename = os.fsync, os.rename

    def fsync(handle):
        events.append(Path(os.readlink(f"/proc/self/fd/{handle}")).name)
        sync(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "rename", lambda a, b: (events.append("rename"), rename(a, b)))
    write(tmp_path / "x")
    kinds = ["hidden" if event.startswith(".staging-x") else event for event in events]
    kinds = ["manifest.json" if event.startswith(".staging-manifest") else event for event in kinds]
    assert kinds == ["a.bin", "b.json", "manifest.json", "hidden", "hidden", "rename", tmp_path.name]


def test_an_exception_inside_leaves_nothing(tmp_path):
    write(tmp_path / "x", "old")
    with pytest.raises(KeyboardInterrupt), atomic.folder(tmp_path / "x") as staging:
        (staging / "a.bin").touch()
        raise KeyboardInterrupt
    assert content(tmp_path / "x") == "old" and not hidden(tmp_path)


def test_a_text_is_old_or_new(tmp_path, monkeypatch):
    atomic.write_text(tmp_path / "t", "old")
    monkeypatch.setattr(os, "fsync", lambda handle: (_ for _ in ()).throw(OSError(errno.ENOSPC, "full")))
    with pytest.raises(OSError, match="full"):
        atomic.write_text(tmp_path / "t", "new")
    assert (tmp_path / "t").read_text() == "old" and not hidden(tmp_path)


def test_the_newest_whole_folder_is_found_by_number(tmp_path, caplog):
    for number in (9, 10, 100):
        write(tmp_path / f"x-{number}")
    (tmp_path / "x-100" / "a.bin").unlink()
    (tmp_path / "x-2000").touch()
    (tmp_path / "x-last").mkdir()
    (tmp_path / "x-²").mkdir()
    assert atomic.newest_valid(tmp_path, "x-") == tmp_path / "x-10"
    assert "x-100 is not usable: files differ from the manifest: a.bin" in caplog.text
    assert "x-2000 is not usable: no readable manifest.json" in caplog.text
    assert atomic.newest_valid(tmp_path, "y-") is None


def test_pruning_keeps_the_newest(tmp_path):
    for number in (1, 2, 10, 3):
        write(tmp_path / f"x-{number}")
    atomic.prune(tmp_path, "x-", 2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x-10", "x-3"]


def test_the_sweeper_takes_what_no_living_process_owns(tmp_path):
    mine = this_process()
    for kind in (".staging", ".trash"):
        for owner in (DEAD, mine):
            (tmp_path / f"{kind}-x-1-{owner}-aa").mkdir()
    (tmp_path / f".staging-t.json-{DEAD}-aa").touch()
    (tmp_path / ".staging-somebody's").mkdir()
    (tmp_path / ".git").mkdir()
    atomic.sweep(tmp_path)
    assert hidden(tmp_path) == [".git", ".staging-somebody's", f".staging-x-1-{mine}-aa", f".trash-x-1-{mine}-aa"]


def test_what_cannot_be_deleted_stays_hidden_and_stops_neither_sweeper_nor_training(tmp_path, monkeypatch):
    """As a busy file on a network's disk."""
    for end in "ab":
        (tmp_path / f".trash-x-1-{DEAD}-{end}").mkdir()
    write(tmp_path / "x")
    remove = os.rmdir

    def busy(path, *args, **kwargs):
        if Path(path).name.endswith("-a") or "-x-" in str(path) and DEAD not in str(path):
            raise OSError(errno.EBUSY, "busy", str(path))
        remove(path, *args, **kwargs)

    monkeypatch.setattr(os, "rmdir", busy)
    atomic.sweep(tmp_path)
    assert hidden(tmp_path) == [f".trash-x-1-{DEAD}-a"]
    atomic.discard(tmp_path / "x")
    assert not (tmp_path / "x").exists() and len(hidden(tmp_path)) == 2


def test_the_sweeper_brings_back_a_folder_whose_successor_never_came(tmp_path):
    write(tmp_path / "x", "old").rename(tmp_path / f".replaced-x-{DEAD}-aa")
    atomic.sweep(tmp_path)
    assert content(tmp_path / "x") == "old"
    shutil.copytree(tmp_path / "x", tmp_path / f".replaced-x-{DEAD}-aa")
    atomic.sweep(tmp_path)
    assert not hidden(tmp_path)
