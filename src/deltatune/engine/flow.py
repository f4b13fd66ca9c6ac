"""Flow: what becomes of the tensors inside a block during one forward pass.

Tensors are followed by identity, not by value: which storage a module was given or returned, which additions it went
into. So it holds in any dtype, for zero weights, and on the meta device, where tensors have no values at all.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from deltatune.engine.blocks import LINEAR, walk

Key = tuple[int, int]
"""A tensor's storage and version; views share it, a change in place makes a new one."""

ADD = {"add", "add_"}
OPAQUE = {"linear", "addmm", "matmul", "bmm", "baddbmm", "einsum", "multi_head_attention_forward"}
"""Functions whose result is something new (as of `zeros_like`); all others pass a tensor of unchanged size on."""


@dataclass(frozen=True, slots=True)
class Border:
    """A tensor seen at the border of a module."""

    path: str
    side: Literal["input", "output"]
    key: Key
    shape: torch.Size
    time: int


@dataclass(frozen=True, slots=True)
class Sum:
    """An addition of two tensors of equal size."""

    operands: tuple[Key, Key]
    total: Key
    time: int


@dataclass
class Flow:
    """One run of one block."""

    block: str
    size: int
    """Number of values of the stream; tensors of other sizes are not followed."""
    start: Key
    borders: list[Border] = field(default_factory=list)
    sums: list[Sum] = field(default_factory=list)
    source: dict[Key, Key] = field(default_factory=dict)
    """What a tensor was made of by a function that passes it on."""
    calls: Counter[str] = field(default_factory=Counter)
    time: int = 0
    kept: list[Tensor] = field(default_factory=list)
    """Keeps storages alive while the block runs, so that none is reused under the same key."""

    def see(self, path: str, side: Literal["input", "output"], tensor: object) -> None:
        """Notes a tensor at a border."""
        self.time += 1
        if isinstance(tensor, Tensor) and tensor.numel() == self.size:
            self.kept.append(tensor)
            self.borders.append(Border(path, side, key_of(tensor), tensor.shape, self.time))

    def operate(self, name: str, operands: Sequence[Key], out: Tensor) -> None:
        """Notes an operation on tensors of the stream's size."""
        self.time += 1
        self.kept.append(out)
        key = key_of(out)
        if name in ADD and len(operands) == 2:
            self.sums.append(Sum((operands[0], operands[1]), key, self.time))
        elif operands and operands[0] != key and not _is_opaque(name):
            self.source[key] = operands[0]

    def origin(self, key: Key) -> Key:
        """The tensor that reached this one unchanged in size: through norms, dropout, scales, reshapes."""
        while key in self.source:
            key = self.source[key]
        return key

    def once(self, path: str) -> bool:
        """Whether a module ran exactly once: only there a socket knows which tensor it holds."""
        return self.calls[path] == 1


class Recorder(TorchFunctionMode):
    """Records the first run of every block, from where it is entered."""

    def __init__(self) -> None:
        super().__init__()
        self.flows: dict[str, Flow] = {}
        self.running: Flow | None = None

    def __enter__(self) -> "Recorder":
        self.flows.clear()
        self.running = None
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """The function's own result, noted while a block runs."""
        name = getattr(func, "__name__", "")
        flow = self.running
        tensors = [(a, key_of(a)) for a in args if isinstance(a, Tensor)] if flow is not None else []
        out = func(*args, **(kwargs or {}))
        if flow is not None and isinstance(out, Tensor) and out.numel() == flow.size:
            flow.operate(name, [key for a, key in tensors if a.numel() == flow.size], out)
        return out

    @contextmanager
    def hooked(self, model: nn.Module, blocks: Sequence[str]) -> Iterator[None]:
        """Listens at the borders of the modules of these blocks."""
        handles = []
        for block in blocks:
            for path, module in walk(model.get_submodule(block), block):
                handles.append(module.register_forward_pre_hook(self._enter(block, path), with_kwargs=True))
                handles.append(module.register_forward_hook(self._leave(block, path)))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _enter(self, block: str, path: str) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            given = args[0] if args else next(iter(kwargs.values()), None)
            if path == block and block not in self.flows and isinstance(given, Tensor):
                self.running = self.flows[block] = Flow(block, given.numel(), key_of(given))
            if self.running is not None:
                self.running.calls[path] += 1
                self.running.see(path, "input", given)

        return hook

    def _leave(self, block: str, path: str) -> Any:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            flow = self.running
            if flow is None:
                return
            tensor = output[0] if isinstance(output, tuple | list) and output else output
            if isinstance(module, LINEAR) and isinstance(tensor, Tensor):
                flow.source.pop(key_of(tensor), None)  # new, whatever function of a quantised layer computed it
            flow.see(path, "output", tensor)
            if path == block:
                flow.kept.clear()
                self.running = None

        return hook


def _is_opaque(name: str) -> bool:
    return name in OPAQUE or name.endswith("_like") or name.startswith("new_")


def key_of(tensor: Tensor) -> Key:
    """The identity of a tensor's values; `_cdata` because meta tensors have no address."""
    return tensor.untyped_storage()._cdata, tensor._version
