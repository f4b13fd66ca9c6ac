"""Memory of a training: freed tensors are used again, without new pages from the system."""

import platform
import subprocess
import sys

import pytest

CODE = """
import resource
import torch
from deltatune.train.memory import keep_freed_memory

def pages():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        many = [torch.ones(48 * 2**18) for _ in range(2)]  # 48 MiB each
        del many
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

print(pages())
keep_freed_memory()
pages()
print(pages())
"""

CHILD = "from deltatune.train.memory import peak_memory_bytes; print(peak_memory_bytes())"
PARENT = f"""
import subprocess, sys
held = b"x" * 1_500_000_000
subprocess.run([sys.executable, "-c", {CHILD!r}], check=True)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries have no such setting")
def test_what_is_freed_is_kept_for_the_next_tensor():
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True)
    before, after = map(int, done.stdout.split())
    assert after < 0.1 * before


def test_what_the_parent_held_is_no_part_of_the_peak():
    said = subprocess.run([sys.executable, "-c", PARENT], check=True, capture_output=True, text=True).stdout
    assert 50e6 < int(said) < 1e9
