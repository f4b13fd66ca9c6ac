"""Two processes train what one does."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from accelerate import PartialState

from deltatune.methods.lora import LoRA
from deltatune.train.loop import train
from train.test_distill import models
from train.test_distill import work as taught_work
from train.toy import job, lines


def work(folder: Path, processes: int):
    """17 rows in batches of 8: the last step of an epoch leaves one process without rows of its own."""
    plain = LoRA(r=2, target_modules=("first", "second"))
    return job(
        folder, rows=17, method=plain, num_train_epochs=2, logging_steps=1, per_device_train_batch_size=8 // processes
    )


def taught(folder: Path, processes: int):
    """A student with a trained map to its teacher's width."""
    if not (folder.parent / "models").exists():
        models(folder.parent / "models")
    size = {"per_device_train_batch_size": 8 // processes, "logging_steps": 1}
    place = folder.parent / "models"
    return taught_work(folder, place / "headed", place / "wide", hidden=1.0, training=size)


@pytest.mark.slow
@pytest.mark.parametrize("made", ["work", "taught"])
def test_two_processes_train_what_one_does(tmp_path, made):
    train(globals()[made](tmp_path / "one", 1))
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(sys.path),
        "OMP_NUM_THREADS": "1",
        "ACCELERATE_USE_CPU": "1",
    }
    launched = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--standalone", __file__]
    done = subprocess.run([*launched, str(tmp_path / "two"), made], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    one, two = lines(tmp_path / "one"), lines(tmp_path / "two")
    assert [line["step"] for line in one] == [line["step"] for line in two]
    for a, b in zip(one, two, strict=True):
        if "loss" in a:
            assert a["loss"] == pytest.approx(b["loss"], rel=1e-5)
            assert a["gradient_norm"] == pytest.approx(b["gradient_norm"], rel=1e-4)
            assert a["tokens"] == b["tokens"]


if __name__ == "__main__":
    train(globals()[sys.argv[2]](Path(sys.argv[1]), 2))
    PartialState().destroy_process_group()  # left to the interpreter's end it may abort
