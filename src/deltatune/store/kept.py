"""Kept rows: hidden states on disk, for every run that would compute the same ones.

    <folder>/<key>/index.json               the key and the length of every row
                   rows-00001.safetensors   many rows, one behind the other; read by mapping the file into memory
                   manifest.json            sizes and sha256 of these files

An entry is written whole or not at all (`atomic.folder`); those unused for longest go when the folder is full. A run
that has an entry mapped keeps reading it when another one deletes or replaces it. Of several runs that want the same
entry one writes it and the others wait.
"""

import fcntl
import json
import logging
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from deltatune.store import atomic

logger = logging.getLogger("deltatune")

INDEX, SHARD, TENSOR = "index.json", "rows-{:05d}.safetensors", "rows"
SHARD_BYTES = 64_000_000
"""Rows that are gathered in memory before a file is written."""


def users_folder() -> Path:
    """Where entries of all runs of a user are when no folder is named: the user's cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "deltatune" / "trunk"


class Shelf:
    """A folder of entries, at most `limit` bytes in all."""

    def __init__(self, folder: Path, limit: float) -> None:
        self.folder, self.limit = folder, limit

    def find(self, key: str) -> list[Tensor] | None:
        """The rows of an entry, memory-mapped; None where there is none, or none that is whole, which is reported."""
        path = self.folder / key
        if not path.is_dir():
            return None
        wrong = atomic.problem(path)
        try:
            rows = None if wrong else _read(path, key)
        except (OSError, SafetensorError, ValueError, KeyError, TypeError, RuntimeError) as error:
            rows, wrong = None, f"{type(error).__name__}: {error}"
        if rows is None:
            logger.warning("%s is not usable and is made anew: %s", path, wrong)
            return None
        with suppress(OSError):  # a folder that others own can be read all the same
            os.utime(path)
        return rows

    def why_not(self, size: float) -> str | None:
        """Why an entry of so many bytes has no place here, None when it has; older entries would go for it."""
        if size > self.limit:
            return f"more than {self.limit / 1e9:g} GB (training.trunk_disk_gb)"
        place = next(path for path in (self.folder, *self.folder.absolute().parents) if path.is_dir())
        free = shutil.disk_usage(place).free + sum(entry_size for _, entry_size, _ in self._entries())
        return f"more than the disk of {self.folder} has left" if size > free else None

    @contextmanager
    def alone(self, key: str) -> Iterator[None]:
        """Inside the block no other run that asks is at this entry; waits for it. The lock of a killed process is void.

        Where the disk refuses a lock nobody waits: nothing can be written there either.
        """
        with ExitStack() as stack:
            with suppress(OSError):
                self.folder.mkdir(parents=True, exist_ok=True)
                stack.enter_context(_locked(self.folder / f".lock-{key}"))
            yield

    @contextmanager
    def writing(self, key: str, size: float) -> Iterator["Writer"]:
        """Inside the block the rows of an entry of about so many bytes are added; it is there when the block ends well.

        Raises `OSError` when the disk refuses.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        atomic.sweep(self.folder)
        self._make_room(size)
        try:
            with atomic.folder(self.folder / key) as staging:
                writer = Writer(staging)
                yield writer
                writer.close(key)
        except SafetensorError as error:  # how safetensors reports an error of the disk
            raise OSError(f"{self.folder / key}: {error}") from error

    def _make_room(self, size: float) -> None:
        """Deletes the entries that were unused for longest until one of this size fits."""
        entries = sorted(self._entries())
        taken = sum(entry_size for _, entry_size, _ in entries)
        for _, entry_size, path in entries:
            free = shutil.disk_usage(self.folder).free
            if taken + size <= self.limit and size <= free:
                return
            logger.info("%s goes: training.trunk_disk_gb allows %.1f GB in all", path, self.limit / 1e9)
            with suppress(OSError):  # another run was faster
                atomic.discard(path)
            taken -= entry_size

    def _entries(self) -> list[tuple[float, int, Path]]:
        """Last use, size and folder of every entry."""
        found = []
        for path in self.folder.iterdir() if self.folder.is_dir() else ():
            with suppress(OSError):  # it may go while we look
                if not path.name.startswith(".") and (path / INDEX).is_file():
                    found.append((path.stat().st_mtime, sum(file.stat().st_size for file in path.iterdir()), path))
        return found


class Writer:
    """An entry that is being written."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.lengths: list[int] = []
        self.waiting: list[Tensor] = []
        self.files = 0

    def add(self, rows: Sequence[Tensor]) -> None:
        """Adds rows of shape [length, ...], all of one dtype and of one size but for their lengths."""
        self.lengths += [len(row) for row in rows]
        self.waiting += rows
        if sum(row.nbytes for row in self.waiting) >= SHARD_BYTES:
            self._flush()

    def close(self, key: str) -> None:
        """Writes what is left, and the index."""
        if self.waiting:
            self._flush()
        (self.folder / INDEX).write_text(json.dumps({"key": key, "lengths": self.lengths}), encoding="utf-8")

    def _flush(self) -> None:
        self.files += 1
        save_file({TENSOR: torch.cat(self.waiting)}, self.folder / SHARD.format(self.files))
        self.waiting = []


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Inside the block this process alone has the file's lock; the file goes with it. Raises `OSError`."""
    while True:
        with path.open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            if not _stands(file, path):
                continue  # who had it before deleted it while we waited: the lock of a file that is gone holds nobody
            try:
                yield
            finally:
                path.unlink(missing_ok=True)
            return


def _stands(file: IO[str], path: Path) -> bool:
    """Whether an open file is the one that stands at its path."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _read(path: Path, key: str) -> list[Tensor]:
    """The rows of an entry; raises `ValueError` when it is that of another key or its files do not agree."""
    index = json.loads((path / INDEX).read_text(encoding="utf-8"))
    if index["key"] != key:
        raise ValueError("it was written under another key")
    lengths = iter(index["lengths"])
    rows: list[Tensor] = []
    for file in sorted(path.glob(SHARD.format(0).replace("00000", "*"))):
        with safe_open(file, framework="pt") as opened:
            shard = opened.get_tensor(TENSOR)
        while len(shard):
            length = next(lengths, 0)
            if not 0 < length <= len(shard):
                raise ValueError("its index does not fit its rows")
            rows.append(shard[:length])
            shard = shard[length:]
    if next(lengths, None) is not None:
        raise ValueError("its index does not fit its rows")
    return rows
