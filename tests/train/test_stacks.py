"""A step that hangs says where."""

import threading
import time
from dataclasses import replace

from deltatune.train import stacks
from deltatune.train.loop import train
from train.toy import Toy, job


def slow(work, *steps, seconds=0.6):
    """The same job; these steps sleep."""
    seen = []

    class Slow(Toy):
        def loss(self, output, batch):
            seen.append(1)
            if len(seen) in steps:
                sleeping(seconds)
            return super().loss(output, batch)

    return replace(work, task=Slow())


def sleeping(seconds):
    """Its name stands in the stacks."""
    time.sleep(seconds)


def test_the_stacks_of_a_slow_step_are_written_once(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(stacks, "FLOOR_S", 0.3)
    train(slow(job(tmp_path, max_steps=24, eval_steps=24), 15, 20))
    text = (tmp_path / "stacks.txt").read_text()
    assert text.count("in sleeping") == 1 and "in accumulate" in text
    assert "step 15 took" in caplog.text and "step 20 took" not in caplog.text


def test_without_a_slow_step_nothing_is_left(tmp_path):
    before = set(threading.enumerate())
    train(job(tmp_path, max_steps=24, eval_steps=24))
    assert not (tmp_path / "stacks.txt").exists()
    assert set(threading.enumerate()) <= before


def test_the_first_steps_may_be_slow(tmp_path, monkeypatch):
    monkeypatch.setattr(stacks, "FLOOR_S", 0.1)
    train(slow(job(tmp_path, max_steps=9, eval_steps=9), 1, 8, seconds=0.3))
    assert not (tmp_path / "stacks.txt").exists()
