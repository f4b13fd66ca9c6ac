"""Groups of an optimizer: tensors that move at the same rate and with the same decay together."""

from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from deltatune.core.errors import SettingsError
from deltatune.core.method import Pace


def parameter_groups(
    parameters: Mapping[str, nn.Parameter],
    pace: Callable[[str], Pace],
    rate: float,
    decay: float,
    outer_ratio: float = 1.0,
) -> list[dict[str, Any]]:
    """Groups with `params`, `lr` and `weight_decay` for any torch optimizer, those with decay first.

    `pace` says by its name how a tensor is trained; `outer_ratio` is LoRA+'s factor on the rate of outer tensors
    (Hayou et al. 2024, arXiv:2402.12354). Decay pulls matrices to zero; vectors (biases, norms, scales) have other
    values to be near to. Raises `SettingsError` when `outer_ratio` has no effect.
    """
    paces = {name: pace(name) for name in parameters}
    if outer_ratio != 1.0 and not any(found.outer for found in paces.values()):
        raise SettingsError(
            f"loraplus_lr_ratio={outer_ratio:g} has no effect: no trained tensor is the output side of a product",
            hint="take it out, or use a method with two factors (lora, dora)",
        )
    groups: dict[tuple[bool, float], list[nn.Parameter]] = {}
    for name, parameter in parameters.items():
        found = paces[name]
        decays = parameter.dim() >= 2 if found.decay is None else found.decay
        factor = found.rate * (outer_ratio if found.outer else 1.0)
        groups.setdefault((decays, factor), []).append(parameter)
    return [
        {"params": groups[key], "lr": rate * key[1], "weight_decay": decay if key[0] else 0.0}
        for key in sorted(groups, key=lambda key: (not key[0], key[1]))
    ]
