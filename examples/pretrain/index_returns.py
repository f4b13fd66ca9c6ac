"""A PatchTST of 0.1 M parameters that reads daily returns, trained here on the S&P 500 of 1999 to 2013.

Data: `python examples/data.py indices`, the first three quarters of one index. The years behind them are seen by nobody
here, since those of another index move with them. Task: the quantiles of the next ten days' changes, from 64 returns.
About one CPU minute.
"""

import csv
from pathlib import Path

import torch
from pretraining import pretrain
from torch import Tensor
from transformers import PatchTSTConfig, PatchTSTForPrediction

import data
from deltatune.core.registry import task

SHARE = 0.75
"""Of the days; those behind are left to validation and test of what is adapted."""
ROWS = 64
STEPS = 600
RATE = 5e-4
SEED = 0
SETTINGS = {"context_length": 64, "prediction_length": 10, "transform": "log-return"}


def make(folder: Path) -> None:
    """The network with its head for 10 steps and 9 quantiles, and its curve."""
    data.make("indices")
    with (data.DATA / "indices" / "sp500.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    found = task("forecasting", **SETTINGS)
    windows = found.compose(rows[: round(SHARE * len(rows))])
    found = found.fit(windows)
    examples = found.encode(windows, None)
    torch.manual_seed(SEED)
    model = PatchTSTForPrediction(
        PatchTSTConfig(
            context_length=found.context_length,
            prediction_length=found.prediction_length * len(found.quantiles),
            patch_length=8,
            patch_stride=4,
            d_model=64,
            num_hidden_layers=3,
            num_attention_heads=4,
            ffn_dim=128,
            norm_type="layernorm",
            attention_dropout=0.1,
            ff_dropout=0.1,
            path_dropout=0.1,
            head_dropout=0.1,
        )
    )

    def loss(_: int, generator: torch.Generator) -> Tensor:
        chosen = torch.randint(len(examples), (ROWS,), generator=generator).tolist()
        batch = found.collate([examples[index] for index in chosen], None)
        return found.loss(found.run(model, batch), batch)

    pretrain(model, loss, folder, steps=STEPS, rate=RATE, seed=SEED)
