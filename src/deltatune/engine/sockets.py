"""Sockets: the engine's presence at a module of the base.

A module is not wrapped; its class is swapped for a subclass whose forward runs the sockets around the original
forward, as `torch.nn.utils.parametrize` does. Names, `.weight`, `isinstance` and state-dict keys of the base survive.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial, wraps
from typing import Any

from torch import Tensor, nn

from deltatune.core.errors import AdapterError
from deltatune.engine.blocks import DELTAS
from deltatune.engine.compose import Rows, by_rows, chosen, equal_shares, evaluate, expand_rows, names, weighted
from deltatune.engine.layers import Covered, FixedBase, Kind, LayerBase, RowsBase, Stacked, original_class, substituted
from deltatune.engine.roster import Roster
from deltatune.ops.remade import reading

PREFIX = "adapter_"
"""Before every adapter name in a ModuleDict: `train` or `double` are attributes of modules."""


class Socket(nn.Module):
    """Adapters at one site of one module, by name."""

    def __init__(self, roster: Roster) -> None:
        super().__init__()
        self.roster = roster
        self.adapters = nn.ModuleDict()

    def plug(self, name: str, adapter: nn.Module) -> None:
        """Adds an adapter."""
        self.adapters[PREFIX + name] = adapter

    def unplug(self, name: str) -> None:
        """Takes an adapter out, if it is here."""
        if PREFIX + name in self.adapters:
            del self.adapters[PREFIX + name]

    def here(self) -> Mapping[str, Any]:
        """The adapters at this site, by name."""
        return {key.removeprefix(PREFIX): adapter for key, adapter in self.adapters.items()}

    def run(self, module: nn.Module, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """The module's call with the active adapters; the plain call by default."""
        return call(*args, **kwargs)


