"""Peak memory of the process or of the GPU, and memory that is kept between operations."""

import ctypes
import platform
import resource
import sys
from pathlib import Path

import psutil
import torch

STATUS = Path("/proc/self/status")
TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3
"""Parameters of `mallopt`, from malloc.h."""
KEPT_BYTES = 2**30
"""Blocks up to this size come from the process's own memory; so much of it may lie free at its end."""
OLD_LIMIT = 2**25
"""The largest block that older versions of the library allow."""


def resident_bytes() -> int:
    """Bytes of this process in memory now."""
    return int(psutil.Process().memory_info().rss)


def forget_peak() -> None:
    """Starts counting anew on the GPU; the peak of a process cannot be forgotten."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()


def memory_bytes() -> int:
    """Bytes held now: allocated on the GPU when there is one, else resident in the whole process."""
    if torch.cuda.is_available():
        return torch.cuda.memory_allocated()
    return resident_bytes()


def peak_memory_bytes() -> int:
    """Most bytes held at once: allocated on the GPU when there is one, else resident in the whole process.

    Linux counts what the process that started this one held in `ru_maxrss`; its own status does not.
    """
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    if STATUS.is_file():
        line = next(line for line in STATUS.read_text(encoding="utf-8").splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def keep_freed_memory() -> None:
    """Lets the process keep what it frees, for the next operation, instead of giving it back to the system.

    A step allocates and frees the same large tensors again and again; the C library of Linux gives them back each time,
    and the system clears new pages for the next ones.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    library = ctypes.CDLL(None)
    if not library.mallopt(MMAP_THRESHOLD, KEPT_BYTES):
        library.mallopt(MMAP_THRESHOLD, OLD_LIMIT)
    library.mallopt(TRIM_THRESHOLD, KEPT_BYTES)
