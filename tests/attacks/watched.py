"""What a load may do: nothing but read, within two seconds and 200 MB."""

import os
import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SECONDS, BYTES = 2.0, 200 << 20
"""What loading or refusing a hostile folder may take at most: processor time, and memory on top of what was there."""

NEVER = (
    "os.system",
    "os.exec",
    "os.fork",
    "os.posix_spawn",
    "os.spawn",
    "os.remove",
    "os.rename",
    "os.rmdir",
    "os.mkdir",
    "os.link",
    "os.symlink",
    "os.truncate",
    "os.chmod",
    "pickle.find_class",
    "shutil.",
    "socket.connect",
    "socket.getaddrinfo",
    "socket.bind",
    "subprocess.Popen",
    "urllib.Request",
    "ctypes.dlopen",
)
"""Events of the interpreter (PEP 578) that nothing in a load may cause."""
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


class _Watch:
    """Notes forbidden events; a hook cannot be taken away again, so it is switched."""

    def __init__(self) -> None:
        self.seen: list[str] | None = None
        sys.addaudithook(self.hear)

    def hear(self, event: str, args: tuple) -> None:
        if self.seen is None:
            return
        if event.startswith(NEVER):
            self.seen.append(f"{event} {args!r}"[:200])
        if event == "open" and isinstance(args[2], int) and args[2] & WRITING and args[0] != os.devnull:
            self.seen.append(f"opened for writing: {args[0]!r}")


WATCH = _Watch()


@contextmanager
def watched(folder: Path) -> Iterator[None]:
    """Fails the test when the block runs, fetches or writes anything, or takes more than its share."""
    written, before = sys.dont_write_bytecode, _listed(folder)
    sys.dont_write_bytecode = True  # a module of ours that is imported late leaves no file
    memory, started = _peak(), time.process_time()
    WATCH.seen = seen = []
    try:
        yield
    finally:
        WATCH.seen = None
        sys.dont_write_bytecode = written
    spent, taken = time.process_time() - started, _peak(reset=False) - memory
    assert not seen, seen
    assert _listed(folder) == before
    assert spent < SECONDS, f"{spent:.1f} s"
    assert taken < BYTES, f"{taken / 2**20:.0f} MiB"


def _listed(folder: Path) -> list[tuple[str, int]]:
    """Every path below a folder, with the time of its last change."""
    return sorted((str(path), path.lstat().st_mtime_ns) for path in folder.rglob("*"))


def _peak(*, reset: bool = True) -> int:
    """Bytes of the largest resident set: since the last reset where the system can forget an older peak."""
    status = Path("/proc/self/status")
    if not status.is_file():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024
