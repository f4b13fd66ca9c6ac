"""A feature-token transformer that knows the columns of German credit, 0.1 M parameters, trained here without labels.

Data: the 600 training rows of `python examples/data.py credit`, their label left out; no row of validation or test.
Task: a third of the columns of a row is hidden, and told from the others. About 80 CPU seconds.
"""

import csv
from pathlib import Path

import torch
from pretraining import pretrain
from torch import Tensor

import data
from deltatune.core.features import Features, Reading, described
from deltatune.core.labels import number
from deltatune.models.feature_tokens import FeatureTokensConfig, FeatureTokensForMasking

LABEL = "creditability"
HIDDEN = 0.33
ROWS = 128
STEPS = 1000
RATE = 1e-3
SEED = 0


def make(folder: Path) -> None:
    """The network with its columns in config.json, and its curve."""
    data.make("credit")
    with (data.DATA / "credit" / "train.csv").open(newline="", encoding="utf-8") as file:
        rows = [{name: value for name, value in row.items() if name != LABEL} for row in csv.DictReader(file)]
    reading = Reading()
    columns = []
    for name in rows[0]:
        values = [row[name] for row in rows]
        kind = "number" if all(number(value) is not None for value in values) else "category"
        columns.append(described(name, values, kind, reading, "quantile", 2, 1000))
    numbers, categories, _ = Features(columns, (), reading).encode(rows)
    numbers_BN, categories_BC = torch.from_numpy(numbers), torch.from_numpy(categories)
    torch.manual_seed(SEED)
    model = FeatureTokensForMasking(FeatureTokensConfig(columns=[column.model_dump(mode="json") for column in columns]))

    def loss(_: int, generator: torch.Generator) -> Tensor:
        chosen = torch.randint(len(rows), (ROWS,), generator=generator)
        hide = torch.rand(ROWS, len(columns), generator=generator) < HIDDEN
        return model.loss(numbers_BN[chosen], categories_BC[chosen], hide)

    pretrain(model, loss, folder, steps=STEPS, rate=RATE, seed=SEED)
