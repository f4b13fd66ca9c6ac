"""Processes to be stopped and killed: imports torch once, then forks a child for every line it reads.

train FOLDER SECONDS    train the toy, or go on with it, SECONDS per batch; exit as the command line does
save FOLDER 0           save without end, a byte in FOLDER/confirmed for every save
wait NUMBER             the exit code of a child, minus the signal that killed it
"""

import os
import sys
import time
from dataclasses import replace
from pathlib import Path

import torch
from accelerate.utils import set_seed

from deltatune.core.errors import DeltatuneError
from deltatune.store import atomic, state
from deltatune.train.loop import train
from train.toy import Toy, job

SETTINGS = {"num_train_epochs": 4, "eval_steps": 2, "gradient_accumulation_steps": 2, "lr_scheduler_type": "cosine"}


def training(folder: Path, seconds: float) -> int:
    """Trains; the exit code."""

    class Slow(Toy):
        def loss(self, output, batch):
            time.sleep(seconds)
            return super().loss(output, batch)

    set_seed(5)
    resume = (folder / "metrics.jsonl").exists()
    try:
        train(replace(job(folder, **SETTINGS), task=Slow()), resume=resume)
    except DeltatuneError as error:
        print(error, file=sys.stderr, flush=True)
        return error.exit_code
    return 0


def saving(folder: Path, seconds: float) -> int:
    """Saves ever newer folders of 2 MB."""
    confirmed = os.open(folder / "confirmed", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    step = os.fstat(confirmed).st_size
    while True:
        step += 1
        with atomic.folder(folder / f"checkpoint-{step}") as staging:
            state.save(staging, {"step": step, "tensor": torch.full((1 << 19,), float(step))})
        atomic.prune(folder, "checkpoint-", 2)
        os.write(confirmed, b".")


def child(work, folder: Path, seconds: float) -> None:
    """Does the work with its messages in FOLDER.err, and ends without coming back."""
    errors = os.open(f"{folder}.err", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(errors, 2)
    code = 70
    try:
        code = work(folder, seconds)
    finally:
        os._exit(code)


def main() -> None:
    """Serves the lines of stdin."""
    torch.set_num_threads(1)
    for line in sys.stdin:
        command, *rest = line.split()
        if command == "wait":
            answer = os.waitstatus_to_exitcode(os.waitpid(int(rest[0]), 0)[1])
        else:
            answer = os.fork()
            if answer == 0:
                child({"train": training, "save": saving}[command], Path(rest[0]), float(rest[1]))
        print(answer, flush=True)


if __name__ == "__main__":
    main()
