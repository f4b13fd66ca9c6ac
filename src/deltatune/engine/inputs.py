"""Input site: virtual tokens go in after the embeddings and come out again at the end of the stack.

Labels, pooling, heads and generation see the real tokens only. With a cache the virtual tokens enter with the first
call and stay in the cache; later calls only lengthen the mask.
"""

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.cache_utils import DynamicCache

from deltatune.core.errors import AdapterError
from deltatune.core.site import InputSite, SiteAdapter
from deltatune.engine.compose import Average, Rows, Stack, names
from deltatune.engine.layers import original_class
from deltatune.engine.roster import Roster
from deltatune.engine.shared_prompt import alike, remembered
from deltatune.engine.sockets import Socket, repeated, socket
from deltatune.engine.sublayer import first


class InputSocket(Socket):
    """Puts the active prompts in front of the embedded tokens."""

    def __init__(self, roster: Roster, words: nn.Module | None) -> None:
        super().__init__(roster)
        self.words = (words,)  # in a tuple: the token embedding belongs to the base

    def run(self, module: nn.Module, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """[B, P + T, D] for [B, T, D]; nothing once the prompt is in the cache."""
        x = call(*args, **kwargs)
        if not self.roster.frame.pop("prompt enters", False):  # in the cache already, or another stack's lookup
            return x
        prompt = self._prompt(self.roster.active, x.shape[0])
        if prompt is None:
            return x
        if self._any("word") and module is not self.words[0]:
            return call(**self._as_words(module, prompt.to(x.dtype), args, kwargs))
        return torch.cat([prompt.to(x.dtype), x], 1)

    def _as_words(self, module: Any, prompt: Tensor, args: Any, kwargs: Any) -> dict[str, Any]:
        """The arguments of an embeddings module with the prompt as its first words, of type 0."""
        given = inspect.signature(original_class(module).forward).bind(module, *args, **kwargs).arguments
        del given["self"]
        given |= given.pop("kwargs", {})
        words = given.get(self.embedded(module))
        if words is None:
            assert self.words[0] is not None
            words = self.words[0](given["input_ids"])
        tokens = prompt.shape[1]
        given["input_ids"] = None
        given[self.embedded(module)] = torch.cat([prompt, words], 1)
        if isinstance(given.get("token_type_ids"), Tensor):
            given["token_type_ids"] = F.pad(given["token_type_ids"], (tokens, 0))
        return given

    @staticmethod
    def embedded(module: Any) -> str:
        """The argument by which an embeddings module takes words that are embedded already."""
        known = inspect.signature(original_class(module).forward).parameters
        found = next((name for name in ("inputs_embeds", "input_embeds") if name in known), None)
        if found is None:
            raise AdapterError(
                f"{type(module).__name__} takes no embedded words", hint="use prompt_site: post_embedding"
            )
        return found

    def alone(self) -> Tensor:
        """The active prompts for one row [1, P, D], as the words they stand in front of."""
        prompt, words = self._prompt(self.roster.active, 1), self.words[0]
        assert prompt is not None and words is not None
        return prompt.to(next(words.parameters()).dtype)

    def stays(self) -> bool:
        """Whether the prompt's rows stay in the output."""
        return self._any("stays")

    def _any(self, fact: str) -> bool:
        """A fact of the active prompts; raises `AdapterError` when they differ in it."""
        here = self.here()
        facts = {bool(getattr(here[name], fact)) for name in names(self.roster.active) if name in here}
        if len(facts) > 1:
            raise AdapterError("prompts that enter at different places cannot act together", hint="train them alike")
        return facts == {True}

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

    def __init__(self, roster: Roster, entry: InputSocket, shares: bool) -> None:
        super().__init__(roster)
        self.entry = (entry,)  # in a tuple: it lives at the embeddings
        self.shares = shares

    def run(self, module: nn.Module, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """The backbone's call with room for the prompt."""
        tokens = self.entry[0].tokens()
        if not tokens:
            return call(*args, **kwargs)
        with _room(tokens):
            return self._run(tokens, module, call, *args, **kwargs)

    def _run(self, tokens: int, module: Any, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        cache = kwargs.get("past_key_values")
        ours = None
        if cache is None and self.shares and not self.entry[0].stays():
            cache = ours = self._remembered(module, call, args, kwargs)
            kwargs |= {} if ours is None else {"past_key_values": ours}
        cached = cache is not None and cache.get_seq_length() > 0
        self.roster.frame |= {
            "prompt enters": not cached,
            "prompt leaves": 0 if cached or self.entry[0].stays() else tokens,
        }
        mask = kwargs.get("attention_mask")
        if isinstance(mask, Tensor):
            if mask.dim() != 2:
                raise AdapterError(f"a prompt needs a mask of shape [B, T], this one has {mask.dim()} dimensions")
            kwargs["attention_mask"] = F.pad(mask, (tokens, 0), value=1)
        positions = kwargs.get("position_ids")
        if isinstance(positions, Tensor):
            kwargs["position_ids"] = _with_prompt(positions, tokens, cached)
        output = call(*args, **kwargs)
        if ours and kwargs.get("use_cache") is False:
            output["past_key_values"] = None  # nobody asked for the one that holds the prompt
        return output

    def _remembered(self, module: Any, call: Callable[..., Any], args: Any, kwargs: Any) -> DynamicCache | None:
        """The prompt's keys and values, where one row's are those of all rows."""
        tokens = next((t for t in (*args, kwargs.get("input_ids"), kwargs.get("inputs_embeds")) if t is not None), None)
        plain = kwargs.get("return_dict") is False
        if tokens is None or plain or not alike(module, self.roster, len(tokens)):
            return None
        return remembered(module, call, self.entry[0].alone(), len(tokens))


class ReaderSocket(Socket):
    """Lengthens the mask by which a decoder reads an encoder whose output begins with virtual tokens."""

    def run(self, module: nn.Module, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """The decoder's call with a mask as long as what it reads."""
        hidden, mask = kwargs.get("encoder_hidden_states"), kwargs.get("encoder_attention_mask")
        if isinstance(hidden, Tensor) and isinstance(mask, Tensor):
            kwargs["encoder_attention_mask"] = F.pad(mask, (hidden.shape[1] - mask.shape[-1], 0), value=1)
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
    words = model.get_submodule(site.table.rpartition(".")[0]) if site.table else None
    entry: InputSocket = socket(model.get_submodule(site.path), "input", partial(InputSocket, roster, words))
    entry.plug(name, adapter)
    if site.reader is None:
        socket(model.get_submodule(site.exit), "exit", partial(ExitSocket, roster)).plug(name, nn.Identity())
    else:  # a decoder reads the prompt's rows too
        reader = model.get_submodule(site.reader)
        socket(reader, "reader", partial(ReaderSocket, roster)).plug(name, nn.Identity())
    backbone = model.get_submodule(site.backbone)
    reads_another = getattr(getattr(backbone, "config", None), "is_encoder_decoder", False)  # a cache of two kinds
    shares = site.causal and words is model.get_submodule(site.path) and not reads_another
    socket(backbone, "mask", partial(MaskSocket, roster, entry, shares)).plug(name, nn.Identity())


@contextmanager
def _room(tokens: int) -> Iterator[None]:
    """Raises `AdapterError` where the model runs out of positions."""
    try:
        yield
    except IndexError as error:
        raise AdapterError(
            f"{tokens} virtual tokens and those of the input are more than the model has positions ({error})",
            hint="shorten the input (max_length) or the prompt (num_virtual_tokens)",
        ) from error


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
