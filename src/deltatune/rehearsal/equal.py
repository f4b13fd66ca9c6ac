"""Equal: whether two outputs of a model hold the same numbers."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from deltatune.core.task import Batch, inputs_of
from deltatune.engine.conditions import told
from deltatune.train.teacher import asleep


class Difference(NamedTuple):
    """Largest difference of two outputs, and the largest value in the first."""

    absolute: float
    scale: float

    @property
    def relative(self) -> float:
        """As a share of the largest value."""
        return self.absolute / max(self.scale, 1e-12)


def output_of(model: nn.Module, batch: Batch) -> Any:
    """What a model gives asleep, with what acts in it now."""
    with told(model, batch), asleep(model), torch.no_grad():
        return model(**inputs_of(batch))


def difference(one: Any, other: Any) -> Difference:
    """Over all numbers of two outputs of one kind; infinite where shapes differ."""
    pairs = list(zip(_numbers(one), _numbers(other), strict=True))
    if any(a.shape != b.shape for a, b in pairs):
        return Difference(float("inf"), 0.0)
    absolute = max((float((a - b).abs().max()) for a, b in pairs if a.numel()), default=0.0)
    return Difference(absolute, max((float(a.abs().max()) for a, _ in pairs if a.numel()), default=0.0))


def _numbers(output: Any) -> Iterator[Tensor]:
    """Finite numbers of an output in float32; caches are no part of it."""
    if isinstance(output, Tensor):
        if output.is_floating_point():
            yield torch.nan_to_num(output.float())
    elif isinstance(output, dict):
        for name, value in output.items():
            if "past_key_values" not in name:
                yield from _numbers(value)
    elif isinstance(output, list | tuple):
        for value in output:
            yield from _numbers(value)
