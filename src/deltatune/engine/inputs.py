"""Input site: virtual tokens go in after the embeddings and come out again at the end of the stack.

Labels, pooling, heads and generation see the real tokens only. With a cache the virtual tokens enter with the first
call and stay in the cache; later calls only lengthen the mask.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deltatune.core.errors import AdapterError
from deltatune.core.site import InputSite, SiteAdapter
from deltatune.engine.compose import Average, Rows, Stack, names
from deltatune.engine.roster import Roster
from deltatune.engine.sockets import Socket, repeated, socket
from deltatune.engine.sublayer import first


class InputSocket(Socket):
    """Puts the active prompts in front of the embedded tokens."""

    def run(self, module: nn.Module, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """[B, P + T, D] for [B, T, D]; nothing once the prompt is in the cache."""
        x = call(*args, **kwargs)
        if not self.roster.frame.pop("prompt enters", False):  # in the cache already, or another stack's lookup
            return x
        prompt = self._prompt(self.roster.active, x.shape[0])
        return x if prompt is None else torch.cat([prompt.to(x.dtype), x], 1)

    def tokens(self) -> int:
        """P of the active composition."""
        here = self.here()
        if isinstance(self.roster.active, Rows | Average) and any(n in here for n in names(self.roster.active)):
            raise AdapterError("prompts cannot be averaged, nor differ between rows of a batch", hint="use Stack")
        return sum(here[name].tokens for name in names(self.roster.active) if name in here)

    def _prompt(self, node: Any, rows: int) -> Tensor | None:
        here = self.here()
        if isinstance(node, Stack):
            parts = [part for part in (self._prompt(p, rows) for p in node.parts) if part is not None]
            return torch.cat(parts, 1) if parts else None
        if isinstance(node, str) and node in here:
            prompt: Tensor = here[node](rows, repeated(self.roster.condition, rows))
            return prompt
        return None


class MaskSocket(Socket):
    """Lengthens what a backbone is told about its tokens: the mask and explicit positions."""

    def __init__(self, roster: Roster, entry: InputSocket) -> None:
        super().__init__(roster)
        self.entry = (entry,)  # in a tuple: it lives at the embeddings

    def run(self, module: nn.Module, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """The backbone's call with room for the prompt."""
        tokens = self.entry[0].tokens()
        if not tokens:
            return call(*args, **kwargs)
        cache = kwargs.get("past_key_values")
        cached = cache is not None and cache.get_seq_length() > 0
        self.roster.frame |= {"prompt enters": not cached, "prompt leaves": 0 if cached else tokens}
        mask = kwargs.get("attention_mask")
        if isinstance(mask, Tensor):
            if mask.dim() != 2:
                raise AdapterError(f"a prompt needs a mask of shape [B, T], this one has {mask.dim()} dimensions")
            kwargs["attention_mask"] = F.pad(mask, (tokens, 0), value=1)
        positions = kwargs.get("position_ids")
        if isinstance(positions, Tensor):
            kwargs["position_ids"] = _with_prompt(positions, tokens, cached)
        return call(*args, **kwargs)


class ExitSocket(Socket):
    """Takes the prompt's rows out again."""

    def run(self, module: nn.Module, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """The output for the real tokens."""
        output = call(*args, **kwargs)
        tokens = self.roster.frame.pop("prompt leaves", 0)
        return _without_prompt(output, tokens) if tokens else output


def plug_input(model: nn.Module, roster: Roster, site: InputSite, name: str, adapter: SiteAdapter) -> None:
    """Puts a prompt in front of a stack's tokens."""
    entry: InputSocket = socket(model.get_submodule(site.path), "input", partial(InputSocket, roster))
    entry.plug(name, adapter)
    socket(model.get_submodule(site.exit), "exit", partial(ExitSocket, roster)).plug(name, nn.Identity())
    socket(model.get_submodule(site.backbone), "mask", partial(MaskSocket, roster, entry)).plug(name, nn.Identity())


def _with_prompt(positions: Tensor, tokens: int, cached: bool) -> Tensor:
    """Positions of the real tokens moved behind the prompt's, which come first unless they are in the cache."""
    moved = positions + tokens
    if cached:
        return moved
    front = torch.arange(tokens, device=positions.device).expand(*positions.shape[:-1], -1)
    return torch.cat([front, moved], -1)


def _without_prompt(output: Any, tokens: int) -> Any:
    if isinstance(output, Tensor):
        return output[:, tokens:]
    if isinstance(output, tuple):
        return (first(output)[:, tokens:], *output[1:])
    output["last_hidden_state"] = output["last_hidden_state"][:, tokens:]
    if output.get("hidden_states") is not None:
        output["hidden_states"] = tuple(h[:, tokens:] for h in output["hidden_states"])
    return output
