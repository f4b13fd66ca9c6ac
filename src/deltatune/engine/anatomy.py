"""Anatomy: the map of a model. Where its blocks, projections, embeddings, norms and heads are, by role.

Made from structure in one pass over the modules; only sublayer outputs need a traced forward pass, when they are asked
for.
"""

import inspect
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any, Literal

from torch import nn

from deltatune.core.errors import SettingsError, did_you_mean
from deltatune.core.method import Targets
from deltatune.core.site import AttentionSite, InputSite, LayerSite, ParameterSite, SideSite, SublayerSite
from deltatune.engine import blocks, roles, targets, trace
from deltatune.engine.blocks import Stack, is_norm

QUANTISED = ("Linear4bit", "Linear8bitLt", "Params4bit", "Int8Params", "AffineQuantizedTensor", "QuantLinear")
"""Class names of layers and weights that bitsandbytes and torchao keep in few bits."""


class Anatomy:
    """The map of one model; see `core.method.Sites` for what a method may ask."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.name = type(model).__name__
        self.stacks: list[Stack] = blocks.stacks(model)
        self.heads: tuple[str, ...] = tuple(_heads(model, self.stacks))

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
        found = [site for site in self.every_parameter if not roles or site.role in roles]
        return found if targets is None else self._inside(found, targets)

    def sublayers(self, roles: Sequence[str]) -> Sequence[SublayerSite]:
        """Sublayer outputs of these roles; raises `SettingsError` when the model has none."""
        found = [site for site in self.every_sublayer if site.role in roles]
        if not found:
            raise SettingsError(f"{self.name} has no {' or '.join(roles)} whose output joins a residual stream")
        return found

    def attentions(self, roles: Sequence[str] = ("self",)) -> Sequence[AttentionSite]:
        """Attention modules that go through the registry of `transformers`; raises `SettingsError` otherwise."""
        found = [site for site in self._attentions() if site.role in roles]
        if not found:
            raise SettingsError(
                f"{self.name} does not take keys and values from outside: its attention does not go through the "
                "attention registry of transformers",
                hint="use lora or an adapter on this model",
            )
        return found

    def inputs(self) -> Sequence[InputSite]:
        """The embedded tokens of the main stack."""
        path, backbone, exit_ = self._input_path()
        module = self.model.get_submodule(path)
        first = next(module.parameters())
        stack = self.main_stack
        width = roles.width_of(self.model.get_submodule(stack.blocks[0]))
        return [
            InputSite(
                path=path,
                backbone=backbone,
                exit=exit_,
                stack=stack.name,
                width=width,
                dtype=first.dtype,
                device=first.device,
            )
        ]

    def side(self) -> SideSite:
        """The main stack, for a side network."""
        stack = self.main_stack
        first = next(self.model.get_submodule(stack.blocks[0]).parameters())
        return SideSite(
            path=self._stack_owner(stack),
            blocks=stack.blocks,
            stack=stack.name,
            width=roles.width_of(self.model.get_submodule(stack.blocks[0])),
            dtype=first.dtype,
            device=first.device,
        )

    # -- what the map holds

    @property
    def main_stack(self) -> Stack:
        """The encoder of an encoder-decoder, else the first stack; raises `SettingsError` without blocks."""
        if not self.stacks:
            raise SettingsError(f"{self.name} has no repeated blocks")
        return next((stack for stack in self.stacks if stack.name == "encoder"), self.stacks[0])

    @cached_property
    def every_layer(self) -> list[LayerSite]:
        """All linear maps, in the order of the modules of the model: blocks, then embeddings, convolutions, heads."""
        found: dict[str, LayerSite] = {}
        for stack in self.stacks:
            for index, path in enumerate(stack.blocks):
                block = self.model.get_submodule(path)
                known = roles.roles(block, path)
                for matrix in roles.matrices(block, path):
                    role, packed = known[matrix.path]
                    found[matrix.path] = self._site(matrix, role, packed, stack.name, index)
        for path, module in self.model.named_modules():
            if path not in found and path.rpartition(".")[2] != "deltas":
                site = self._outside(path, module)
                if site is not None:
                    found[path] = site
        return list(found.values())

    @cached_property
    def every_parameter(self) -> list[ParameterSite]:
        """All tensors, tied ones once."""
        found = []
        for path, parameter in self.model.named_parameters():
            owner = self.model.get_submodule(path.rpartition(".")[0])
            found.append(
                ParameterSite(
                    path=path,
                    role=self._parameter_role(path, owner),
                    shape=tuple(parameter.shape),
                    tied=tuple(other for other in self._paths[id(parameter)] if other != path),
                    dtype=parameter.dtype,
                    device=parameter.device,
                )
            )
        return found

    @cached_property
    def every_sublayer(self) -> list[SublayerSite]:
        """All sublayer outputs, from one traced pass."""
        return trace.sublayers(self.model, self.stacks, self.every_layer)

    def block_of(self, path: str) -> tuple[str, int] | None:
        """Stack and index of the block a path is in."""
        for stack in self.stacks:
            for index, block in enumerate(stack.blocks):
                if path.startswith(f"{block}."):
                    return stack.name, index
        return None

    # -- how it is found

    @cached_property
    def _paths(self) -> dict[int, list[str]]:
        """All paths of every tensor."""
        paths: dict[int, list[str]] = {}
        for path, parameter in self.model.named_parameters(remove_duplicate=False):
            paths.setdefault(id(parameter), []).append(path)
        return paths

    def _site(
        self, matrix: roles.Matrix, role: str, packed: tuple[str, ...], stack: str, index: int | None
    ) -> LayerSite:
        module_path = matrix.parent if matrix.kind == "tensor" else matrix.path
        module = self.model.get_submodule(module_path)
        tensor_name = matrix.last if matrix.kind == "tensor" else "weight"
        weight = module._parameters[tensor_name]
        assert weight is not None
        full = f"{module_path}.{tensor_name}"
        kinds = {type(module).__name__, type(weight).__name__}
        kind: Any = matrix.kind
        return LayerSite(
            path=matrix.path,
            role=role,
            stack=stack,
            block=index,
            kind=kind,
            in_features=matrix.in_features,
            out_features=matrix.out_features,
            copies=matrix.copies,
            transposed=matrix.transposed,
            packed=packed,
            has_bias=matrix.kind != "tensor" and module._parameters.get("bias") is not None,
            tied=tuple(other for other in self._paths[id(weight)] if other != full),
            quantised=not kinds.isdisjoint(QUANTISED),
            dtype=weight.dtype,
            device=weight.device,
        )

    def _outside(self, path: str, module: nn.Module) -> LayerSite | None:
        """A linear map that stands in no block, or a convolution or embedding anywhere."""
        where = self.block_of(path)
        stack, index = where if where is not None else ("", None)
        role = "head" if self._in_head(path) else "other"
        if isinstance(module, nn.Linear):
            return self._site(
                roles.Matrix(path, "linear", module.in_features, module.out_features), role, (), stack, index
            )
        if isinstance(module, nn.Embedding):
            role = "embeddings" if index is None and role == "other" else role
            return self._site(
                roles.Matrix(path, "embedding", module.num_embeddings, module.embedding_dim), role, (), stack, index
            )
        if isinstance(module, nn.Conv1d | nn.Conv2d) and "weight" in module._parameters:
            role = "embeddings" if index is None and role == "other" else role
            plain = self._site(
                roles.Matrix(path, "conv", module.in_channels // module.groups, module.out_channels),
                role,
                (),
                stack,
                index,
            )
            fields = {name: getattr(plain, name) for name in LayerSite.__dataclass_fields__}
            return LayerSite(**{**fields, "kernel": tuple(module.kernel_size), "groups": module.groups})
        return None

    def _parameter_role(self, path: str, owner: nn.Module) -> Literal["weight", "bias", "norm", "embedding", "head"]:
        if self._in_head(path):
            return "head"
        if is_norm(owner):
            return "norm"
        if isinstance(owner, nn.Embedding):
            return "embedding"
        return "bias" if path.endswith("bias") else "weight"

    def _in_head(self, path: str) -> bool:
        return any(path == head or path.startswith(f"{head}.") for head in self.heads)

    def _inside(self, sites: Sequence[ParameterSite], words: Targets) -> list[ParameterSite]:
        chosen: set[str] = set()
        modules = [path for path, _ in self.model.named_modules() if path]
        for word in targets.listed(words):
            places = [layer.path for layer in self.every_layer if targets.has_role(layer, word)]
            places += [path for path in modules if targets.names_path(word, path)]
            places += list(self.heads) if word == "head" else []
            matched = {site.path for site in sites if any(_under(site.path, place) for place in places)}
            matched |= {site.path for site in sites if targets.names_path(word, site.path)}
            if not matched:
                names = {path.rpartition(".")[2] for path in modules} | {"head"}
                raise SettingsError(
                    f"{word!r} names no module with parameters in {self.name}", hint=did_you_mean(word, names)
                )
            chosen |= matched
        return [site for site in sites if site.path in chosen]

    def _attentions(self) -> Iterator[AttentionSite]:
        projections: dict[str, LayerSite] = {
            f"{layer.path.rpartition('.')[0]}:{part}": layer
            for layer in self.every_layer
            if "attention." in layer.role
            for part in (layer.packed or (layer.role.rpartition(".")[2],))
        }
        for stack in self.stacks:
            for index, block in enumerate(stack.blocks):
                for path, module in self.model.get_submodule(block).named_modules(prefix=block):
                    key = projections.get(f"{path}:key")
                    if key is not None and _uses_registry(module):
                        query = projections.get(f"{path}:query", key)
                        yield _attention_site(path, module, query, key, stack.name, index)

    def _input_path(self) -> tuple[str, str, str]:
        """Module whose output is the embedded tokens, module that takes the mask, module at whose end they leave."""
        owner = self._stack_owner(self.main_stack)
        backbone = self.model.get_submodule(owner)
        norms = [name for name, child in backbone.named_children() if is_norm(child)]
        end = f"{owner}.{norms[-1]}".lstrip(".") if norms else owner  # some backbones reshape behind their last norm
        inner = _embedding_child(backbone, owner)
        if inner is not None:
            return inner, owner, end
        outer = owner.rpartition(".")[0]
        found = _embedding_child(self.model.get_submodule(outer), outer)
        if found is None:
            raise SettingsError(f"{self.name}: no embeddings found in front of {owner or 'the blocks'}")
        return found, outer, end

    def _stack_owner(self, stack: Stack) -> str:
        """The module that runs the blocks of a stack."""
        path = stack.lists[0]
        for _ in range(2 if len(stack.lists) > 1 else 1):
            path = path.rpartition(".")[0]
        while path and isinstance(self.model.get_submodule(path), nn.ModuleList):
            path = path.rpartition(".")[0]
        return path

    # -- what `inspect` shows

    def describe(self) -> dict[str, Any]:
        """The map as plain values."""
        count: Counter[str] = Counter()
        for site in self.every_parameter:
            count[site.role] += _product(site.shape)
        return {
            "model": self.name,
            "parameters": sum(count.values()),
            "by_role": dict(sorted(count.items())),
            "stacks": [self._describe_stack(stack) for stack in self.stacks],
            "outside": [_row(layer, layer.path, 1) for layer in self.every_layer if layer.block is None],
            "head": list(self.heads),
        }

    def _describe_stack(self, stack: Stack) -> dict[str, Any]:
        """Rows of a stack: one per layer of a block, blocks of equal shape taken together."""
        rows: dict[tuple[Any, ...], list[LayerSite]] = {}
        for layer in self.every_layer:
            if layer.block is not None and layer.stack == stack.name:
                inside = layer.path.removeprefix(f"{stack.blocks[layer.block]}.")
                key = (inside, layer.role, layer.in_features, layer.out_features, layer.kind)
                rows.setdefault(key, []).append(layer)
        pattern = f"{stack.lists[0]}.{{i}}" if len(stack.lists) == 1 else f"{len(stack.lists)} lists of blocks"
        return {
            "name": stack.name,
            "path": pattern,
            "blocks": len(stack.blocks),
            "layers": [_row(found[0], key[0], len(found)) for key, found in rows.items()],
        }


def _row(layer: LayerSite, path: str, count: int) -> dict[str, Any]:
    values = layer.in_features * layer.out_features * max(1, layer.copies) * _product(layer.kernel)
    return {
        "path": path,
        "role": layer.role,
        "kind": layer.kind,
        "shape": [layer.out_features, layer.in_features],
        "packed": list(layer.packed),
        "copies": layer.copies,
        "blocks": count,
        "parameters": values + (layer.out_features if layer.has_bias else 0),
    }


def _product(sizes: Sequence[int]) -> int:
    result = 1
    for size in sizes:
        result *= size
    return result


def _under(path: str, place: str) -> bool:
    return path == place or path.startswith(f"{place}.")


def _heads(model: Any, stacks: Sequence[Stack]) -> Iterator[str]:
    """Top-level modules with parameters outside the backbone; the output embeddings where there is no backbone."""
    backbone = getattr(model, "base_model", model)
    if backbone is not model:
        inside = {id(module) for module in backbone.modules()}
        for name, module in model.named_children():
            if id(module) not in inside and any(True for _ in module.parameters()):
                yield name
        return
    output = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    if output is not None:
        yield from (name for name, module in model.named_children() if module is output)
    elif not hasattr(model, "base_model_prefix"):  # a plain torch module: what comes after the blocks
        after = False
        for name, module in model.named_children():
            if any(path == name or path.startswith(f"{name}.") for stack in stacks for path in stack.lists):
                after = True
            elif after and any(isinstance(m, nn.Linear) for m in module.modules()):
                yield name


def _uses_registry(module: nn.Module) -> bool:
    code = getattr(inspect.unwrap(type(module).forward), "__code__", None)
    return code is not None and "ALL_ATTENTION_FUNCTIONS" in code.co_names


def _attention_site(path: str, module: Any, query: LayerSite, key: LayerSite, stack: str, index: int) -> AttentionSite:
    names = ("head_dim", "attention_head_size", "key_value_proj_dim", "d_head")
    width = next(getattr(module, name) for name in names if isinstance(getattr(module, name, None), int))
    total = query.out_features // width
    if key.packed:
        config = getattr(module, "config", None)
        known = getattr(config, "num_key_value_heads", None)
        heads = known * 1 if known else total // len(key.packed)
        total = total - 2 * heads if known else heads
        return _made(path, key, stack, index, total, heads, width)
    return _made(path, key, stack, index, total, key.out_features // width, width)


def _made(path: str, key: LayerSite, stack: str, index: int, heads: int, kv: int, width: int) -> AttentionSite:
    return AttentionSite(
        path=path,
        role="cross" if key.role.startswith("cross") else "self",
        stack=stack,
        block=index,
        heads=heads,
        key_value_heads=kv,
        head_width=width,
        dtype=key.dtype,
        device=key.device,
    )


def _embedding_child(module: nn.Module, path: str) -> str | None:
    """The child that embeds: a module named so, or else the token embedding."""
    for name, child in module.named_children():
        if "embed" in name and "position" not in name and not isinstance(child, nn.ModuleList):
            return f"{path}.{name}" if path else name
    for name, child in module.named_children():
        if isinstance(child, nn.Embedding):
            return f"{path}.{name}" if path else name
    return None
