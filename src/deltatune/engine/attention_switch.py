"""The attention function of a model: set on it, on its parts, and on stacks whose config is a copy of its own."""

from collections.abc import Mapping
from typing import Any

from transformers import PreTrainedModel


def switch_attention(model: Any, chosen: str | Mapping[str, str]) -> None:
    """Makes a model run a registered attention; a mapping names parts apart, as in `set_attn_implementation`.

    Up to transformers 5.17 at least, that function leaves out stacks whose config is a copy (those of T5): they would
    go on without the keys and values of an adapter, and nothing would say so.
    """
    model.set_attn_implementation(chosen)
    for part in model.modules():
        if not isinstance(part, PreTrainedModel) or part.config is model.config:
            continue
        if type(part.config) is type(model.config):
            part.config._attn_implementation = model.config._attn_implementation
