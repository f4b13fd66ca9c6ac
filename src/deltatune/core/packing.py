"""Packing: several texts in one row, none of which sees another.

Positions begin again with every text. From that `transformers` builds a mask that keeps the texts apart, for the models
that go through its mask functions; others let them see each other without a word, so every model is tried first.
"""

from collections.abc import Sequence
from typing import Any

import torch

from deltatune.core.errors import SettingsError
from deltatune.core.task import Example

TRIED = 24
"""Tokens of each text of the trial."""
TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-6}
"""Difference of logits against their size that rounding explains; 5 % in half precision."""


def packs(lengths: Sequence[int], room: int) -> list[list[int]]:
    """Texts by number in packs of at most `room` tokens: the longest first, each where it leaves the least room.

    >>> packs([3, 5, 2, 4], 7)
    [[1, 2], [3, 0]]
    """
    free: list[list[int]] = [[] for _ in range(room + 1)]  # packs by what is free in them
    found: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        least = next((left for left in range(lengths[index], room + 1) if free[left]), None)
        if least is None:
            found.append([])
            pack, left = len(found) - 1, room
        else:
            pack, left = free[least].pop(), least
        found[pack].append(index)
        free[left - lengths[index]].append(pack)
    return found


def joined(rows: Sequence[Example]) -> dict[str, Any]:
    """Rows of `input_ids` and `taught` as one, with positions that begin again; nothing predicts a first token.

    >>> joined([{"input_ids": [7, 8], "taught": [False, True]}, {"input_ids": [9], "taught": [True]}])
    {'input_ids': [7, 8, 9], 'taught': [False, True, False], 'position_ids': [0, 1, 0]}
    """
    return {
        "input_ids": [token for row in rows for token in row["input_ids"]],
        "taught": [taught and place > 0 for row in rows for place, taught in enumerate(row["taught"])],
        "position_ids": [place for row in rows for place in range(len(row["input_ids"]))],
    }


def check_packing(model: Any, first: Sequence[int], second: Sequence[int]) -> None:
    """Raises `SettingsError` for a model that reads two packed texts otherwise than each alone."""
    device = next(model.parameters()).device
    texts = [list(text)[:TRIED] for text in (first, second)]
    pack = joined([{"input_ids": text, "taught": [False] * len(text)} for text in texts])
    awake = [module for module in model.modules() if module.training]
    model.eval()
    try:
        with torch.no_grad():
            given = {name: torch.tensor([pack[name]], device=device) for name in ("input_ids", "position_ids")}
            together = model(**given).logits[0]
            alone = torch.cat([model(input_ids=torch.tensor([text], device=device)).logits[0] for text in texts])
    except TypeError as error:
        raise SettingsError(
            f"task.packing: {type(model).__name__} takes no positions ({error})", hint="packing: false"
        ) from None
    finally:
        for module in awake:
            module.training = True
    difference = float((together - alone).abs().max() / alone.abs().max().clamp_min(1e-9))
    if difference > TOLERANCE.get(alone.dtype, 0.05):
        raise SettingsError(
            f"task.packing: {type(model).__name__} with this method reads packed texts otherwise than each alone "
            f"(logits differ by {difference:.1%}): they would see each other, or miss the prompt of the method",
            hint="packing: false",
        )
