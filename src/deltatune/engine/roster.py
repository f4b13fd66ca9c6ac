"""Roster: the one object on a model that says which adapters it carries and which of them act.

Sockets (the engine's presence at a module) read it in every call, so switching is one assignment and no walk.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from deltatune.core.errors import AdapterError, did_you_mean
from deltatune.core.method import Method, Placed
from deltatune.core.site import ReplacedTensor, Site
from deltatune.engine.anatomy import Anatomy
from deltatune.engine.compose import Average, Node, Rows, Stack, names, replaced


@dataclass(eq=False)
class Attached:
    """One adapter on one model: its settings, the modules it was given, and how far its training is."""

    name: str
    method: Method
    sites: Sequence[Site]
    placed: Placed
    saved: Mapping[str, ReplacedTensor]
    """Tensors of modules trained whole, by parameter path."""
    parts: tuple[str, ...] = ()
    """Names of the adapters it reads or consists of."""
    steps: int = 0
    """Optimizer steps done."""
    total_steps: int | None = None

    @property
    def members(self) -> tuple[str, ...]:
        """Names of the adapters it consists of: they act, train and leave with it."""
        return self.parts if self.method.members() else ()


@dataclass(eq=False)
class Roster:
    """Adapters by name, the active composition, and what one forward pass needs to hand from module to module."""

    anatomy: Anatomy
    """The base's map, made before the first adapter came."""
    adapters: dict[str, Attached] = field(default_factory=dict)
    active: Node = None
    condition: Tensor | None = None
    """Task id [B] or vector [B, C] of each row."""
    batch_dim: int = 0
    """Dimension of the batch in hidden states; 1 for models that work on [T, B, D]."""
    frozen: dict[str, bool] = field(default_factory=dict)
    """`requires_grad` of the base's parameters as it was found."""
    merged: dict[str, Any] = field(default_factory=dict)
    """What was in the base before a merge, by adapter."""
    undo: list[Callable[[], None]] = field(default_factory=list)
    """What the last detach must put back besides (an attention function, for one)."""
    frame: dict[Any, Any] = field(default_factory=dict)
    """Tensors tapped in the running forward pass."""
    recomputes: bool = False
    """Blocks run a second time in backward, and must not write to a cache."""
    trunk: Any = None
    """The frozen blocks that need not run (`engine.trunk.Trunk`), once their output is kept."""

    def require(self, name: str) -> Attached:
        """The adapter of this name; raises `AdapterError` with near names."""
        if name not in self.adapters:
            raise AdapterError(f"no adapter named {name!r} on this model", hint=did_you_mean(name, self.adapters))
        return self.adapters[name]

    def activate(self, node: Node) -> None:
        """Makes a composition act; raises for unknown, merged or unmixable adapters."""
        for name in names(node):
            self.require(name)
            if name in self.merged:
                raise AdapterError(f"adapter {name!r} is merged into the base", hint="unmerge it first")
        self._check_capabilities(node)
        self.active = replaced(node, self._whole)

    def _whole(self, name: str) -> Node:
        """An adapter with those it consists of, on top of each other."""
        members = self.adapters[name].members
        return Stack(*members, name) if members else name

    def _check_capabilities(self, node: Node) -> None:
        for name in names(node):
            method = self.adapters[name].method
            if isinstance(node, Rows) and not method.can.rows:
                raise AdapterError(f"{method.type} cannot act on single rows of a batch (adapter {name!r})")
            if isinstance(node, Stack | Average) and len(set(names(node))) > 1 and not method.can.mix:
                raise AdapterError(f"{method.type} cannot be combined with other adapters (adapter {name!r})")
        if isinstance(node, Rows):
            for part, _ in node.groups():
                self._check_capabilities(part)

    @contextmanager
    def activated(self, node: Node) -> Iterator[None]:
        """A composition acts inside the block; what acted before acts again after it, also after an exception."""
        before = self.active
        self.activate(node)
        try:
            yield
        finally:
            self.active = before

    @contextmanager
    def conditioned(self, condition: Tensor) -> Iterator[None]:
        """Rows carry a task id [B] or a vector [B, C] inside the block."""
        before, self.condition = self.condition, condition
        try:
            yield
        finally:
            self.condition = before


def roster_of(model: nn.Module) -> Roster:
    """The roster of a model; a new one the first time."""
    known: Roster | None = vars(model).get("deltatune_roster")
    if known is None:
        anatomy = vars(model).get("deltatune_anatomy") or Anatomy.of(model)
        known = Roster(anatomy, batch_dim=_batch_dimension(model))
        vars(model)["deltatune_roster"] = known
    return known


def keep_map(model: nn.Module) -> None:
    """Adapters that come and go share one map from now on; for a model that nothing else will change."""
    vars(model)["deltatune_anatomy"] = Anatomy.of(model)


def _batch_dimension(model: nn.Module) -> int:
    """1 for XLNet, which transposes its input, and for torch transformers that are not batch first."""
    config = getattr(model, "config", None)
    if getattr(config, "model_type", "") == "xlnet":
        return 1
    firsts = {module.batch_first for module in model.modules() if isinstance(module, nn.MultiheadAttention)}
    return 1 if firsts == {False} else 0
