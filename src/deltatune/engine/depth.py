"""Depth: how often the blocks of a stack run, and whether a position sees those behind it."""

import inspect
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from deltatune.core.errors import SettingsError
from deltatune.engine.blocks import Stack, walk
from deltatune.engine.layers import original_class
from deltatune.engine.probe import ROWS, small_pass


def depth(model: nn.Module, stack: Stack) -> int:
    """Runs of all blocks in one pass: more than blocks where they share weights (ALBERT).

    Raises `SettingsError` when the blocks do not pass on [rows, tokens, width].
    """
    watch = Watch([model.get_submodule(path) for path in stack.blocks])
    small_pass(model, watch)
    wrong = next((shape for shape in watch.shapes if len(shape) != 3 or shape[0] != ROWS), None)
    if wrong is not None or not watch.shapes:
        raise SettingsError(
            f"the blocks of {type(model).__name__} do not pass on [rows, tokens, width], which a side network reads",
            hint="use lora or an adapter on this model",
        )
    return len(watch.shapes)


def is_causal(model: nn.Module, stack: Stack) -> bool:
    """Whether a position of the stack sees only itself and those before it.

    Attention modules of `transformers` say so themselves; where none does, language models are (BLOOM).
    """
    block = model.get_submodule(stack.blocks[0])
    said = [bool(module.is_causal) for _, module in walk(block) if "is_causal" in vars(module)]
    return any(said) if said else any(word in type(model).__name__ for word in ("CausalLM", "LMHead"))


def has_cache(model: nn.Module, stack: Stack) -> bool:
    """Whether the stack remembers the past by keys and values; Mamba does not."""
    owner = original_class(model.get_submodule(stack.owner))
    return "past_key_values" in inspect.signature(owner.forward).parameters


class Watch(AbstractContextManager["Watch"]):
    """Notes the shape of what each run of a block returns."""

    def __init__(self, blocks: list[nn.Module]) -> None:
        self.blocks = blocks
        self.shapes: list[torch.Size] = []
        self.handles: list[RemovableHandle] = []

    def __enter__(self) -> "Watch":
        self.shapes.clear()
        self.handles = [block.register_forward_hook(self._note) for block in self.blocks]
        return self

    def __exit__(self, *error: object) -> None:
        for handle in self.handles:
            handle.remove()

    def _note(self, module: nn.Module, args: Any, output: Any) -> None:
        self.shapes.append((output[0] if isinstance(output, tuple | list) else output).shape)
