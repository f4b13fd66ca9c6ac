"""Positions: moves those of the real tokens, for prefixes that count as tokens before them (peft, P-tuning v2)."""

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from deltatune.core.errors import AdapterError
from deltatune.engine.blocks import upwards
from deltatune.engine.compose import Average, Rows, names
from deltatune.engine.layers import original_class
from deltatune.engine.roster import Roster
from deltatune.engine.sockets import Socket, socket

PAST = "past_key_values_length"
HINT = "shorten the input (max_length) or the prefix (num_virtual_tokens), or use position_offset: 0"


class PositionSocket(Socket):
    """Adds the offset of the active prefixes to what a module is told about positions."""

    def __init__(self, roster: Roster) -> None:
        super().__init__(roster)
        self.offsets: dict[str, int] = {}

    def run(self, module: nn.Module, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """The call with later positions."""
        offset = self._offset()
        if not offset:
            return call(*args, **kwargs)
        given = kwargs.get("position_ids")
        if isinstance(given, Tensor):
            kwargs["position_ids"] = given + offset
        elif _takes(module, PAST):
            self._check(module, args, kwargs, offset)
            kwargs[PAST] = kwargs.get(PAST, 0) + offset
        else:
            kwargs["position_ids"] = _positions(args, kwargs) + offset
        try:
            return call(*args, **kwargs)
        except IndexError as error:
            raise AdapterError(
                f"{offset} virtual tokens and those of the input are more than the model has positions ({error})",
                hint=HINT,
            ) from error

    def _check(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], offset: int) -> None:
        """Raises `AdapterError` when moved positions are more than the model has."""
        known = getattr(module, "position_ids", None)
        first = getattr(module, "padding_idx", None)  # RoBERTa counts from behind it
        last = offset + int(_positions(args, kwargs)[0, -1]) + 1 + (0 if first is None else first + 1)
        if isinstance(known, Tensor) and last > known.shape[-1]:
            raise AdapterError(
                f"{offset} virtual tokens and those of the input need {last} positions, "
                f"the model has {known.shape[-1]}",
                hint=HINT,
            )

    def _offset(self) -> int:
        active = [self.offsets[name] for name in names(self.roster.active) if name in self.offsets]
        if active and isinstance(self.roster.active, Rows | Average):
            raise AdapterError("prefixes that move positions act on whole batches", hint="use position_offset: 0")
        return sum(active)


def plug_positions(model: nn.Module, roster: Roster, name: str, offset: int) -> None:
    """Moves positions wherever the model is told them; a model without (relative ones, patches) has none to move."""
    module = _told(model, roster)
    if module is not None:
        plugged: PositionSocket = socket(module, "position", partial(PositionSocket, roster))
        plugged.plug(name, nn.Identity())
        plugged.offsets[name] = offset


def _told(model: nn.Module, roster: Roster) -> nn.Module | None:
    """The embeddings that count what came before, or else the module around the blocks that takes positions."""
    for module in model.modules():
        if _takes(module, PAST) and any(isinstance(child, nn.Embedding) for child in module.children()):
            return module
    around = (model.get_submodule(path) for path in upwards(roster.anatomy.main_stack.owner))
    return next((module for module in around if _takes(module, "position_ids")), None)


def _takes(module: Any, word: str) -> bool:
    return word in inspect.signature(original_class(module).forward).parameters


def _positions(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """Positions as the model would count them."""
    tokens = next(t for t in (*args, kwargs.get("input_ids"), kwargs.get("inputs_embeds")) if isinstance(t, Tensor))
    cache = kwargs.get("past_key_values")
    past = cache.get_seq_length() if cache is not None else 0
    return torch.arange(past, past + tokens.shape[1], device=tokens.device).unsqueeze(0)
