"""A training small enough to run a hundred times: two layers with LoRA, rows of two clouds of points."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from deltatune.core.config import TrainingSettings
from deltatune.core.task import Batch, Column, Task
from deltatune.engine.attach import Handle, attach
from deltatune.methods.lora import LoRA
from deltatune.store import adapter as folders
from deltatune.store.run import RunFolder
from deltatune.train.loop import Job

WIDTH, ROWS = 6, 22


class Toy(Task):
    """Two classes; the loss is a mean over rows, longer rows count for more units."""

    type: ClassVar[str] = "toy"
    title: ClassVar[str] = "Toy"
    columns: ClassVar[Mapping[str, Column]] = {}
    label: ClassVar[str | None] = None
    key: ClassVar[tuple[str, ...]] = ()

    @property
    def metric(self) -> str:
        return "accuracy"

    def collate(self, examples, processor) -> Batch:
        return {"x": torch.stack([e["x"] for e in examples]), "labels": torch.tensor([e["label"] for e in examples])}

    def loss(self, output: Tensor, batch: Batch) -> Tensor:
        units = self._units(batch)
        return (nn.functional.cross_entropy(output, batch["labels"], reduction="none") * units).sum() / units.sum()

    def weight(self, batch: Batch) -> int:
        return int(self._units(batch).sum())

    def _units(self, batch: Batch) -> Tensor:
        return 1 + batch["labels"]  # as tokens would: rows do not weigh the same

    def unused(self, *args):
        """What a loop never asks of a task."""
        raise AssertionError

    fit = check = load = encode = read = score = baseline = unused


class Net(nn.Module):
    """Two linear layers with dropout of the base between them."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(WIDTH, 16)
        self.drop = nn.Dropout(0.5)
        self.second = nn.Linear(16, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.drop(self.first(x).tanh()))


def examples(rows: int = ROWS) -> list[dict[str, Any]]:
    """Rows of two clouds of points, of different length."""
    generator = torch.Generator().manual_seed(3)
    found = []
    for row in range(rows):
        centre = 1.0 if row % 2 else -1.0
        x = torch.randn(WIDTH, generator=generator) * 1.5 + centre
        found.append({"x": x, "label": row % 2, "length": 1 + row % 5})
    return found


def net() -> Net:
    """A fresh network, always the same."""
    torch.manual_seed(1)
    return Net()


def handle(method: Any = None) -> Handle:
    """A fresh adapter on a fresh network, always the same."""
    return attach(net(), method or LoRA(r=2, target_modules=("first", "second"), lora_dropout=0.2))


def job(
    folder: Path,
    *,
    rows: int = ROWS,
    evaluate: Callable[[Handle], dict[str, Any]] | None = None,
    method: Any = None,
    **settings: Any,
) -> Job:
    """A job on the toy; every evaluation is a loss and an accuracy on all rows."""
    attached, data = handle(method), examples(rows)
    given = {
        "per_device_train_batch_size": 4,
        "learning_rate": 0.02,
        "logging_steps": 3,
        "seed": 5,
        "early_stopping_patience": None,
        **settings,
    }
    run = RunFolder(folder)
    folder.mkdir(parents=True, exist_ok=True)
    return Job(
        attached,
        Toy(),
        None,
        data,
        TrainingSettings(**given),
        lambda: (evaluate or (lambda h: measured(h, data)))(attached),
        lambda: folders.write(attached.export(), run.adapter),
        run,
        quiet=True,
    )


def measured(attached: Handle, data: list[dict[str, Any]]) -> dict[str, float]:
    """Loss and accuracy without dropout; draws random numbers, as an evaluation may."""
    torch.rand(3)
    batch = Toy().collate(data, None)
    attached.train_mode(False)
    with torch.no_grad():
        output = attached.model(batch["x"])
    attached.train_mode(True)
    right = (output.argmax(1) == batch["labels"]).float().mean()
    return {"loss": float(Toy().loss(output, batch)), "accuracy": float(right)}


def weights(attached: Handle) -> dict[str, Tensor]:
    """A copy of the adapter's tensors."""
    return {name: tensor.clone() for name, tensor in attached.state_dict().items()}


def lines(folder: Path) -> list[dict[str, Any]]:
    """metrics.jsonl without the clock."""
    found = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "seconds"} for line in found]
