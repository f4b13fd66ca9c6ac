"""Trunk: the frozen blocks below the lowest trained one. A row that comes again need not pass them again.

What leaves the trunk is computed once per row and kept, in the base's dtype; later passes skip the trunk's blocks and
go on from there. It is exact because nothing in the trunk changes: no dropout, no adapter, no trained tensor.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any, Protocol

import torch
import transformers
from torch import Tensor, nn

from deltatune.core.site import InputSite, SideSite
from deltatune.core.task import TRUNK, Batch, inputs_of
from deltatune.engine.anatomy import Anatomy
from deltatune.engine.blocks import Stack, under, walk
from deltatune.engine.compose import names
from deltatune.engine.fingerprint import exact_hash
from deltatune.engine.handle import Handle
from deltatune.engine.roster import Roster
from deltatune.engine.sockets import Socket, release, socket
from deltatune.engine.sublayer import first

MASK = "attention_mask"
CODE = 1
"""Goes up when what leaves a trunk is computed or cut in another way: what older code kept is not used then."""
LABELLING = ("_name_or_path", "id2label", "label2id", "problem_type", "num_labels", "transformers_version")
"""Of a model's config: where it came from and what its head says, which nothing below follows from."""


class Unkept(Exception):
    """Why the trunk of a model cannot be left out."""


class Reached(Exception):
    """Ends a pass that has left the trunk."""


class Passing(Protocol):
    """What happens at a block of the trunk in the running pass."""

    def at(self, block: nn.Module, last: bool, call: Callable[[], Any], hidden: Tensor) -> Any:
        """The block's output."""