class LayerSocket(Socket):
    """Adapters around one linear map."""

    def __init__(self, roster: Roster, kind: Kind) -> None:
        super().__init__(roster)
        self.kind = kind

    def run(self, module: nn.Module, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """y of the active composition for the first argument; further arguments go to the base."""
        node, x = self.roster.active, args[0]
        if node is None:
            return call(*args, **kwargs)
        rest = args[1:]
        plain = partial(_first_only, call, rest, kwargs) if rest or kwargs else call
        base = LayerBase(self.kind, module, plain, self._condition(x), alone=isinstance(node, str | Rows))
        if isinstance(node, str):  # the common case, and the one that must be fast
            key = PREFIX + node
            if key not in self.adapters:
                return base(x)
            with reading(x):
                return self.adapters[key](x, base)
        if isinstance(node, Rows):
            return self._rows(node, x, base)
        return self._composed(node, x, base)

    def _composed(self, node: Any, x: Tensor, base: Any) -> Tensor:
        def mix(pairs: list[tuple[Any, float]]) -> Any:
            return _Mixed(pairs, base)

        result: Tensor = evaluate(node, self.here(), Covered, base, mix)(x)
        return result

    def _rows(self, node: Rows, x: Tensor, base: LayerBase) -> Tensor:
        here = self.here()
        if not any(name in here for name in names(node)):
            return base(x)
        dim = self.roster.batch_dim if x.dim() > 2 else 0
        groups = expand_rows(node, x.shape[dim], type(base.module).__name__)
        at_once = self._at_once(groups, x, base) if dim == 0 and equal_shares(groups) else None
        if at_once is not None:
            return at_once
        y = base(x)

        def part(child: Any, rows: list[int]) -> Tensor:
            x_rows = chosen(x, rows, dim)
            alone = partial(self._acting, child, base.call)
            return self._composed(child, x_rows, RowsBase(base, rows, dim, x_rows, y, alone))

        return by_rows(groups, part, dim)

    def _acting(self, child: Any, call: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        """The base on some rows, which replaces its tensors by those of their own adapters."""
        before, self.roster.active = self.roster.active, child
        try:
            return call(x)
        finally:
            self.roster.active = before

    def _at_once(self, groups: Sequence[tuple[Any, list[int]]], x: Tensor, base: LayerBase) -> Tensor | None:
        """y in one operation, where the adapters of the groups are of one kind that can do that."""
        here = self.here()
        adapters = [here.get(node) if isinstance(node, str) else None for node, _ in groups]
        kind: Any = type(adapters[0])
        if None in adapters or any(type(adapter) is not kind for adapter in adapters):
            return None
        at_once: Tensor | None = kind.side_by_side(adapters, x, base)
        return at_once

    def _condition(self, x: Tensor) -> Tensor | None:
        return repeated(self.roster.condition, x.shape[self.roster.batch_dim if x.dim() > 2 else 0])


class _Mixed:
    """A weighted sum of bases, seen as a base."""

    def __init__(self, pairs: list[tuple[Any, float]], base: Any) -> None:
        self.pairs, self.base, self.condition = pairs, base, base.condition
        self.project, self.expand = base.project, base.expand
        self.plain = lambda x: None  # several adapters read the same output

    @property
    def weight(self) -> Tensor:
        return weighted([(part.weight, weight) for part, weight in self.pairs])

    @property
    def bias(self) -> Tensor | None:
        if self.base.bias is None:
            return None
        return weighted([(part.bias, weight) for part, weight in self.pairs])

    def __call__(self, x: Tensor) -> Tensor:
        return weighted([(part(x), weight) for part, weight in self.pairs])


class ParameterSocket(Socket):
    """Adapters that replace tensors of one module; the swapped class reads its tensors through it.

    Adapters are plugged as `<tensor name>/<adapter name>`: one module may have several replaced tensors.
    """

    def __init__(self, roster: Roster) -> None:
        super().__init__(roster)
        self.kinds: dict[str, Stacked] = {}

    def substitute(self, module: nn.Module, tensor_name: str) -> Tensor | None:
        """The tensor that the active composition puts in place of a tensor of the base."""
        tensor = module._parameters[tensor_name]
        node = self.roster.active
        if node is None:
            return tensor
        if isinstance(node, Rows):
            if any(self._key(tensor_name, name) in self.adapters for name in names(node)):
                self._check_rows(module)  # a parent may still ask for the dtype of a layer (T5 does)
            return tensor
        return self._resolved(node, tensor_name, tensor)

    def run(self, module: nn.Module, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """The plain call, which reads the substituted tensors; with `Rows` once per group, on a view of the module."""
        node = self.roster.active
        if not isinstance(node, Rows) or not self._concerned(node):
            return call(*args, **kwargs)
        self._check_rows(module)
        x = args[0]
        dim = self.roster.batch_dim if x.dim() > 2 else 0
        groups = expand_rows(node, x.shape[dim], type(module).__name__)

        def part(child: Any, rows: list[int]) -> Tensor:
            tensors = {name: self._resolved(child, name, module._parameters[name]) for name in self._tensor_names()}
            result: Tensor = substituted(module, tensors)(chosen(x, rows, dim), *args[1:], **kwargs)
            return result

        return by_rows(groups, part, dim)

    def plug_tensor(self, tensor_name: str, name: str, adapter: nn.Module, kind: Stacked | None) -> None:
        """Adds an adapter for one tensor; `kind` says how a layer adapter reads it as a matrix."""
        self.adapters[self._key(tensor_name, name)] = adapter
        if kind is not None:
            self.kinds[tensor_name] = kind

    def unplug(self, name: str) -> None:
        """Takes the adapter out of all tensors of the module."""
        for key in [key for key in self.adapters if key.partition("/")[2] == name]:
            del self.adapters[key]

    def _resolved(self, node: Any, tensor_name: str, tensor: Tensor | None) -> Tensor | None:
        if isinstance(node, str):
            key = self._key(tensor_name, node)
            return self._replaced(tensor_name, self.adapters[key], tensor) if key in self.adapters else tensor
        marker = self._key(tensor_name, "")
        here = {key.removeprefix(marker): adapter for key, adapter in self.adapters.items() if key.startswith(marker)}
        return evaluate(node, here, partial(self._replaced, tensor_name), tensor, weighted)

    def _replaced(self, tensor_name: str, adapter: Any, tensor: Any) -> Any:
        kind = self.kinds.get(tensor_name)
        if kind is None:
            return adapter(tensor)
        merged, _ = adapter.merged(FixedBase(kind.matrix(tensor), None))
        return kind.stored(merged, like=tensor).to(tensor.dtype)

    def _check_rows(self, module: nn.Module) -> None:
        """Raises where a module computes with its tensors itself, for all rows at once."""
        inner = [name for name, _ in module.named_children() if name != "deltas"]
        if inner or self.kinds:
            raise AdapterError(
                f"an adapter per row is not possible in {type(module).__name__}: it computes with all rows at once",
                hint="run the adapters one after the other",
            )

    def _concerned(self, node: Any) -> bool:
        wanted = set(names(node))
        return any(key.partition("/")[2] in wanted for key in self.adapters)

    def _tensor_names(self) -> set[str]:
        return {key.partition("/")[0].removeprefix(PREFIX) for key in self.adapters}

    @staticmethod
    def _key(tensor_name: str, name: str) -> str:
        return f"{PREFIX}{tensor_name}/{name}"


def repeated(condition: Tensor | None, size: int) -> Tensor | None:
    """One condition per entry of a batch dimension in which each row stands several times in a row (beams, windows)."""
    if condition is None or size == condition.shape[0] or size % condition.shape[0]:
        return condition
    return condition.repeat_interleave(size // condition.shape[0], dim=0)


def _first_only(call: Callable[..., Any], rest: tuple[Any, ...], kwargs: dict[str, Any], x: Tensor) -> Any:
    return call(x, *rest, **kwargs)


def socket(module: nn.Module, key: str, make: Callable[[], Socket], replaces: tuple[str, ...] = ()) -> Any:
    """The socket of one kind at a module, made on first use; the module's class is swapped so that it runs.

    `replaces` are names of tensors that the class must read through the parameter socket.
    """
    cls = type(module)
    known: frozenset[str] = getattr(cls, "deltatune_replaces", frozenset())
    wanted = known | frozenset(replaces)
    if not issubclass(cls, Swapped) or wanted != known:
        module.__class__ = _swapped(original_class(module), wanted)
    if "deltas" not in module._modules:
        module.deltas = nn.ModuleDict()
    deltas = module.deltas
    assert isinstance(deltas, nn.ModuleDict)
    if key not in deltas:
        deltas[key] = make()
        _sort(deltas)
    return deltas[key]


def release(module: nn.Module, name: str, only: str | None = None) -> None:
    """Takes an adapter out of every socket of a module, or of one; without adapters the module is what it was."""
    deltas = module._modules.get("deltas")
    if deltas is None:
        return
    assert isinstance(deltas, nn.ModuleDict)
    for key, plugged in list(deltas.items()):
        assert isinstance(plugged, Socket)
        if only in (None, key):
            plugged.unplug(name)
        if not plugged.adapters:
            del deltas[key]
    if not deltas:
        del module._modules["deltas"]
        module.__class__ = original_class(module)


class Swapped:
    """Marks the classes made here."""


ORDER = (
    "parameter",
    "layer",
    "sublayer",
    "attention",
    "tap",
    "input",
    "exit",
    "mask",
    "position",
    "reader",
    "block",
    "graph",
    "checkpoint",
    "trunk",
    "padding",
    "side",
    "loss",
)
"""From the inside out."""


def _sort(deltas: nn.ModuleDict) -> None:
    for key in sorted(deltas.keys(), key=ORDER.index):
        deltas._modules[key] = deltas._modules.pop(key)


@cache
def _swapped(cls: Any, replaces: frozenset[str]) -> type[nn.Module]:
    """A subclass of `cls` that runs its sockets; one per class and set of replaced tensors."""

    @wraps(cls.forward)  # generation and trainers look at the signature
    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        call: Callable[..., Any] = partial(cls.forward, self)
        for plugged in self.deltas.values():  # type: ignore[operator]
            call = partial(plugged.run, self, call)
        return call(*args, **kwargs)

    def reading(name: str) -> property:
        return property(lambda self: self.deltas["parameter"].substitute(self, name))

    body: dict[str, Any] = {
        "forward": forward,
        "deltatune_original": cls,
        "deltatune_replaces": replaces,
        "__module__": cls.__module__,
        "__doc__": cls.__doc__,
        **{name: reading(name) for name in replaces},
    }
    if issubclass(cls, nn.Sequential):  # runs whatever it iterates over
        body["__iter__"] = lambda self: (child for name, child in self._modules.items() if name != DELTAS)
        body["__len__"] = lambda self: len(self._modules) - (DELTAS in self._modules)
    return type(cls.__name__, (cls, Swapped), body)
