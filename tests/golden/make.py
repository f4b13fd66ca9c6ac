"""Writes golden files with the deltatune that stands here; what is there already stays as it is.

    PYTHONPATH=src:tests python tests/golden/make.py

A folder per version, never written again:

    <version>/adapters/<case>/adapter/        as `Adapter.save` wrote it, after a short training
    <version>/adapters/<case>/expected.json   settings, and logits on the rows of `golden.base`
    <version>/runs/finished/                  a run as `finetune` left it, without its picture
    <version>/runs/interrupted/               the same run, stopped by SIGINT in its fifth step of eight
    <version>/runs/expected.json              what the finished run answers

A method without a case fails `test_golden_adapters.py`: give it one in `cases.py`, and run this.
"""

import json
import os
import platform
import shutil
import signal
import tempfile
from collections.abc import Iterator
from contextlib import chdir, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.optim.optimizer import register_optimizer_step_post_hook

import deltatune
from deltatune.train.signals import Stopped
from golden import base
from golden.cases import CASES, conditioned, logits

STEPS, RATE = 4, 2e-2
RUN = {
    "task": "text-classification",
    "model": "model",
    "data": {"train": "reviews.csv"},
    "method": {"type": "lora", "r": 2, "target_modules": "attention", "lora_dropout": 0.1},
    "training": {
        "max_steps": 8,
        "eval_steps": 4,
        "logging_steps": 1,
        "save_total_limit": 2,
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 2,
        "learning_rate": 2e-2,
        "lr_scheduler_type": "cosine",
        "base_dropout": True,
        "bf16": False,
        "early_stopping_patience": None,
    },
}

TEXTS = ["the film was superb", "a hollow plot and a tired actor", "story with music"]


def adapter(case: str, folder: Path) -> None:
    """Trains the adapter of a case for a few steps on the square of its outputs, and saves it with what it answers."""
    family, settings = CASES[case]
    network = base.model(family)
    for index, part in enumerate(settings.get("adapters", ())):
        trained(case, deltatune.attach(network, deltatune.method("adapter", reduction_factor=8), name=part, seed=index))
    handle = deltatune.attach(network, deltatune.method(settings))
    trained(case, handle)
    handle.save(folder / "adapter")
    expected = {
        "settings": handle.method.model_dump(mode="json"),
        "logits": [rounded(row) for row in logits(case, network, handle).tolist()],
    }
    (folder / "expected.json").write_text(json.dumps(expected) + "\n", encoding="utf-8")


def trained(case: str, handle: deltatune.Adapter) -> None:
    """A few steps; then the model answers as it will from a file."""
    network = handle.model
    network.train()
    handle.expect_steps(STEPS)
    optimizer = torch.optim.AdamW(handle.parameter_groups(RATE))
    for step in range(STEPS):
        with conditioned(case, handle):
            output = network(**base.batch(CASES[case][0]))[0]
        wanted = base.values(f"wanted-{step % 2}", output.shape)
        loss, penalty = (output - wanted).square().mean(), handle.penalty()
        (loss if penalty is None else loss + penalty).backward()
        optimizer.step()
        optimizer.zero_grad()
    network.eval()


def rounded(value: Any) -> Any:
    """Nine digits, which tell every float32 apart."""
    return [rounded(inner) for inner in value] if isinstance(value, list) else float(f"{value:.9g}")


def runs(folder: Path) -> None:
    """A finished run and an interrupted one, in a place that holds the base and the rows."""
    folder = folder.resolve()
    platform.platform = lambda *_: "Linux"  # which kernel it was says nothing here
    with tempfile.TemporaryDirectory() as place, chdir(place):
        base.folder(Path("model"))
        Path("reviews.csv").write_bytes((base.HERE / "reviews.csv").read_bytes())
        run = deltatune.finetune(**RUN, output_dir="finished", quiet=True)
        answers = deltatune.predict(run.folder, texts=TEXTS)
        try:
            with interrupted(after=5):
                deltatune.finetune(**RUN, output_dir="interrupted", quiet=True)
        except Stopped as stopped:
            print(stopped)
        for name in ("finished", "interrupted"):
            shutil.copytree(name, folder / name, ignore=shutil.ignore_patterns("curves.png", ".lock"))
    expected = json.dumps({"texts": TEXTS, "answers": answers}, indent=1) + "\n"
    (folder / "expected.json").write_text(expected, encoding="utf-8")


@contextmanager
def interrupted(after: int) -> Iterator[None]:
    """A signal arrives with an optimizer step."""
    seen: list[int] = []

    def count(*_: object) -> None:
        seen.append(1)
        if len(seen) == after:
            os.kill(os.getpid(), signal.SIGINT)

    hook = register_optimizer_step_post_hook(count)
    try:
        yield
    finally:
        hook.remove()


def main() -> None:
    """What is missing of this version."""
    release = base.HERE / deltatune.__version__
    for case in CASES:
        known = [each for each in base.HERE.glob(f"*/adapters/{case}") if each.is_dir()]
        if not known:
            (release / "adapters" / case).mkdir(parents=True)
            adapter(case, release / "adapters" / case)
    if not (release / "runs").is_dir():
        (release / "runs").mkdir(parents=True)
        runs(release / "runs")


if __name__ == "__main__":
    main()