class TrunkSocket(Socket):
    """A block of the trunk: as it is, unless a pass records or replays."""

    def __init__(self, roster: Roster, last: bool) -> None:
        super().__init__(roster)
        self.last = last

    def run(self, module: nn.Module, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """The plain call, or what the running pass makes of it."""
        passing: Passing | None = self.roster.frame.get(TRUNK)
        if passing is None:
            return call(*args, **kwargs)
        hidden = args[0] if args else next(iter(kwargs.values()))
        return passing.at(module, self.last, partial(call, *args, **kwargs), hidden)


class Recording:
    """Runs the trunk and stops behind it; the first time the whole model, to see that the blocks run once."""

    def __init__(self, whole: bool) -> None:
        self.whole = whole
        self.rest: dict[nn.Module, tuple[Any, ...] | None] = {}
        """What a block returns beside the hidden states; None where it returns them alone."""
        self.hidden: Tensor | None = None

    def at(self, block: nn.Module, last: bool, call: Callable[[], Any], hidden: Tensor) -> Any:
        """The block's own output; raises `Reached` behind the last one, `Unkept` for blocks that cannot be left out."""
        output = call()
        rest = tuple(output[1:]) if isinstance(output, tuple) else None
        if block in self.rest:
            raise Unkept("its blocks run more than once")
        if any(other is not None for other in rest or ()):
            raise Unkept("its blocks hand on more than hidden states")
        self.rest[block] = rest
        if last:
            self.hidden = first(output)
            if not self.whole:
                raise Reached
        return output


class Replaying:
    """Leaves the trunk's blocks out; behind the last one stands what was kept."""

    def __init__(self, rest: dict[nn.Module, tuple[Any, ...] | None], hidden: Tensor) -> None:
        self.rest, self.hidden = rest, hidden

    def at(self, block: nn.Module, last: bool, call: Callable[[], Any], hidden: Tensor) -> Any:
        """What came in, or behind the last block what was kept, in the form the block has."""
        passed = self.hidden if last else hidden
        rest = self.rest[block]
        return passed if rest is None else (passed, *rest)


class Trunk:
    """The trunk under one adapter or several, and what leaves it for every row kept so far."""

    def __init__(self, handle: Handle, blocks: Sequence[str]) -> None:
        self.model, self.roster = handle.model, handle.roster
        self.blocks = tuple(blocks)
        self.rows: list[Tensor] = []
        self.rest: dict[nn.Module, tuple[Any, ...] | None] = {}
        self.above: set[str] = set()
        """The adapters that change nothing below."""
        self.cover(handle)

    def cover(self, handle: Handle) -> None:
        """The same for one more adapter, whose own trunk ends here too or further up."""
        self.above |= {handle.name, *handle.attached.members}
        for path in self.blocks:
            make = partial(TrunkSocket, self.roster, path == self.blocks[-1])
            socket(self.model.get_submodule(path), TRUNK, make).plug(handle.name, nn.Identity())

    def leave(self) -> None:
        """Takes it out: the blocks run again."""
        for path in self.blocks:
            for name in self.above:
                release(self.model.get_submodule(path), name, TRUNK)
        self.roster.trunk = None

    @property
    def bytes(self) -> int:
        """Size of what is kept."""
        return sum(row.numel() * row.element_size() for row in self.rows)

    @torch.no_grad()
    def run(self, batch: Batch) -> list[Tensor]:
        """What leaves the trunk for the rows of a batch, their real tokens, on the CPU.

        The first time the whole model runs; raises `Unkept` for a model without a trunk.
        """
        recording = Recording(whole=not self.rest)
        with self._passing(recording), suppress(Reached):
            self.model(**inputs_of(batch))
        if recording.hidden is None:
            raise Unkept("its blocks did not run")
        self.rest = recording.rest
        return _unpadded(recording.hidden, batch.get(MASK))

    def add(self, rows: Sequence[Tensor]) -> list[int]:
        """Keeps rows; their numbers. Raises `Unkept` where they differ in more than their number of tokens."""
        start = len(self.rows)
        self.rows += rows
        if any(row.shape[1:] != self.rows[0].shape[1:] for row in rows):
            raise Unkept("its rows differ in width")
        return list(range(start, len(self.rows)))

    def keep(self, batch: Batch) -> list[int]:
        """Runs the trunk for a batch and keeps its rows; their numbers."""
        return self.add(self.run(batch))

    def identity(self) -> str:
        """sha256 (hex) of everything that what leaves the trunk follows from, but for the rows: the frozen weights,
        the network around them, where and by which libraries it runs.
        """
        own = set(self.roster.frozen)
        for name in self.above:
            own -= set(self.roster.adapters[name].saved)  # heads may start at random
        config = getattr(self.model, "config", None)
        facts = {
            "code": CODE,
            "versions": [torch.__version__, transformers.__version__],
            "model": type(self.model).__name__,
            "config": config.to_diff_dict() if config is not None else {},
            "attention": getattr(config, "_attn_implementation", None),
            "blocks": self.blocks,
            "device": next(self.model.parameters()).device.type,
            "processor": torch.backends.cpu.get_cpu_capability(),
            "weights": exact_hash(self.model, own),
        }
        for word in LABELLING:
            facts["config"].pop(word, None)
        return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()

    @contextmanager
    def replaying(self, batch: Batch) -> Iterator[None]:
        """Inside the block the rows of a batch skip the trunk, unless another adapter acts that may change it."""
        if set(names(self.roster.active)) - self.above:
            yield
            return
        rows = [self.rows[number] for number in batch[TRUNK].tolist()]
        hidden = _padded(rows, batch.get(MASK)).to(batch[TRUNK].device)
        with self._passing(Replaying(self.rest, hidden)):
            yield

    @contextmanager
    def running_once(self, batch: Batch, times: int) -> Iterator[None]:
        """Inside the block a batch that holds the rows of `batch` so many times skips the trunk, which runs here."""
        recording = Recording(whole=False)
        with self._passing(recording), suppress(Reached), torch.no_grad():
            self.model(**inputs_of(batch))
        assert recording.hidden is not None, "tried when the first rows were kept"
        hidden = recording.hidden
        with self._passing(Replaying(self.rest, hidden.repeat(times, *(1 for _ in hidden.shape[1:])))):
            yield

    @contextmanager
    def _passing(self, passing: Passing) -> Iterator[None]:
        self.roster.frame[TRUNK] = passing
        try:
            yield
        finally:
            del self.roster.frame[TRUNK]


def trunk_of(handle: Handle) -> tuple[str, ...]:
    """Paths of the blocks below everything an adapter trains; empty when there are none."""
    anatomy = handle.roster.anatomy
    if len(anatomy.stacks) != 1 or handle.roster.batch_dim:
        return ()
    (stack,) = anatomy.stacks
    order = [path for path, _ in walk(handle.model)]
    lowest = len(stack.blocks)
    for path in _trained(handle, anatomy):
        block = anatomy.block_of(path)
        if block is None and not _behind(path, stack, anatomy.heads, order):
            return ()
        lowest = min(lowest, lowest if block is None else block[1])
    return stack.blocks[:lowest]


def _trained(handle: Handle, anatomy: Anatomy) -> Iterator[str]:
    """Paths of everything an adapter changes; the root where it is the whole stack or its input."""
    tied = {site.path: site.tied for site in anatomy.every_parameter}
    for site in handle.attached.sites:
        if isinstance(site, InputSite | SideSite):
            yield ""
        else:
            yield from (site.path, *tied.get(site.path, ()), *tied.get(f"{site.path}.weight", ()))
    for path in handle.attached.saved:
        yield from (path, *tied.get(path, ()))
    for member in handle.members:
        yield from _trained(member, anatomy)


def _behind(path: str, stack: Stack, heads: Sequence[str], order: Sequence[str]) -> bool:
    """Whether something outside the blocks acts on what leaves them: a head, or what is apart and comes later."""
    if any(under(path, head) for head in heads):
        return True
    place = max(index for index, module in enumerate(order) if under(path, module))
    return not under(path, stack.owner) and place > order.index(stack.blocks[-1])


def _unpadded(hidden_BTD: Tensor, mask_BT: Tensor | None) -> list[Tensor]:
    """The real tokens of every row, copied; all of them where there is no mask over the tokens."""
    if mask_BT is None or mask_BT.shape != hidden_BTD.shape[:2]:
        return list(hidden_BTD.cpu().clone().unbind(0))
    return [row[own.bool()].cpu() for row, own in zip(hidden_BTD, mask_BT, strict=True)]


def _padded(rows: Sequence[Tensor], mask_BT: Tensor | None) -> Tensor:
    """Rows as a batch, zero at padding."""
    if mask_BT is None or [len(row) for row in rows] != mask_BT.sum(1).tolist():
        return torch.stack(list(rows))
    hidden = rows[0].new_zeros(*mask_BT.shape, *rows[0].shape[1:])
    hidden[mask_BT.bool().to(hidden.device)] = torch.cat(list(rows))
    return hidden
