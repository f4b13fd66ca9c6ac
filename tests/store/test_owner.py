"""A process is known by its number and its start."""

import os
import subprocess
import sys

from deltatune.store.owner import alive, this_process


def test_this_process_lives_and_keeps_its_name():
    assert alive(this_process()) and this_process() == this_process()


def test_a_process_that_ended_is_not_alive_though_its_number_may_be_taken_again():
    script = "from deltatune.store.owner import this_process; print(this_process())"
    ended = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    ).stdout.strip()
    assert not alive(ended)
    started = int(ended.split(".")[1])
    assert not alive(f"{os.getpid()}.{started - 3600}")


def test_half_a_description_is_nobody():
    number, started = this_process().split(".")
    assert not any(alive(half) for half in (number, f"{number}.", f"{number}.soon", f".{started}", f"me.{started}"))
