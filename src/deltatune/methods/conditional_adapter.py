"""Conditional adapter: one adapter for many tasks, told by an input which task a row belongs to.

    film       u = f(W_down h + b_down)        h' = h + W_up ((1 + G z) * u + B z) + b_up
    hypernet   h' = h + norm(W_up f(W_down h + b_down) + b_up)
               W, b and the norm's gain and bias are linear in I = norm(MLP([z; layer; place])), one set per stack

z is a row of a learned table (a task id per row of the batch) or a vector given with each row.

Shapes   z [C]   W_down [M, D]   W_up [D, M]   G, B [M, C]
Trains   film: 2 M D + M + D + 2 M C per place, and the table; hypernet: the generators, whatever the number of places
Start    film: W_up = 0, G = B = 0; hypernet: gain and bias of the norm zero: the output is the base's, exactly
Merge    no; for one task it becomes a plain adapter with equal outputs (`materialize`)
Note     without a condition a row is of the average task (the mean of the table), or of the zero vector
Paper    FiLM: Perez et al. 2017, arXiv:1709.07871, in adapters: Pilault et al. 2020, arXiv:2009.09139;
         hypernet: HyperFormer++, Karimi Mahabadi et al. 2021, arXiv:2106.04489
"""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from deltatune.core.bottleneck import BottleneckMethod, ResidualAdapter, kaiming
from deltatune.core.errors import AdapterError, SettingsError
from deltatune.core.method import Can, Pace
from deltatune.core.site import Shared, Stream, SublayerSite

HIDDEN = 128
"""Width of the hypernetwork's MLP, as in the paper."""


class ConditionalAdapter(BottleneckMethod):
    """Settings of a conditional adapter."""

    type: ClassVar[str] = "conditional-adapter"
    title: ClassVar[str] = "Conditional adapter"
    paper: ClassVar[str] = "Karimi Mahabadi et al. 2021, arXiv:2106.04489"
    can: ClassVar[Can] = Can()
    learning_rate: ClassVar[float] = 1e-3

    placement: Literal["houlsby", "pfeiffer", "parallel"] = "houlsby"
    reduction_factor: Annotated[float, Field(gt=0)] = 32
    generator: Literal["film", "hypernet"] = "film"
    """How z acts: on the bottleneck, or by making all weights."""
    tasks: Annotated[int, Field(ge=1, le=100_000)] = 8
    """Rows of the table of tasks; a run with `data.task_column` has as many as the data, unless it is given."""
    condition_size: Annotated[int, Field(ge=1)] | None = None
    """Width of the vectors given with the rows; they take the place of the table."""
    task_embedding_size: Annotated[int, Field(ge=1)] = 64
    """Width of the table, and of I."""

    @property
    def width(self) -> int:
        """C."""
        return self.condition_size or self.task_embedding_size

    def share(self, sites: Sequence[Any], rng: torch.Generator) -> "Conditions":
        """The table of tasks, and the hypernetworks of the stacks."""
        places = [site for site in sites if isinstance(site, SublayerSite)]
        stacks = dict.fromkeys(site.stack for site in places) if self.generator == "hypernet" else {}
        networks = {stack: Hypernetwork(self, [s for s in places if s.stack == stack], rng) for stack in stacks}
        return Conditions(self, networks, rng)

    def build_sublayer(
        self, site: SublayerSite, shared: "Conditions", rng: torch.Generator
    ) -> "FilmAdapter | GeneratedAdapter":
        """The adapter of one sublayer."""
        if self.generator == "hypernet":
            return GeneratedAdapter(self, site, shared)
        return FilmAdapter(self, site, shared, rng)

    def count_sublayers(self, sites: Sequence[SublayerSite]) -> int:
        """The closed forms of the two generators, and the table."""
        table = 0 if self.condition_size else self.tasks * self.task_embedding_size
        if self.generator == "film":
            return table + sum(
                2 * self.size(s) * s.width + self.size(s) + s.width + 2 * self.size(s) * self.width for s in sites
            )
        stacks: dict[str, list[SublayerSite]] = {}
        for site in sites:
            stacks.setdefault(site.stack, []).append(site)
        return table + sum(self._count_hypernetwork(places) for places in stacks.values())

    def pace(self, name: str) -> Pace:
        """A hypernetwork moves slowly: each of its values changes the weights of all places."""
        return Pace(rate=0.1 if name.startswith("shared.networks.") else 1.0)

    def _count_hypernetwork(self, sites: Sequence[SublayerSite]) -> int:
        t, d, m = self.task_embedding_size, sites[0].width, self.size(sites[0])
        made = 2 * d * m + m + 3 * d  # both matrices and their biases, gain and bias of the norm
        tables = (len({site.block for site in sites}) + len({site.role for site in sites})) * t
        return (t + 1) * made + (self.width + 2 * t + 1) * HIDDEN + (HIDDEN + 1) * t + 2 * t + tables

    def for_tasks(self, number: int) -> "ConditionalAdapter":
        """A table of as many rows, unless the settings give another number that is enough."""
        if "tasks" not in self.model_fields_set:
            return self.model_copy(update={"tasks": number})
        if self.tasks < number:
            raise SettingsError(f"method.tasks={self.tasks} is too few for the {number} tasks of the rows")
        return self

    def check_condition(self, condition: Tensor) -> None:
        """Raises `AdapterError` for ids outside the table and vectors of another width."""
        if self.condition_size is not None:
            if condition.dim() != 2 or condition.shape[1] != self.condition_size:
                raise AdapterError(
                    f"this conditional adapter takes a vector of {self.condition_size} values per row, "
                    f"not a condition of shape {list(condition.shape)}"
                )
        elif condition.dim() != 1 or condition.is_floating_point() or not bool((condition >= 0).all()):
            raise AdapterError("this conditional adapter takes one task id (an integer from 0) per row")
        elif condition.numel() and int(condition.max()) >= self.tasks:
            raise AdapterError(
                f"task id {int(condition.max())} is outside the table of {self.tasks} tasks",
                hint="set method.tasks to the number of tasks",
            )

    def materialized(self) -> Mapping[str, Any]:
        """Settings of the plain adapter for one task."""
        own = set(BottleneckMethod.model_fields)
        plain = {key: value for key, value in self.model_dump().items() if key in own}
        return {"type": "adapter", **plain, "ln_after": self.generator == "hypernet"}


