"""Trace: where sublayer outputs join the residual stream, from one small forward pass.

The stream is what enters a block, and every sum it goes into. A sublayer output h is what comes out of an output or
down projection and is added to the stream: directly, behind dropout, norms and scales, or together with the output of
a parallel sublayer.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from typing import Literal

import torch
from torch import nn

from deltatune.core.site import LayerSite, SublayerSite, Tap
from deltatune.engine.blocks import Stack, parent, under, upwards
from deltatune.engine.flow import Border, Flow, Key, Recorder
from deltatune.engine.probe import small_pass

Kind = Literal["attention", "cross_attention", "mlp"]


@dataclass(frozen=True)
class Sublayers:
    """What the pass showed."""

    sites: list[SublayerSite] = field(default_factory=list)
    hidden: dict[str, list[str]] = field(default_factory=dict)
    """Role -> projections whose way into the stream passes no border of a module that runs once."""


@dataclass(frozen=True, slots=True)
class Join:
    """A sum of the stream and something else."""

    parts: frozenset[Key]
    """Origins of what is added, one by one and in sums among themselves."""
    added: Key
    residual: Key
    total: Key
    time: int


def sublayers(model: nn.Module, stacks: Sequence[Stack], layers: Sequence[LayerSite]) -> Sublayers:
    """The sublayer outputs of all blocks that run on small inputs."""
    recorder = Recorder()
    with recorder.hooked(model, [block for stack in stacks for block in stack.blocks]):
        small_pass(model, recorder)
    found = Sublayers()
    for stack in stacks:
        for index, block in enumerate(stack.blocks):
            if block in recorder.flows:
                own = [layer for layer in layers if layer.stack == stack.name and layer.block == index]
                _add(found, Block(model, recorder.flows[block], own), stack.name, index)
    return found


def _add(found: Sublayers, block: "Block", stack: str, index: int) -> None:
    known: set[str] = set()
    for kind, end in block.ends():
        site = block.site(kind, end, stack, index)
        if site is None:
            found.hidden.setdefault(kind, []).append(end.path)
        elif site.path not in known:  # experts and a shared expert end in one output
            known.add(site.path)
            found.sites.append(site)


class Block:
    """One block's flow, read together with the roles of its layers."""

    def __init__(self, model: nn.Module, flow: Flow, layers: Sequence[LayerSite]) -> None:
        self.model, self.flow, self.layers = model, flow, layers
        self.weight = next(model.get_submodule(flow.block).parameters())
        self.stream: set[Key] = {flow.origin(flow.start)}
        self.joins = list(self._joins())

    def ends(self) -> Iterator[tuple[Kind, LayerSite]]:
        """The last projection of each sublayer that runs (a cross-attention may have nothing to read)."""
        for layer in self.layers:
            kind, _, part = layer.role.partition(".")
            ran = self.flow.calls[_module(layer)] or self.flow.calls[parent(_module(layer))]
            if part in ("output", "down") and ran:
                yield kind, layer  # type: ignore[misc]

    def site(self, kind: Kind, end: LayerSite, stack: str, index: int) -> SublayerSite | None:
        """The place where the output of `end` can be taken before it joins the stream; None when there is none."""
        origins = self._origins(end)
        join = next((join for join in self.joins if origins & join.parts), None)
        reading = self._reading(kind, end)
        if join is None or reading is None:
            return None
        residuals = self._residuals(join)
        h = self._output(origins, join, {b.shape for b in residuals})
        residual = next((b for b in residuals if h and self._tappable(b, h)), None)
        entry = self._entry(reading, h) if h else None
        if h is None or residual is None or entry is None:
            return None
        if h.shape[-1] != end.out_features:  # ConvNeXT's joins with the channels in front
            return None
        norm = self._norm(join) if self._reads_stream(reading, join) else None
        if norm is not None and (h.key, residual.key) != (join.added, join.residual):
            return None  # scaled on the way: norm(h + residual) is not what runs
        return SublayerSite(
            path=h.path,
            role=kind,
            stack=stack,
            block=index,
            width=h.shape[-1],
            residual=Tap(path=residual.path, side=residual.side),
            entry=entry,
            norm=norm,
            dtype=self.weight.dtype,
            device=self.weight.device,
        )

    def _joins(self) -> Iterator[Join]:
        flow = self.flow
        contents: dict[Key, frozenset[Key]] = {}
        for addition in flow.sums:
            left, right = addition.operands
            in_left, in_right = (flow.origin(key) in self.stream for key in (left, right))
            if in_left or in_right:
                self.stream.add(addition.total)
                residual, added = (left, right) if in_left else (right, left)
                if in_left != in_right:
                    origin = flow.origin(added)
                    parts = contents.get(origin, frozenset({origin}))
                    yield Join(parts, added, residual, addition.total, addition.time)
            else:
                inside = [contents.get(o, frozenset({o})) for o in (flow.origin(left), flow.origin(right))]
                contents[addition.total] = inside[0] | inside[1] | {addition.total}

    def _origins(self, end: LayerSite) -> set[Key]:
        """What leaves the projection, and what leaves the modules around it before the stream is joined."""
        module = _module(end)
        seen = [b for b in self.flow.borders if b.side == "output" and under(module, b.path)]
        return {self.flow.origin(b.key) for b in seen} - self.stream

    def _residuals(self, join: Join) -> list[Border]:
        """Borders where the stream can be seen; parallel sublayers may be added one after the other."""
        found = [b for b in self.flow.borders if b.key == join.residual]
        before = next((other for other in self.joins if other.total == join.residual), None)
        return found or (self._residuals(before) if before else [])

    def _output(self, origins: set[Key], join: Join, shapes: set[torch.Size]) -> Border | None:
        """The last border where h alone can be seen."""
        fitting = [
            b
            for b in self.flow.borders
            if b.side == "output" and b.time < join.time and b.shape in shapes and self.flow.once(b.path)
            if self.flow.origin(b.key) in origins
        ]
        return fitting[-1] if fitting else None

    def _entry(self, reading: Key, h: Border) -> Tap | None:
        """What the sublayer reads, in the shape of h: the input of its first projection, or a step before it."""
        step: Key | None = reading
        while step is not None:
            fitting = [b for b in self.flow.borders if b.key == step and self._tappable(b, h)]
            if fitting:
                return Tap(path=fitting[0].path, side=fitting[0].side)
            step = self.flow.source.get(step)
        return None

    def _reads_stream(self, reading: Key, join: Join) -> bool:
        """Whether no norm stands between the stream and the sublayer, as in post-norm blocks."""
        same_origin = self.flow.origin(reading) == self.flow.origin(join.residual)
        return reading == join.residual or not same_origin  # DETR adds positions to the stream, which is no norm

    def _reading(self, kind: Kind, end: LayerSite) -> Key | None:
        """The input of the value (positions may be added to query and key), of a cross query, or of up."""
        wanted = {"attention": ("value", "query"), "cross_attention": ("query",), "mlp": ("up", "gate")}[kind]
        inputs = {b.path: b.key for b in reversed(self.flow.borders) if b.side == "input"}
        for part in wanted:
            able = [_module(x) for x in self.layers if x.role == f"{kind}.{part}" and _module(x) in inputs]
            if able:  # a block may have two of a kind: the one beside the end is meant
                return inputs[max(able, key=lambda path: _shared_steps(path, end.path))]
        own = _module(end)
        around = (path for path in upwards(own) if path in inputs and path != self.flow.block)
        return next((inputs[path] for path in around if path != own or end.kind == "tensor"), None)

    def _tappable(self, border: Border, h: Border) -> bool:
        return border.time < h.time and border.shape == h.shape and self.flow.once(border.path)

    def _norm(self, join: Join) -> str | None:
        """The norm of a post-norm block: the sum goes into it and nowhere else."""
        used = any(join.total in addition.operands for addition in self.flow.sums)
        left = any(b.key == join.total and b.path == self.flow.block and b.side == "output" for b in self.flow.borders)
        if used or left:
            return None
        into = (b.path for b in self.flow.borders if b.key == join.total and b.side == "input" and b.time > join.time)
        return next((path for path in into if _is_norm(self.model.get_submodule(path)) and self.flow.once(path)), None)


def _shared_steps(one: str, other: str) -> int:
    """How many steps two paths have in common from the root."""
    pairs = zip(one.split("."), other.split("."), strict=False)
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))


def _module(layer: LayerSite) -> str:
    return parent(layer.path) if layer.kind == "tensor" else layer.path


def _is_norm(module: nn.Module) -> bool:
    """By class name, wrappers included (PatchTST's holds a batch norm)."""
    return "norm" in type(module).__name__.lower()
