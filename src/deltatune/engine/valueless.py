"""Valueless: a training step without values, on tensors that have shape and dtype only.

Weights and inputs are on the meta device and say that they are on another one, so that whatever is chosen by device
(a kernel, autocast) is chosen as it would be there. Questions about values are answered so that nothing is left out:
a mask hides nothing that would be computed, of what is picked by a mask everything is picked.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from deltatune.engine.probe import No

META = torch.device("meta")


@contextmanager
def valueless(device: str = "cpu") -> Iterator[None]:
    """Inside, meta tensors are treated as they would be on `device` ("cpu" or "cuda"), and new tensors are meta."""
    with _Said(torch.device(device)), No(), _Picked(), META:  # type: ignore[no-untyped-call]
        yield


def without_values(model: nn.Module) -> nn.Module:
    """A copy of a model on the meta device; no weight is copied."""
    memo: dict[int, Any] = {}
    for module in model.modules():
        for parameter in module._parameters.values():
            if parameter is not None:
                memo[id(parameter)] = nn.Parameter(
                    torch.empty_like(parameter, device=META), requires_grad=parameter.requires_grad
                )
        for buffer in module._buffers.values():
            if buffer is not None:
                memo[id(buffer)] = torch.empty_like(buffer, device=META)
    return deepcopy(model, memo)


class _Said(TorchFunctionMode):
    """Meta tensors say they are on a device; what is made or moved there is meta."""

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self.device = device

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__self__", None) is Tensor.device:
            found = func(*args)
            return self.device if found.type == "meta" else found
        name = getattr(func, "__name__", "")
        if name in SOUND and args[0].is_meta:
            return SOUND[name]
        if func is F.scaled_dot_product_attention and self.device.type == "cpu":
            return _fused(*args, **kwargs)
        if name in MOVES:
            return args[0].to(META) if not args[0].is_meta else args[0]
        if name == "to" or "device" in kwargs:
            args = [self._there(value) for value in args]
            kwargs = {key: self._there(value) for key, value in kwargs.items()}
        return func(*args, **kwargs)

    def _there(self, value: Any) -> Any:
        is_place = isinstance(value, torch.device) or (isinstance(value, str) and value.split(":")[0] in PLACES)
        return META if is_place else value


SOUND = {"__int__": 1, "__float__": 1.0, "allclose": True, "equal": True}
"""Answers of a model that is as it should be: what is checked when one is loaded holds."""
MOVES = {"cpu", "cuda"}
PLACES = {"cpu", "cuda"}


def _fused(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """The kernel that a processor takes; by itself the meta device takes separate products."""
    if enable_gqa:
        times = query.shape[-3] // key.shape[-3]
        key, value = (tensor.repeat_interleave(times, -3) for tensor in (key, value))
    mask = attn_mask
    if mask is not None and mask.dtype == torch.bool:
        mask = torch.zeros_like(mask, dtype=query.dtype).masked_fill(~mask, -torch.inf)
    kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    found: Tensor = kernel(query, key, value, dropout_p, is_causal, attn_mask=mask, scale=scale)[0]
    return found


class _Picked(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """What a mask would pick: everything."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is torch.ops.aten.nonzero.default:
            (mask,) = args
            return torch.empty(mask.numel(), mask.ndim, dtype=torch.long, device=META)
        if func is torch.ops.aten.index.Tensor:
            args = (args[0], [place for index in args[1] for place in _places(index)], *args[2:])
        return func(*args, **(kwargs or {}))


def _places(index: Tensor | None) -> list[Tensor | None]:
    """Positions instead of a mask."""
    if index is None or index.dtype not in (torch.bool, torch.uint8):
        return [index]
    return [torch.empty(index.numel(), dtype=torch.long, device=META) for _ in range(index.ndim)]
