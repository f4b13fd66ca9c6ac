"""Key-value site: keys and values in front of a layer's own, through the attention registry of `transformers`.

A registered function calls the model's own attention with longer keys, values and mask. Works for every model family
that goes through the registry, whatever its attention looks like inside.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from deltatune.core.errors import AdapterError
from deltatune.core.site import AttentionSite, KeyValueAdapter
from deltatune.engine.attention_by_shape import BY_SHAPE
from deltatune.engine.attention_switch import switch_attention
from deltatune.engine.compose import Average, Rows, Stack, expand_rows, names
from deltatune.engine.positions import plug_positions
from deltatune.engine.roster import Roster
from deltatune.engine.sockets import Socket, repeated, socket

SUPPORTED = ("eager", "sdpa", BY_SHAPE)
"""Attention functions of transformers whose mask is a plain tensor."""


class AttentionSocket(Socket):
    """Adapters of one attention module; the registered function asks it for keys and values."""

    def extended(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Keys and values [B, H, P + S, K] and which of the P virtual ones each row sees ([B, P], None for all)."""
        node = self.roster.active
        rows = keys.shape[0]
        if isinstance(node, Rows):
            return self._by_rows(node, keys, values)
        prefix = self._prefix(node, rows, self._source(rows))
        if prefix is None:
            return keys, values, None
        _check_widths(prefix, keys, values)
        return torch.cat([prefix[0].to(keys.dtype), keys], 2), torch.cat([prefix[1].to(values.dtype), values], 2), None

    def run(self, module: nn.Module, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """The plain call; what the module reads is kept for the adapters that look at it."""
        self.roster.frame[self] = args[0] if args else kwargs["hidden_states"]
        return call(*args, **kwargs)

    def _source(self, rows: int) -> "Source":
        return Source(self.roster.frame[self], repeated(self.roster.condition, rows))

    def _prefix(self, node: Any, rows: int, source: "Source") -> tuple[Tensor, Tensor] | None:
        here = self.here()
        if isinstance(node, str):
            return here[node](rows, source) if node in here else None
        if isinstance(node, Stack):  # prefixes side by side
            parts = [part for part in (self._prefix(p, rows, source) for p in node.parts) if part is not None]
            if not parts:
                return None
            return torch.cat([k for k, _ in parts], 2), torch.cat([v for _, v in parts], 2)
        if isinstance(node, Average) and any(name in here for name in names(node)):
            raise AdapterError("keys and values of several adapters cannot be averaged", hint="use Stack")
        return None

    def _by_rows(self, node: Rows, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        batch = keys.shape[0]
        groups = expand_rows(node, batch, "attention")
        source = self._source(batch)
        found = [(rows, self._prefix(child, len(rows), source.rows(rows))) for child, rows in groups]
        for _, prefix in found:
            _check_widths(prefix, keys, values)
        longest = max((prefix[0].shape[2] for _, prefix in found if prefix is not None), default=0)
        if not longest:
            return keys, values, None
        shape = (batch, keys.shape[1], longest, keys.shape[3])
        front_k, front_v = keys.new_zeros(shape), values.new_zeros(shape)
        seen = torch.zeros(batch, longest, dtype=torch.bool, device=keys.device)
        for rows, prefix in found:
            if prefix is None:
                continue
            index = torch.tensor(rows, device=keys.device)
            pad = longest - prefix[0].shape[2]
            front_k = front_k.index_copy(0, index, F.pad(prefix[0].to(keys.dtype), (0, 0, pad, 0)))
            front_v = front_v.index_copy(0, index, F.pad(prefix[1].to(values.dtype), (0, 0, pad, 0)))
            seen[index, pad:] = True
        return torch.cat([front_k, keys], 2), torch.cat([front_v, values], 2), seen


def _check_widths(prefix: tuple[Tensor, Tensor] | None, keys: Tensor, values: Tensor) -> None:
    """Raises `AdapterError` where attention reads other keys than its projection makes."""
    if prefix is not None and (prefix[0].shape[3] != keys.shape[3] or prefix[1].shape[3] != values.shape[3]):
        raise AdapterError(
            f"keys of width {keys.shape[3]} are read beside values of width {values.shape[3]} (Conditional DETR puts "
            "places beside contents): nothing can be put in front of them",
            hint="use lora or an adapter on this model",
        )


@dataclass(frozen=True, slots=True)
class Source:
    """What an attention module works on (see `core.site.Attended`)."""

    entry: Tensor
    condition: Tensor | None

    def rows(self, rows: list[int]) -> "Source":
        """The same for some rows of the batch."""
        return Source(self.entry[rows], None if self.condition is None else self.condition[rows])


def plug_attention(model: nn.Module, roster: Roster, site: AttentionSite, name: str, adapter: KeyValueAdapter) -> None:
    """Puts an adapter in front of the keys and values of one attention module."""
    module = model.get_submodule(site.path)
    socket(module, "attention", partial(AttentionSocket, roster)).plug(name, adapter)
    _register(model, roster)
    if adapter.offset:
        plug_positions(model, roster, name, adapter.offset)


def _register(model: Any, roster: Roster) -> None:
    """Makes the model's attention ask the sockets, once; undone with the last adapter."""
    before = model.config._attn_implementation
    if before.startswith("deltatune_"):
        return
    if before not in SUPPORTED:
        raise AdapterError(
            f"keys and values cannot be put in front of attention {before!r}",
            hint=f"load the model with attn_implementation={' or '.join(map(repr, SUPPORTED))}",
        )
    ours = f"deltatune_{before}"
    AttentionInterface.register(ours, partial(_attention, before))
    AttentionMaskInterface.register(ours, ALL_MASK_ATTENTION_FUNCTIONS[before])
    parts = {
        key: part._attn_implementation
        for key in model.config.sub_configs
        if (part := getattr(model.config, key, None)) is not None
    }
    mixed = any(own != before for own in parts.values())

    def put(chosen: str) -> None:
        """Into all parts but those of another kind, or without any attention (the convolutions in front of DETR)."""
        apart = {"": chosen, **{key: chosen if own == before else own for key, own in parts.items()}}
        switch_attention(model, apart if mixed else chosen)

    put(ours)
    roster.undo.append(partial(put, before))


def _attention(
    before: str,
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **rest: Any,
) -> Any:
    """The model's own attention over virtual and real keys; the mask lets every query see the virtual ones."""
    original = _original(before, module)
    deltas: Any = module._modules.get("deltas")
    if deltas is None or "attention" not in deltas:
        return original(module, query, key, value, attention_mask, **rest)
    real = key.shape[2]
    key, value, seen = deltas["attention"].extended(key, value)
    virtual = key.shape[2] - real
    if virtual:
        attention_mask = _mask(module, query, real, attention_mask, rest)
        attention_mask = _extended_mask(attention_mask, virtual, seen)
        if isinstance(rest.get("position_bias"), Tensor):  # T5: virtual keys have no position
            rest["position_bias"] = F.pad(rest["position_bias"], (virtual, 0))
    return original(module, query, key, value, attention_mask, **rest)


def _original(before: str, module: nn.Module) -> Callable[..., Any]:
    """The attention function the model would have used; every modeling file has its own eager one."""
    if before == "eager":
        found: Callable[..., Any] = vars(sys.modules[type(module).__module__])["eager_attention_forward"]
        return found
    function: Callable[..., Any] = ALL_ATTENTION_FUNCTIONS[before]
    return function


def _mask(module: Any, query: Tensor, real: int, mask: Tensor | None, rest: dict[str, Any]) -> Tensor:
    """The mask as a tensor; without one, what the function would have assumed (causal aligns at the end)."""
    if mask is not None:
        return mask
    queries = query.shape[2]
    causal = rest.get("is_causal")
    if causal is None:
        causal = getattr(module, "is_causal", False)
    full = torch.ones(queries, real, dtype=torch.bool, device=query.device)
    return (full.tril(real - queries) if causal and queries > 1 else full)[None, None]


def _extended_mask(mask: Tensor, virtual: int, seen: Tensor | None) -> Tensor:
    """The mask with the virtual keys in front: open, or open for the rows that have them."""
    open_value = True if mask.dtype == torch.bool else 0.0
    if seen is None:
        return F.pad(mask, (virtual, 0), value=open_value)
    front: Tensor = seen[:, None, None, :].expand(-1, mask.shape[1], mask.shape[2], -1)
    if mask.dtype != torch.bool:
        front = torch.zeros_like(front, dtype=mask.dtype).masked_fill(~front, torch.finfo(mask.dtype).min)
    return torch.cat([front, mask.expand(seen.shape[0], -1, -1, -1)], -1)
