"""Anatomy: the map of a model. Where its blocks, projections, embeddings, norms and heads are, by role.

Made from structure in one pass over the modules; only sublayer outputs and entrances need a small forward pass, when
they are asked for.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Literal

from torch import Tensor, nn

from deltatune.core.errors import SettingsError, did_you_mean
from deltatune.core.method import Targets
from deltatune.core.site import AttentionSite, InputSite, LayerSite, ParameterSite, SideSite, SublayerSite
from deltatune.core.targeted import listed
from deltatune.engine import blocks, keyvalues, targets
from deltatune.engine.blocks import Stack, is_norm, parent, under, walk
from deltatune.engine.depth import depth, has_cache, is_causal
from deltatune.engine.entrance import entrance
from deltatune.engine.heads import heads
from deltatune.engine.matrices import Matrix, matrix_of, width_of
from deltatune.engine.roles import roles as roles_of
from deltatune.engine.trace import Sublayers, sublayers


class Anatomy:
    """The map of one model; see `core.method.Sites` for what a method may ask."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.name = type(model).__name__
        self.stacks: list[Stack] = blocks.stacks(model)
        self.heads: tuple[str, ...] = heads(model, self.stacks)
        """Paths of the modules that are the head of a task; empty for a bare backbone."""

    @classmethod
    def of(cls, model: nn.Module) -> "Anatomy":
        """The anatomy of any `transformers` model or plain torch module."""
        return cls(model)

    # -- what methods ask

    def layers(self, targets_: Targets, exclude: Targets = None) -> Sequence[LayerSite]:
        """Linear maps named by role, glob or path; raises `SettingsError` when a word names nothing."""
        return targets.resolve(self.every_layer, targets_, exclude, self.name)

    def parameters(self, roles: Sequence[str] = (), targets: Targets = None) -> Sequence[ParameterSite]:
        """Tensors of these roles inside these modules, tied ones once."""
        found = self.every_parameter if targets is None else self._inside(targets)
        return [site for site in found if not roles or site.role in roles]

    def sublayers(self, roles: Sequence[str]) -> Sequence[SublayerSite]:
        """Sublayer outputs of these roles in all blocks that run on small inputs.

        Raises `SettingsError` when there are none, or when one of them joins the stream out of reach.
        """
        traced = self._sublayers
        hidden = [path for role in roles for path in traced.hidden.get(role, ())]
        reachable = sorted({site.role for site in traced.sites} - traced.hidden.keys())
        hint = f"this model has a place for {', '.join(reachable)}" if reachable else "use lora on this model"
        if hidden:
            raise SettingsError(
                f"{self.name}: the output of {hidden[0]} cannot be reached before it is added", hint=hint
            )
        found = [site for site in traced.sites if site.role in roles]
        if not found:
            raise SettingsError(
                f"{self.name} has no {' or '.join(roles)} whose output joins a residual stream", hint=hint
            )
        return found

    def attentions(self, roles: Sequence[str] = ("self",)) -> Sequence[AttentionSite]:
        """Attention modules that go through the registry of `transformers`; raises `SettingsError` otherwise."""
        sites = self.every_attention
        found = [site for site in sites if site.role in roles]
        if not found or any(keyvalues.unreachable(sites, self.every_layer, role) for role in roles):
            raise SettingsError(
                f"{self.name} does not take keys and values from outside: its {' and '.join(roles)} attention does not "
                "go through the attention registry of transformers, or makes both from one vector",
                hint="use lora or an adapter on this model",
            )
        return found

    def inputs(self) -> Sequence[InputSite]:
        """The embedded tokens of the main stack, or of the first other that reads tokens."""
        main = self.main_stack
        first = entrance(self.model, [main, *(stack for stack in self.stacks if stack is not main)])
        decoder = next((stack for stack in self.stacks if stack.name == "decoder"), None)
        if first.stack != "encoder" or decoder is None:
            return [first]
        return [replace(first, reader=decoder.owner)]

    def side(self) -> SideSite:
        """The stack nearest to the answer; raises `SettingsError` when its blocks differ in width or layout.

        It is the decoder of an encoder-decoder: behind a changed encoder the decoder would need a gradient.
        """
        main = self.main_stack
        stack = next((s for s in self.stacks if main.name == "encoder" and s.name == "decoder"), main)
        widths = sorted({width_of(self.model.get_submodule(block)) for block in stack.blocks})
        if len(widths) > 1:
            raise SettingsError(f"the blocks of {self.name} differ in width ({', '.join(map(str, widths))})")
        causal = is_causal(self.model, stack)
        if causal and not has_cache(self.model, stack):
            raise SettingsError(
                f"{self.name} has no cache of keys and values for a side network to remember tokens in",
                hint="use lora or an adapter on this model",
            )
        first = next(self.model.get_submodule(stack.blocks[0]).parameters())
        return SideSite(
            path=stack.owner,
            blocks=stack.blocks,
            stack=stack.name,
            depth=depth(self.model, stack),
            width=widths[0],
            causal=causal,
            dtype=first.dtype,
            device=first.device,
        )

    # -- what the map holds

    @property
    def main_stack(self) -> Stack:
        """The encoder of an encoder-decoder, else the largest stack; raises `SettingsError` without blocks."""
        if not self.stacks:
            raise SettingsError(f"{self.name} has no repeated blocks")
        if getattr(getattr(self.model, "config", None), "is_encoder_decoder", False):
            found = next((stack for stack in self.stacks if stack.name == "encoder"), None)
            if found is not None:
                return found
        return max(self.stacks, key=self._size)

    def block_of(self, path: str) -> tuple[str, int] | None:
        """Stack and index of the block a path is in."""
        steps = path.split(".")
        starts = (".".join(steps[:count]) for count in range(1, len(steps) + 1))
        return next((self._blocks[start] for start in starts if start in self._blocks), None)

    @cached_property
    def every_layer(self) -> list[LayerSite]:
        """All linear maps: those of the blocks, then all others in the order of the modules."""
        found: dict[str, LayerSite] = {}
        for path, (stack, index) in self._blocks.items():
            for matrix, (role, packed) in roles_of(self.model.get_submodule(path), path):
                found[matrix.path] = self._site(matrix, role, packed, (stack, index))
        for path, module in walk(self.model):
            other = matrix_of(path, module)
            if other is not None and path not in found:
                block = self.block_of(path)
                found[path] = self._site(other, self._outside(other, block), (), block)
        return list(found.values())

    @cached_property
    def every_parameter(self) -> list[ParameterSite]:
        """All tensors, tied ones once."""
        found = []
        for path, module in walk(self.model):
            for name, tensor in module._parameters.items():
                full = f"{path}.{name}" if path else name
                if tensor is not None and self._paths[tensor][0] == full:
                    matrix = matrix_of(path, module) if name == "weight" else None
                    packed_bits = matrix is not None and matrix.quantised
                    paths = self._paths[tensor]
                    shape = (matrix.out_features, matrix.in_features) if matrix and packed_bits else tuple(tensor.shape)
                    found.append(
                        ParameterSite(
                            path=full,
                            role=self._parameter_role(full, module),
                            shape=shape,
                            tied=tuple(paths[1:]),
                            in_head=any(map(self._in_head, paths)),
                            dtype=tensor.dtype,
                            device=tensor.device,
                        )
                    )
        return found

    @cached_property
    def every_attention(self) -> list[AttentionSite]:
        """All attention modules that go through the registry."""
        return list(keyvalues.attentions(self.model, self.every_layer))

    # -- how it is found

    @cached_property
    def _sublayers(self) -> Sublayers:
        return sublayers(self.model, self.stacks, self.every_layer)

    @cached_property
    def _blocks(self) -> dict[str, tuple[str, int]]:
        """Stack and index of every block, by path."""
        return {path: (stack.name, index) for stack in self.stacks for index, path in enumerate(stack.blocks)}

    @cached_property
    def _paths(self) -> dict[Tensor, list[str]]:
        """All paths of every tensor; by tensors, not their ids, that a copy of the model asks for its own."""
        paths: dict[Tensor, list[str]] = {}
        for path, module in walk(self.model, repeated=True):
            for name, tensor in module._parameters.items():
                if tensor is not None:
                    paths.setdefault(tensor, []).append(f"{path}.{name}" if path else name)
        return paths

    def _site(self, matrix: Matrix, role: str, packed: tuple[str, ...], block: tuple[str, int] | None) -> LayerSite:
        return matrix.site(role, packed, block or ("", None), self._paths[matrix.weight])

    def _outside(self, matrix: Matrix, block: tuple[str, int] | None) -> str:
        """The role of a map that is no matrix of a block: convolutions and tables there, anything elsewhere."""
        if self._in_head(matrix.path):
            return "head"
        table = matrix.kind == "embedding" or (matrix.kind == "conv" and "embed" in matrix.path)
        return "embeddings" if table and block is None else "other"

    def _parameter_role(self, path: str, owner: nn.Module) -> Literal["weight", "bias", "norm", "embedding", "head"]:
        if self._in_head(path):
            return "head"
        if is_norm(owner):
            return "norm"
        if isinstance(owner, nn.Embedding):
            return "embedding"
        return "bias" if path.endswith("bias") else "weight"

    def _in_head(self, path: str) -> bool:
        return any(under(path, head) for head in self.heads)

    def _size(self, stack: Stack) -> int:
        modules = (self.model.get_submodule(block) for block in stack.blocks)
        return sum(math.prod(p.shape) for module in modules for p in module.parameters())

    def _inside(self, words: Targets) -> list[ParameterSite]:
        """The tensors in the modules (or under the tensor paths) that the words name."""
        modules = [path for path, _ in walk(self.model) if path]
        chosen: set[str] = set()
        for word in listed(words):
            places = set(self._places(word, modules))
            found = {site.path for site in self.every_parameter if _touches(site, word, places)}
            if not found:
                names = {path.rpartition(".")[2] for path in modules} | {"head"}
                raise SettingsError(
                    f"{word!r} names no module with parameters in {self.name}", hint=did_you_mean(word, names)
                )
            chosen |= found
        return [site for site in self.every_parameter if site.path in chosen]

    def _places(self, word: str, modules: Sequence[str]) -> Iterator[str]:
        yield from (layer.path for layer in targets.chosen(self.every_layer, word))
        yield from (path for path in modules if targets.names_path(word, path))
        if word == "head":
            yield from self.heads


def _touches(site: ParameterSite, word: str, places: set[str]) -> bool:
    """Whether a tensor, under any of its paths, is named itself or stands in one of the places."""
    for path in (site.path, *site.tied):
        place = path
        while place:
            if place in places:
                return True
            place = parent(place)
        if targets.names_path(word, path):
            return True
    return False
