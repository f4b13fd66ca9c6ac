"""Handle: one adapter on one model, as everything outside the engine sees it."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from deltatune.core.errors import AdapterError
from deltatune.core.method import AdapterFile, Method, Pace, Placed, Progress
from deltatune.core.pace import parameter_groups
from deltatune.core.site import SiteAdapter
from deltatune.engine import merge as merging
from deltatune.engine import steps
from deltatune.engine.checkpointing import checkpoint_blocks
from deltatune.engine.compiled import compile_blocks
from deltatune.engine.compose import names, without
from deltatune.engine.fingerprint import fingerprint
from deltatune.engine.plug import plug
from deltatune.engine.roster import Attached, Roster, roster_of
from deltatune.engine.sockets import release
from deltatune.engine.tensors import copy_strictly, folded_tensors, inside, replaced_heads, whole_modules


class Handle:
    """One adapter on one model. Activation, training and merging are three separate switches."""

    def __init__(self, model: nn.Module, name: str) -> None:
        self.model = model
        self.name = name

    @property
    def roster(self) -> Roster:
        """What the model knows of all its adapters."""
        return roster_of(self.model)

    @property
    def attached(self) -> Attached:
        """The entry in the roster."""
        return self.roster.require(self.name)

    @property
    def method(self) -> Method:
        """The settings it was made with."""
        return self.attached.method

    @property
    def members(self) -> "list[Handle]":
        """The adapters it consists of; most consist of none."""
        return [Handle(self.model, name) for name in self.attached.members]

    # -- activation

    def activate(self) -> None:
        """Only this adapter acts."""
        self.roster.activate(self.name)

    @property
    def active(self) -> bool:
        """Whether this adapter acts, alone or in a composition."""
        return self.name in names(self.roster.active)

    @contextmanager
    def disabled(self) -> Iterator[None]:
        """Without this adapter inside the block; the state before is restored, also after an exception."""
        if self.merged:
            raise AdapterError(f"adapter {self.name!r} is merged and cannot be switched off", hint="unmerge it first")
        rest = self.roster.active
        for name in (self.name, *self.attached.members):
            rest = without(rest, name)
        with self.roster.activated(rest):
            yield

    @contextmanager
    def conditioned(self, condition: Tensor) -> Iterator[None]:
        """Rows carry a task id [B] or a vector [B, C] inside the block; raises `AdapterError` for impossible ones."""
        for handle in (self, *self.members):
            handle.method.check_condition(condition)
        with self.roster.conditioned(condition):
            yield

    # -- training

    def modules(self) -> Iterator[nn.Module]:
        """Everything that belongs to the adapter: site modules, what they share, replaced tensors."""
        attached = self.attached
        if attached.placed.shared is not None:
            yield attached.placed.shared
        yield from attached.placed.modules()
        yield from attached.saved.values()
        for member in self.members:
            yield from member.modules()

    def named_parameters(self) -> dict[str, nn.Parameter]:
        """Trained tensors by name, each once, in a fixed order."""
        found: dict[str, nn.Parameter] = {}
        seen: set[int] = set()
        for prefix, module in self._named_modules():
            for name, parameter in module.named_parameters():
                if id(parameter) not in seen:
                    seen.add(id(parameter))
                    found[f"{prefix}.{name}"] = parameter
        for index, member in enumerate(self.members):
            found |= {f"{index}.{name}": parameter for name, parameter in member.named_parameters().items()}
        return found

    def paces(self) -> dict[str, Pace]:
        """How each tensor of `named_parameters` is trained.

        What is trained whole beside the adapter: at the method's `head_rate` at most when the adapter learns at its own
        rate; what is trained alone (a linear probe's head), at that rate.
        """
        found: dict[str, Pace] = {}
        method = self.method
        beside = min(1.0, method.head_rate / method.learning_rate) if self.attached.sites or self.members else 1.0
        trained = self.named_parameters()
        for prefix, module in self._named_modules():
            own = "shared." if prefix == "shared" else ""
            names = (name for name, _ in module.named_parameters() if f"{prefix}.{name}" in trained)
            if prefix in self.attached.saved:
                found |= {f"{prefix}.{name}": Pace(rate=beside) for name in names}
            else:
                found |= {f"{prefix}.{name}": self.method.pace(own + name) for name in names}
        for index, member in enumerate(self.members):
            factor = member.method.learning_rate / self.method.learning_rate
            for name, pace in member.paces().items():
                found[f"{index}.{name}"] = replace(pace, rate=pace.rate * factor)
        return found

    def parameters(self) -> list[nn.Parameter]:
        """Trained tensors, each once, in a fixed order."""
        return list(self.named_parameters().values())

    def parameter_groups(
        self, learning_rate: float | None = None, weight_decay: float = 0.0, *, loraplus_lr_ratio: float = 1.0
    ) -> list[dict[str, Any]]:
        """Groups for any torch optimizer: each tensor with its method's pace, at the method's own rate by default.

        Raises `SettingsError` when `loraplus_lr_ratio` has no effect.
        """
        rate = self.method.learning_rate if learning_rate is None else learning_rate
        own, paces = self.named_parameters(), self.paces()
        return parameter_groups(own, paces.__getitem__, rate, weight_decay, loraplus_lr_ratio)

    @property
    def trainable_parameters(self) -> int:
        """Number of trained values, heads included."""
        return sum(parameter.numel() for parameter in self.parameters())

    def trainable(self, on: bool) -> None:
        """Whether the adapter's tensors take gradients; independent of whether it acts."""
        for parameter in self.parameters():
            parameter.requires_grad_(on)

    def train_mode(self, on: bool) -> None:
        """Dropout of the adapter on or off, whatever the base does."""
        for module in self.modules():
            module.train(on)

    def checkpoint(self) -> None:
        """Recompute the activations of each block in backward instead of keeping them: less memory, more time."""
        checkpoint_blocks(self.model, self.roster, self.name)

    def compile(self, backend: str = "inductor") -> None:
        """Runs each block as one graph of `torch.compile` in training; raises `SettingsError` where that cannot be."""
        compile_blocks(self.model, self.roster, self.name, backend)

    def penalty(self) -> Tensor | None:
        """The method's own term of the loss, when it has one."""
        terms = [self.method.penalty(self.attached.placed), *(member.penalty() for member in self.members)]
        given = [term for term in terms if term is not None]
        return torch.stack(given).sum() if given else None

    def expect_steps(self, total: int) -> None:
        """Says how many optimizer steps there will be, for methods with phases."""
        self.attached.total_steps = total
        for member in self.members:
            member.expect_steps(total)

    @property
    def ready(self) -> bool:
        """Whether the adapter, as trained so far, is one to keep."""
        attached = self.attached
        own = attached.method.ready(Progress(attached.steps, attached.total_steps))
        return own and all(member.ready for member in self.members)

    # -- state

    def state_dict(self) -> dict[str, Tensor]:
        """Everything that resuming a training needs, by name."""
        found = {**self._own_state(), "steps": torch.tensor(self.attached.steps)}
        for index, member in enumerate(self.members):
            found |= {f"{index}.{name}": tensor for name, tensor in member.state_dict().items()}
        return found

    def load_state_dict(self, tensors: Mapping[str, Tensor]) -> None:
        """Takes back what `state_dict` gave; raises `AdapterError` for missing, extra or misshapen tensors."""
        rest = dict(tensors)
        for index, member in enumerate(self.members):
            prefix = f"{index}."
            own = {name.removeprefix(prefix): rest.pop(name) for name in list(rest) if name.startswith(prefix)}
            member.load_state_dict(own)
        self.attached.steps = int(rest.pop("steps"))
        for path, module in self.attached.placed.sites.items():
            module.sized(inside(path, rest))
        copy_strictly(rest, self._own_state())
        for module in self.attached.placed.modules():
            module.restored()

    def export(
        self, *, base_model: str | None = None, task_type: Any = None, facts: Mapping[str, Any] | None = None
    ) -> AdapterFile:
        """The adapter as it is saved: folded, without what only training needs.

        Raises `AdapterError` while it is merged: the base is not the one then that the file would be for.
        """
        if self.merged:
            raise AdapterError(f"adapter {self.name!r} is merged into the base and not saved", hint="unmerge it first")
        attached = self.attached
        return AdapterFile(
            name=self.name,
            method=attached.method,
            base_model=base_model or getattr(getattr(self.model, "config", None), "_name_or_path", None) or None,
            tensors=folded_tensors(self.attached.placed, self.attached.saved),
            sites=attached.sites,
            saved=tuple(attached.saved),
            saved_modules=whole_modules(self.model, attached.saved),
            fingerprint=fingerprint(self.model, self.roster.frozen, skip=replaced_heads(attached)),
            task_type=task_type,
            facts=facts or {},
            parts=self._parts(base_model),
        )

    def _parts(self, base_model: str | None) -> list[AdapterFile]:
        """The files of its parts; a member's base is checked with the whole, whose heads are not the base's."""
        members = set(self.attached.members)
        files = [Handle(self.model, part).export(base_model=base_model) for part in self.attached.parts]
        return [replace(file, fingerprint="") if file.name in members else file for file in files]

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Takes the tensors of a file; raises `AdapterError` for missing, extra or misshapen ones."""
        attached = self.attached
        for path, module in attached.placed.sites.items():
            folded = module.opened(inside(path, tensors))
            if folded is not module:  # what a file holds can serve, not train
                _replug(self.model, self.roster, attached, path, folded)
        shared = attached.placed.shared
        if shared is not None and shared.folded() is not shared:
            attached.placed = Placed(attached.placed.sites, shared.folded())
        copy_strictly(tensors, folded_tensors(self.attached.placed, self.attached.saved))

    # -- merging

    @property
    def merged(self) -> bool:
        """Whether the adapter is folded into the base's weights."""
        return self.name in self.roster.merged

    def merge(self) -> None:
        """Folds the adapter into the base's weights; the originals are kept."""
        merging.merge(self.model, self.roster, self.attached)

    def unmerge(self) -> None:
        """Puts the originals back, to the bit."""
        merging.unmerge(self.roster, self.attached)

    def merge_and_unload(self) -> nn.Module:
        """The model with the adapter folded in for good and taken out."""
        if not self.merged:
            self.merge()
        del self.roster.merged[self.name]
        self.detach()
        return self.model

    def detach(self) -> None:
        """Takes the adapter out; after the last one the base is as it was found."""
        if self.merged:
            raise AdapterError(
                f"adapter {self.name!r} is merged", hint="unmerge() first, or keep it for good with merge_and_unload()"
            )
        roster, attached = self.roster, self.attached
        readers = [each.name for each in roster.adapters.values() if self.name in each.parts]
        if readers:
            raise AdapterError(f"adapter {readers[0]!r} works on {self.name!r}", hint=f"detach {readers[0]!r} first")
        for name in (*attached.members, self.name):
            roster.active = without(roster.active, name)
            for module in list(self.model.modules()):
                release(module, name)
            steps.forget(roster.adapters.pop(name))
        if not roster.adapters:
            for path, parameter in self.model.named_parameters():
                parameter.requires_grad_(roster.frozen.get(path, True))
            for undo in roster.undo:
                undo()
            del vars(self.model)["deltatune_roster"]

    # -- naming

    def _named_modules(self) -> Iterator[tuple[str, nn.Module]]:
        attached = self.attached
        if attached.placed.shared is not None:
            yield "shared", attached.placed.shared
        yield from attached.placed.sites.items()
        yield from attached.saved.items()

    def _own_state(self) -> dict[str, Tensor]:
        """State by name, each tensor once, without the adapters it consists of."""
        found: dict[str, Tensor] = {}
        seen: set[int] = set()
        for prefix, module in self._named_modules():
            for name, tensor in module.state_dict(keep_vars=True).items():
                if id(tensor) not in seen:
                    seen.add(id(tensor))
                    found[f"{prefix}.{name}"] = tensor.detach()
        return found


def _replug(model: nn.Module, roster: Roster, attached: Attached, path: str, folded: SiteAdapter) -> None:
    """Puts the folded module of a site in place of the one that was built for training."""
    site = next(site for site in attached.sites if site.path == path)
    sites = dict(attached.placed.sites)
    sites[path] = folded
    attached.placed = Placed(sites, attached.placed.shared)
    plug(model, roster, site, attached.name, folded)
