"""Side site: the base runs without gradient, a side network reads the output of every block and has the last word.

It is told which tokens are padding, and keeps what it must remember of earlier tokens in the base's own cache.
"""

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import DynamicLayer, EncoderDecoderCache

from deltatune.core.errors import AdapterError
from deltatune.core.site import SideSite, SiteAdapter
from deltatune.engine.blocks import upwards
from deltatune.engine.compose import names
from deltatune.engine.layers import original_class
from deltatune.engine.roster import Roster
from deltatune.engine.sockets import Socket, socket
from deltatune.engine.sublayer import first

MASK = "attention_mask"
LAYERS = "deltatune_side"
"""Where a cache of the base lists the layers that are the side network's."""


class BlockSocket(Socket):
    """Hands a block's output (and the first block's input) to the side network."""

    def run(self, module: nn.Module, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """The plain call, noted."""
        hidden: list[Tensor] | None = self.roster.frame.get("hidden")
        if hidden is None:
            return call(*args, **kwargs)
        if not hidden:
            hidden.append((args[0] if args else next(iter(kwargs.values()))).detach())
        output = call(*args, **kwargs)
        hidden.append(first(output).detach())
        return output


class PaddingSocket(Socket):
    """Notes the mask [B, T] that a module around the stack is given; the innermost one counts."""

    def __init__(self, roster: Roster, place: int | None) -> None:
        super().__init__(roster)
        self.place = place
        """Where the mask stands among the positional arguments; None: it is no argument of this module."""

    def run(self, module: nn.Module, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """The plain call."""
        if self.roster.active is not None:
            self.note(args, kwargs)
        return call(*args, **kwargs)

    def note(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Takes a mask [B, T] or the word that there is none; one of more dimensions was made from one further out."""
        if self.place is None:
            return
        mask = args[self.place] if len(args) > self.place else kwargs.get(MASK)
        if mask is None or mask.dim() == 2:
            self.roster.frame["padding"] = mask


class SideSocket(PaddingSocket):
    """Runs a stack without gradient and replaces its last hidden state by the side network's."""

    def __init__(self, roster: Roster, place: int | None, site: SideSite) -> None:
        super().__init__(roster, place)
        self.site = site

    def run(self, module: nn.Module, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """The stack's output with another last hidden state."""
        here = self.here()
        wanted = [name for name in names(self.roster.active) if name in here]
        if not wanted:
            return call(*args, **kwargs)
        if len(wanted) > 1:
            raise AdapterError("two side networks cannot act at once", hint="activate one of them")
        self.note(args, kwargs)
        hidden: list[Tensor] = []
        self.roster.frame["hidden"] = hidden
        try:
            with torch.no_grad():
                output = call(*args, **kwargs)
        finally:
            del self.roster.frame["hidden"]
        if len(hidden) != self.site.depth + 1:
            raise AdapterError(
                f"{len(hidden) - 1} blocks of {self.site.path} ran, the side network was made for {self.site.depth}",
                hint="keep the base's dropout of layers off (training.base_dropout: false)",
            )
        padding = self.roster.frame.pop("padding", None)
        tokens = Tokens(hidden[0], padding, self.site.causal, _cache(output, kwargs))
        return _replaced(output, here[wanted[0]](hidden, first(output).detach(), tokens))


class Tokens:
    """What a side network needs to know of the tokens (see `core.site.Beside`)."""

    def __init__(self, entry: Tensor, padding: Tensor | None, causal: bool, cache: Any) -> None:
        past = 0 if cache is None else cache.get_seq_length() - entry.shape[1]
        self.cache = None if torch.is_grad_enabled() and not past else cache  # a training step remembers nothing
        known = [] if self.cache is None else vars(self.cache).setdefault(LAYERS, [])
        if past and not (known and known[0].get_seq_length() == past):
            raise AdapterError(
                "the cache holds tokens that the side network has not seen", hint="start with an empty cache"
            )
        self.layers: list[DynamicLayer] = known
        self.mask = _mask(entry, past, padding, causal)

    def remember(self, index: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of all tokens so far; those given, when the base keeps no cache."""
        if self.cache is None:
            return keys, values
        if index == len(self.layers):  # beside the base's own, so that beams are reordered and crops made there too
            self.layers.append(DynamicLayer())
            self.cache.layers.append(self.layers[-1])
        together: tuple[Tensor, Tensor] = self.layers[index].update(keys, values)
        return together


def plug_side(model: nn.Module, roster: Roster, site: SideSite, name: str, adapter: SiteAdapter) -> None:
    """Puts a side network beside a stack."""
    around = list(upwards(site.path))
    for path in around[1:]:
        module = model.get_submodule(path)
        socket(module, "padding", partial(PaddingSocket, roster, _place(module))).plug(name, nn.Identity())
    stack = model.get_submodule(site.path)
    socket(stack, "side", partial(SideSocket, roster, _place(stack), site)).plug(name, adapter)
    for path in site.blocks:
        socket(model.get_submodule(path), "block", partial(BlockSocket, roster)).plug(name, nn.Identity())


def _place(module: nn.Module) -> int | None:
    """Where the mask stands among the positional arguments of a module."""
    names = list(inspect.signature(original_class(module).forward).parameters)[1:]
    return names.index(MASK) if MASK in names else None


def _cache(output: Any, kwargs: dict[str, Any]) -> Any:
    """The cache that the stack has just filled, when it keeps one."""
    found = output.get("past_key_values") if isinstance(output, dict) else kwargs.get("past_key_values")
    return found.self_attention_cache if isinstance(found, EncoderDecoderCache) else found


def _mask(entry: Tensor, past: int, padding: Tensor | None, causal: bool) -> Tensor | None:
    """[B, 1, T, S], True where token t may look at token s; None where it may look everywhere."""
    rows, tokens, _ = entry.shape
    if padding is None and (not causal or tokens == 1):
        return None
    queries = torch.arange(past, past + tokens, device=entry.device).unsqueeze(1)
    keys = torch.arange(past + tokens, device=entry.device)
    seen = keys <= queries if causal else torch.ones_like(keys <= queries)
    if padding is None:
        return seen[None, None]
    if padding.shape != (rows, past + tokens):
        raise AdapterError(
            f"the mask of the tokens has shape {list(padding.shape)}, the side network sees {rows} rows of "
            f"{past + tokens} tokens"
        )
    # a token may always look at itself: with nothing to look at, padding would become NaN
    return (seen & padding.bool()[:, None, None]) | (keys == queries)


def _replaced(output: Any, last: Tensor) -> Any:
    if isinstance(output, Tensor):
        return last
    if isinstance(output, tuple):
        return (last, *output[1:])
    output["last_hidden_state"] = last
    if output.get("hidden_states"):
        output["hidden_states"] = (*output["hidden_states"][:-1], last)
    return output
