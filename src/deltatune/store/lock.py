"""Lock: one process at a time in a place of the disk, and whether the one that is there still lives.

The locks are the kernel's (flock): that of a killed process is void at once.
"""

import fcntl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from deltatune.core.errors import StorageError
from deltatune.store.run import writing

POLL = 0.05
"""Seconds between two looks at a lock."""


@contextmanager
def alone(path: Path, patience: float = 60.0) -> Iterator[None]:
    """Inside, no other process is inside with the same path.

    Waits for the one that is there, `patience` seconds at most; raises `StorageError` then and when the disk refuses.
    """
    with writing(str(path)):
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = path.open("a")
    with lock as file:
        end = time.monotonic() + patience
        while not _taken(file.fileno(), fcntl.LOCK_EX):
            if time.monotonic() > end:
                raise StorageError(f"another process has held {path} for {patience:g} s", hint="wait for it, or end it")
            time.sleep(POLL)
        yield


def held(path: Path) -> bool:
    """Whether a living process is inside `alone(path)`."""
    if not path.exists():
        return False
    with path.open("a") as file:
        return not _taken(file.fileno(), fcntl.LOCK_SH)  # shared: looks do not keep each other out


def _taken(file: int, kind: int) -> bool:
    """Takes the lock of an open file, if it is free."""
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
