"""Shared prompt: in a causal stack the hidden states of a prompt do not depend on the rows behind it.

    once    keys and values of the P virtual tokens, for one row, through every block
    then    the T real tokens of all B rows, which find them in the cache

P + B T tokens run instead of B (P + T); outputs and gradients are the same.
"""

from collections.abc import Callable
from typing import Any

from torch import Tensor
from transformers.cache_utils import DynamicCache, DynamicLayer

from deltatune.core.site import InputSite, LayerSite, ParameterSite, SublayerSite
from deltatune.engine.compose import names
from deltatune.engine.roster import Roster

ALIKE = (InputSite, LayerSite, ParameterSite, SublayerSite)
"""Sites at which an adapter sees one token at a time, so that it does not matter in which pass it is."""


def alike(backbone: Any, roster: Roster, rows: int) -> bool:
    """Whether the prompt is the same for all rows, of which there are some, and the blocks may write to a cache."""
    if (
        rows < 2
        or roster.condition is not None
        or roster.recomputes
        or getattr(backbone, "gradient_checkpointing", False)
    ):
        return False
    acting = [roster.adapters[name] for name in names(roster.active)]
    return all(isinstance(site, ALIKE) for attached in acting for site in attached.sites)


def remembered(backbone: Any, call: Callable[..., Any], prompt_1PD: Tensor, rows: int) -> DynamicCache | None:
    """Keys and values of the prompt for all rows, expanded and not copied; None where a block keeps other things."""
    cache = DynamicCache(config=backbone.config)
    if not all(isinstance(layer, DynamicLayer) for layer in cache.layers):
        return None
    call(inputs_embeds=prompt_1PD, past_key_values=cache)
    for layer in cache.layers:
        layer.keys = layer.keys.expand(rows, -1, -1, -1)
        layer.values = layer.values.expand(rows, -1, -1, -1)
    return cache
