"""Peak memory of the process or of the GPU."""

import resource
import sys

import torch


def forget_peak() -> None:
    """Starts counting anew on the GPU; the peak of a process cannot be forgotten."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()


def peak_memory_bytes() -> int:
    """Most bytes held at once: allocated on the GPU when there is one, else resident in the whole process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
