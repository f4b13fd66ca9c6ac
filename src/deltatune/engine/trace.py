"""Trace: one small forward pass that shows where sublayer outputs join the residual stream.

Tensors at the borders of the modules of a block are compared by value: h is the output that, added to an earlier
tensor r, gives a later one. Works for any block, whatever its modules are called.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from deltatune.core.errors import AdapterError
from deltatune.core.site import LayerSite, SublayerSite, Tap
from deltatune.engine.blocks import Stack, is_norm
from deltatune.engine.probe import probe_inputs


@dataclass
class Event:
    """A tensor seen at the border of a module, in the order of the pass."""

    path: str
    side: Literal["input", "output"]
    tensor: Tensor


def sublayers(model: nn.Module, stacks: Sequence[Stack], layers: Sequence[LayerSite]) -> list[SublayerSite]:
    """The sublayer outputs of every block that runs in a small pass."""
    found = []
    for stack in stacks:
        for index, block in enumerate(stack.blocks):
            events = _events(model, block)
            own = [layer for layer in layers if layer.stack == stack.name and layer.block == index]
            found += _matched(model, stack.name, index, block, events, own)
    return found


def _events(model: nn.Module, block: str) -> list[Event]:
    """What passes the borders of a block's modules; only the first run of a shared block counts."""
    events: list[Event] = []
    done = False
    module = model.get_submodule(block)
    handles = []

    def enter(path: str) -> Any:
        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            tensor = _tensor(args) if args else _tensor(tuple(kwargs.values()))
            if tensor is not None and not done:
                events.append(Event(path, "input", tensor))

        return hook

    def leave(path: str) -> Any:
        def hook(_: nn.Module, __: Any, output: Any) -> None:
            nonlocal done
            tensor = _tensor(output if isinstance(output, tuple) else (output,))
            if tensor is not None and not done:
                events.append(Event(path, "output", tensor))
            done = done or path == block

        return hook

    for path, inner in module.named_modules(prefix=block):
        handles += [
            inner.register_forward_pre_hook(enter(path), with_kwargs=True),
            inner.register_forward_hook(leave(path)),
        ]
    try:
        with _quiet(model), torch.no_grad():
            model(**probe_inputs(model))
    except Exception as error:
        raise AdapterError(
            f"a small forward pass through {type(model).__name__} failed ({type(error).__name__}: {error}); "
            "where sublayers join the residual stream cannot be seen without one"
        ) from error
    finally:
        for handle in handles:
            handle.remove()
    return events


@contextmanager
def _quiet(model: nn.Module) -> Iterator[None]:
    """Evaluation mode and untouched random generators."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.random.fork_rng():
            yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def _matched(
    model: nn.Module, stack: str, index: int, block: str, events: Sequence[Event], layers: Sequence[LayerSite]
) -> list[SublayerSite]:
    roles = {layer.path: layer.role for layer in layers}
    found: list[SublayerSite] = []
    for position, event in enumerate(events):
        role = _role(event, roles)
        if role is None:
            continue
        join = _join(events, position)
        if join is None:
            continue
        h, residual, total = join
        norm = _norm(model, events, total)
        weight = next(model.get_submodule(block).parameters())
        stream = Tap(path=events[residual].path, side=events[residual].side)
        site = SublayerSite(
            path=events[h].path,
            role=role,
            stack=stack,
            block=index,
            width=events[h].tensor.shape[-1],
            residual=stream,
            entry=stream if norm else _entry(events, residual, h, stream),
            norm=norm,
            dtype=weight.dtype,
            device=weight.device,
        )
        if site.path not in {other.path for other in found}:
            found.append(site)
    return found


def _role(event: Event, roles: dict[str, str]) -> Any:
    """The sublayer that ends at this event: an output projection or a down projection."""
    if event.side != "output":
        return None
    role = roles.get(event.path, "")
    if role == "mlp.down":
        return "mlp"
    kind, _, part = role.partition(".")
    return kind if part == "output" else None


def _join(events: Sequence[Event], start: int) -> tuple[int, int, int] | None:
    """Indices of (h, r, h + r): h at or behind the projection, r before it, the sum behind h.

    The last such h counts (behind the dropout, behind a layer scale), unless its module also runs elsewhere.
    """
    best = None
    runs = Counter(event.path for event in events if event.side == "output")
    behind = [i for i in range(start, len(events)) if events[i].side == "output"]
    for h in behind[:12]:
        if events[h].tensor.shape[-1] != events[start].tensor.shape[-1] or runs[events[h].path] > 1:
            continue
        for total in range(h + 1, len(events)):
            residual = _residual(events, start, h, total)
            if residual is not None:
                best = (h, residual, total)
                break
    return best


def _residual(events: Sequence[Event], start: int, h: int, total: int) -> int | None:
    """Index of an earlier tensor r with h + r = total; some models flatten batch and tokens on the way."""
    wanted, output = events[total].tensor, events[h].tensor
    if wanted.numel() != output.numel() or wanted.shape[-1] != output.shape[-1]:
        return None
    difference = wanted - output.view_as(wanted)
    if float(difference.abs().max()) < 1e-6:  # the same tensor passed on, not a sum
        return None
    for i in range(start):
        other = events[i].tensor
        if (
            other.numel() == difference.numel()
            and other.shape[-1] == difference.shape[-1]
            and torch.allclose(other.view_as(difference), difference, atol=1e-5, rtol=1e-4)
        ):
            return i
    return None


def _norm(model: nn.Module, events: Sequence[Event], total: int) -> str | None:
    """The norm of a post-norm block: the sum goes into it and its output is the new stream.

    In a pre-norm block the sum may go into a norm too, but it is also added to later: it is still the stream.
    """
    event = events[total]
    if event.side != "input" or not is_norm(model.get_submodule(event.path)):
        return None
    final = events[-1].tensor
    normed = next((e for e in events[total:] if e.path == event.path and e.side == "output"), None)
    if normed is None:
        return None
    if normed.tensor.shape == final.shape and torch.equal(normed.tensor, final):
        return event.path
    later = [e.tensor for e in events[total + 1 :] if e.tensor.shape == normed.tensor.shape]
    outputs = [e.tensor for e in events[total + 1 :] if e.side == "output" and e.tensor.shape == normed.tensor.shape]
    joined = any(torch.allclose(t - o, normed.tensor, atol=1e-5, rtol=1e-4) for t in later for o in outputs)
    return event.path if joined else None


def _entry(events: Sequence[Event], residual: int, h: int, stream: Tap) -> Tap:
    """What a pre-norm sublayer reads: the output of the norm that read the stream."""
    for event in events[residual:h]:
        if (
            event.side == "input"
            and "norm" in event.path.rpartition(".")[2].lower()
            and torch.equal(event.tensor, events[residual].tensor)
        ):
            return Tap(path=event.path, side="output")
    return stream


def _tensor(values: Sequence[Any]) -> Tensor | None:
    return next(
        (v.detach().contiguous() for v in values if isinstance(v, Tensor) and v.is_floating_point() and v.dim() >= 2),
        None,
    )
