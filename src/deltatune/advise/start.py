"""Start: settings to begin with, from the rows, the width of the model and the method's own defaults.

The rules are rules of thumb, and each says what it follows from; `deltatune compare` tries what they say.

    passes      so many that a training has about 500 steps, 2 to 20 of them (3 at most for a language model)
    batch       32 rows; 16 below 1,000 rows, 8 below 200; halved, with as many more micro-batches, until it fits
    rank        8; 4 below 500 rows, 16 from 20,000 on; never more than an eighth of the width
    decay       0.01; 0.1 where there are more than 100 trained values per row
    dropout     0.05 (that of the adapter) where there are more than 100 trained values per row
"""

from collections.abc import Mapping
from typing import Any

from deltatune.core.method import Method

STEPS = 500
FEW, SOME, MANY = 200, 1000, 20_000
CROWDED = 100
"""Trained values per row from which on an adapter can learn rows by heart."""


def batch(rows: int) -> int:
    """Rows of a step.

    >>> [batch(rows) for rows in (100, 600, 5000)]
    [8, 16, 32]
    """
    return 8 if rows < FEW else 16 if rows < SOME else 32


def epochs(rows: int, size: int, most: int) -> int:
    """Passes over the rows.

    >>> epochs(100, 8, 20), epochs(8452, 32, 20), epochs(8452, 32, 3)
    (20, 2, 2)
    """
    return min(most, max(2, round(STEPS * size / rows)))


def rank(rows: int, width: int) -> int:
    """Rank of a low-rank change.

    >>> rank(300, 384), rank(8000, 384), rank(50_000, 384), rank(50_000, 64)
    (4, 8, 16, 8)
    """
    wanted = 4 if rows < SOME / 2 else 16 if rows >= MANY else 8
    return max(1, min(wanted, width // 8))


def method_settings(method: Method, rows: int, width: int, trained: int | None = None) -> dict[str, Any]:
    """Settings of a method besides its defaults; `trained` are the values it trains, once they are known."""
    fields = type(method).model_fields
    found: dict[str, Any] = {}
    if {"r", "lora_alpha"} <= fields.keys() and "r" not in method.model_fields_set:
        wanted = rank(rows, width)
        if wanted != method.model_dump()["r"]:
            found |= {"r": wanted, "lora_alpha": 2 * wanted}
    if trained is not None and trained > CROWDED * rows:
        found |= {name: 0.05 for name in ("lora_dropout", "dropout") if name in fields}
    return found


def training_settings(
    method: Method, rows: int, size: int, accumulation: int, *, trained: int, generates: bool, given: Mapping[str, Any]
) -> dict[str, Any]:
    """Training settings to begin with; what is `given` stays."""
    found: dict[str, Any] = {
        "num_train_epochs": epochs(rows, size * accumulation, 3 if generates else 20),
        "per_device_train_batch_size": size,
        "learning_rate": method.learning_rate,
        "lr_scheduler_type": "linear",
        "warmup_steps": 0.06,
        "weight_decay": 0.1 if trained > CROWDED * rows else 0.01,
    }
    if accumulation > 1:
        found["gradient_accumulation_steps"] = accumulation
    return {**found, **given}
