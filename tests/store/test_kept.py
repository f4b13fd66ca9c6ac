"""Kept rows: what was written comes back to the bit, or not at all."""

import json
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from deltatune.store import kept
from deltatune.store.kept import INDEX, Shelf, users_folder


@pytest.fixture
def shelf(tmp_path):
    return Shelf(tmp_path / "shelf", 1e6)


def rows(seed=0, count=7, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(1 + n % 4, 5, generator=generator).to(dtype) for n in range(count)]


def put(shelf, key, found, size=0):
    with shelf.writing(key, size) as writer:
        for row in found:
            writer.add([row])


def same(found, expected):
    return found is not None and len(found) == len(expected) and all(map(torch.equal, found, expected))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_come_back_to_the_bit_from_several_files(shelf, monkeypatch, dtype):
    monkeypatch.setattr(kept, "SHARD_BYTES", 40)
    put(shelf, "a", rows(dtype=dtype))
    found = shelf.find("a")
    assert same(found, rows(dtype=dtype)) and found[0].dtype == dtype
    assert len(list((shelf.folder / "a").glob("*.safetensors"))) > 2
    assert shelf.find("b") is None


@pytest.mark.parametrize("damage", ["flipped", "cut", "gone", "key", "lengths", "manifest"])
def test_what_is_not_whole_or_not_its_own_is_not_used(shelf, caplog, damage):
    put(shelf, "a", rows())
    place = shelf.folder / "a"
    shard = next(place.glob("*.safetensors"))
    if damage == "flipped":
        content = bytearray(shard.read_bytes())
        content[-1] ^= 1
        shard.write_bytes(content)
    elif damage == "cut":
        shard.write_bytes(shard.read_bytes()[:-4])
    elif damage == "gone":
        shard.unlink()
    elif damage == "manifest":
        (place / "manifest.json").write_text("{}")
    else:  # an index that its manifest knows
        index = json.loads((place / INDEX).read_text())
        index |= {"key": "b"} if damage == "key" else {"lengths": index["lengths"][1:]}
        kept.atomic.discard(place)
        with kept.atomic.folder(place) as staging:
            kept.save_file({kept.TENSOR: torch.cat(rows())}, staging / kept.SHARD.format(1))
            (staging / INDEX).write_text(json.dumps(index))
    assert shelf.find("a") is None
    assert "is made anew" in caplog.text
    put(shelf, "a", rows(1))
    assert same(shelf.find("a"), rows(1))


def test_a_run_that_broke_off_leaves_nothing(shelf):
    with pytest.raises(RuntimeError), shelf.writing("a", 0) as writer:
        writer.add(rows())
        raise RuntimeError
    assert shelf.find("a") is None and not list(shelf.folder.iterdir())


def test_those_unused_for_longest_go(tmp_path):
    shelf = Shelf(tmp_path, 1e9)
    for number, key in enumerate("abc"):
        put(shelf, key, rows(number))
        os.utime(tmp_path / key, (number, number))
    assert same(shelf.find("a"), rows(0))  # a use: b is the oldest now
    size = sum(file.stat().st_size for file in (tmp_path / "a").iterdir())
    put(Shelf(tmp_path, 3.5 * size), "d", rows(3), size)
    assert [shelf.find(key) is not None for key in "abcd"] == [True, False, True, True]


def test_rows_that_are_mapped_outlive_their_files(shelf):
    put(shelf, "a", rows())
    found = shelf.find("a")
    kept.atomic.discard(shelf.folder / "a")
    assert same(found, rows())


def test_of_several_runs_one_writes_and_the_others_find(shelf):
    written = []

    def find_or_write(number):
        with shelf.alone("a"):
            if shelf.find("a") is None:
                put(shelf, "a", rows())
                written.append(number)
            return same(shelf.find("a"), rows())

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(find_or_write, range(12)))
    assert len(written) == 1 and [path.name for path in shelf.folder.iterdir()] == ["a"]


def test_who_waited_for_a_lock_that_went_takes_the_new_one(shelf):
    inside, most, over = 0, 0, threading.Lock()

    def enter(number):
        nonlocal inside, most
        with shelf.alone("a"):
            with over:
                inside += 1
                most = max(most, inside)
            time.sleep(0.002)
            with over:
                inside -= 1

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(enter, range(60)))
    assert most == 1


def test_a_folder_that_refuses_everything_is_an_error_of_the_disk(tmp_path):
    (tmp_path / "file").touch()
    shelf = Shelf(tmp_path / "file" / "shelf", 1e6)
    with pytest.raises(OSError), shelf.alone("a"), shelf.writing("a", 0):
        pass


def test_what_is_too_large_is_refused_by_name(shelf):
    assert shelf.why_not(1e5) is None
    assert "trunk_disk_gb" in shelf.why_not(1e7)
    assert "the disk" in Shelf(shelf.folder, 1e30).why_not(1e20)


def test_the_users_folder_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert users_folder() == tmp_path / "deltatune" / "trunk"