class Conditions(Shared):
    """z of every row."""

    def __init__(
        self, method: ConditionalAdapter, networks: Mapping[str, "Hypernetwork"], rng: torch.Generator
    ) -> None:
        super().__init__()
        table = torch.empty(method.tasks, method.task_embedding_size).normal_(generator=rng)
        self.table = None if method.condition_size else nn.Parameter(table)
        self.networks = nn.ModuleDict(networks)
        self.register_buffer("nothing", torch.zeros(1, method.width), persistent=False)

    def forward(self, condition: Tensor | None) -> Tensor:
        """[B, C] for ids [B] or vectors [B, C]; [1, C] without a condition."""
        if self.table is None:
            return self.get_buffer("nothing") if condition is None else condition
        return self.table.mean(0, keepdim=True) if condition is None else self.table[condition]


class FilmAdapter(ResidualAdapter):
    """A bottleneck whose inner values are scaled and shifted by the task."""

    def __init__(
        self, method: ConditionalAdapter, site: SublayerSite, shared: Conditions, rng: torch.Generator
    ) -> None:
        super().__init__(method)
        size = method.size(site)
        self.shared = shared
        self.down_weight, self.down_bias = kaiming(size, site.width, rng=rng), nn.Parameter(torch.zeros(size))
        self.up_weight = nn.Parameter(torch.zeros(site.width, size))
        self.up_bias = nn.Parameter(torch.zeros(site.width))
        self.gain = nn.Parameter(torch.zeros(size, method.width))
        self.shift = nn.Parameter(torch.zeros(size, method.width))

    def change(self, x: Tensor, stream: Stream) -> Tensor:
        """W_up ((1 + G z) * f(W_down x + b_down) + B z) + b_up."""
        z_BC = self.shared(stream.condition).to(x.dtype)
        x_BTD = rows_first(x, stream.batch_dim)
        u = self.activation(F.linear(x_BTD, self.down_weight.to(x.dtype), self.down_bias.to(x.dtype)))
        gain, shift = (F.linear(z_BC, w.to(x.dtype)).unsqueeze(1) for w in (self.gain, self.shift))
        y = F.linear(u + gain * u + shift, self.up_weight.to(x.dtype), self.up_bias.to(x.dtype))
        return rows_back(y, x, stream.batch_dim)

    def materialized(self, condition: Tensor) -> dict[str, Tensor]:
        """W_up diag(1 + G z), and W_up B z in the bias."""
        z_C = self.shared(condition.unsqueeze(0))[0]
        return {
            "down_weight": self.down_weight,
            "down_bias": self.down_bias,
            "up_weight": self.up_weight * (1 + self.gain @ z_C),
            "up_bias": self.up_bias + self.up_weight @ (self.shift @ z_C),
        }


