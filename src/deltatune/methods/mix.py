"""Mix: several methods on one model, trained, saved and loaded as one adapter.

    each method sees the model with the methods before it as its base

Mix-and-match adapters are `[prefix, adapter (parallel)]`; UniPELT is `[adapter, lora, prefix]`, each with a gate.

Trains   what its methods train, and its own `modules_to_save`
Start    that of its methods
Merge    no, as one; load its parts alone to merge those that can be
Paper    He et al. 2021, arXiv:2110.04366; UniPELT: Mao et al. 2021, arXiv:2110.07577
"""

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar

import torch
from pydantic import BeforeValidator, Field, PlainSerializer

from deltatune.core import registry
from deltatune.core.errors import SettingsError
from deltatune.core.method import Can, Method, Sites
from deltatune.core.site import Site, SiteAdapter


def _read(value: Any) -> Any:
    return value if isinstance(value, Method) else registry.method(value)


def _written(method: Method) -> dict[str, Any]:
    return {"type": method.type, **method.model_dump(mode="json")}


class Mix(Method):
    """Settings of a mix of methods."""

    type: ClassVar[str] = "mix"
    title: ClassVar[str] = "Mix of methods"
    paper: ClassVar[str] = "He et al. 2021, arXiv:2110.04366"
    can: ClassVar[Can] = Can(identity=None)
    learning_rate: ClassVar[float] = 1e-3

    methods: Annotated[
        tuple[Annotated[Method, BeforeValidator(_read), PlainSerializer(_written)], ...], Field(max_length=16)
    ] = ()
    """The methods with their settings, the one nearest to the base first."""

    def members(self) -> Sequence[Method]:
        """The methods."""
        return self.methods

    def sites(self, model: Sites) -> Sequence[Site]:
        """None of its own; raises `SettingsError` for a mix of nothing."""
        if not self.methods:
            raise SettingsError(
                "mix needs methods",
                hint="give them as a list: method: [{type: lora}, {type: adapter, placement: parallel}]",
            )
        if nested := [method.type for method in self.methods if method.members() or method.reads()]:
            raise SettingsError(f"mix cannot hold {nested[0]}", hint="list the methods themselves")
        return ()

    def build(self, site: Any, origin: Any, shared: Any, rng: torch.Generator) -> SiteAdapter:
        """Never called: a mix has no sites of its own."""
        raise NotImplementedError

    def count(self, sites: Sequence[Any]) -> int:
        """None of its own."""
        return 0

    def for_tasks(self, number: int) -> "Mix":
        """Every method for its tasks."""
        return self.model_copy(update={"methods": tuple(method.for_tasks(number) for method in self.methods)})

    def worded(self, encode: Any, labels: Sequence[str]) -> "Mix":
        """The methods with texts replaced by token ids."""
        return self.model_copy(update={"methods": tuple(method.worded(encode, labels) for method in self.methods)})