class Hypernetwork(nn.Module):
    """The weights of all adapters of one stack from task, layer and place."""

    def __init__(self, method: ConditionalAdapter, sites: Sequence[SublayerSite], rng: torch.Generator) -> None:
        super().__init__()
        t, d, m = method.task_embedding_size, sites[0].width, method.size(sites[0])
        self.blocks = {block: index for index, block in enumerate(dict.fromkeys(site.block for site in sites))}
        self.roles: dict[str, int] = {
            role: index for index, role in enumerate(dict.fromkeys(site.role for site in sites))
        }
        self.layer = nn.Parameter(torch.empty(len(self.blocks), t).normal_(generator=rng))
        self.place = nn.Parameter(torch.empty(len(self.roles), t).normal_(generator=rng))
        self.hidden = _linear(method.width + 2 * t, HIDDEN, rng)
        self.joint = _linear(HIDDEN, t, rng)
        self.norm = nn.LayerNorm(t)
        shapes = {"down_weight": (m, d), "down_bias": (m,), "up_weight": (d, m), "up_bias": (d,)}
        self.shapes: dict[str, tuple[int, ...]] = {**shapes, "norm.weight": (d,), "norm.bias": (d,)}
        self.made = nn.ModuleList(_generator(t, shape, rng, zero="norm" in n) for n, shape in self.shapes.items())

    def forward(self, z_BC: Tensor, block: int, role: str) -> dict[str, Tensor]:
        """The tensors of one place for each row, [B, ...]."""
        rows = z_BC.shape[0]
        place = torch.cat([self.layer[self.blocks[block]], self.place[self.roles[role]]]).expand(rows, -1)
        joint = self.norm(self.joint(F.relu(self.hidden(torch.cat([z_BC, place], -1)))))
        found = zip(self.shapes.items(), self.made, strict=True)
        return {name: made(joint).view(rows, *shape) for (name, shape), made in found}


class GeneratedAdapter(ResidualAdapter):
    """A bottleneck without weights of its own."""

    def __init__(self, method: ConditionalAdapter, site: SublayerSite, shared: Conditions) -> None:
        super().__init__(method)
        self.shared, self.stack, self.block, self.role = shared, site.stack, site.block, site.role

    def change(self, x: Tensor, stream: Stream) -> Tensor:
        """norm(W_up f(W_down x + b_down) + b_up), with weights for each row."""
        w = self._weights(stream.condition, x.dtype)
        x_BTD = rows_first(x, stream.batch_dim)
        u = self.activation(x_BTD @ w["down_weight"].mT + w["down_bias"].unsqueeze(1))
        y = F.layer_norm(u @ w["up_weight"].mT + w["up_bias"].unsqueeze(1), x.shape[-1:])
        return rows_back(y * w["norm.weight"].unsqueeze(1) + w["norm.bias"].unsqueeze(1), x, stream.batch_dim)

    def materialized(self, condition: Tensor) -> dict[str, Tensor]:
        """What the hypernetwork makes for this condition."""
        made = self._weights(condition.unsqueeze(0), torch.float32)
        return {name: tensor[0] for name, tensor in made.items()}

    def _weights(self, condition: Tensor | None, dtype: torch.dtype) -> dict[str, Tensor]:
        z_BC = self.shared(condition)
        made = self.shared.networks[self.stack](z_BC, self.block, self.role)
        return {name: tensor.to(dtype) for name, tensor in made.items()}


def rows_first(x: Tensor, batch_dim: int) -> Tensor:
    """[B, T, D], whatever stands between the rows and the width."""
    x = x.movedim(batch_dim, 0)
    return x.reshape(x.shape[0], -1, x.shape[-1])


def rows_back(y_BTD: Tensor, x: Tensor, batch_dim: int) -> Tensor:
    """The inverse of `rows_first`, in the shape of x."""
    return y_BTD.reshape(x.movedim(batch_dim, 0).shape).movedim(0, batch_dim)


def _linear(inputs: int, outputs: int, rng: torch.Generator) -> nn.Linear:
    """A map with normal values of spread 0.01 and no bias at the start, as in the paper."""
    layer = nn.Linear(inputs, outputs)
    nn.init.normal_(layer.weight, std=1e-2, generator=rng)
    nn.init.zeros_(layer.bias)
    return layer


def _generator(inputs: int, shape: tuple[int, ...], rng: torch.Generator, zero: bool) -> nn.Linear:
    """A linear map to a tensor of this shape; the norm's start at zero, so that the adapter changes nothing."""
    layer = _linear(inputs, torch.Size(shape).numel(), rng)
    if zero:
        nn.init.zeros_(layer.weight)
    return layer
