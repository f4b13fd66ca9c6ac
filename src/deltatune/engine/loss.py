"""The penalty of a method inside the loss that a model computes itself, so that any trainer trains with it."""

from collections.abc import Callable
from typing import Any

from torch import nn

from deltatune.engine.compose import names
from deltatune.engine.sockets import Socket


class LossSocket(Socket):
    """Adds the penalties of the active adapters to `output.loss`, while training."""

    def run(self, module: nn.Module, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """The model's output with the full loss; models called without labels have none and are left alone."""
        output = call(*args, **kwargs)
        loss = output.get("loss") if isinstance(output, dict) else None
        if loss is None or not module.training:
            return output
        here = self.here()
        for name in dict.fromkeys(names(self.roster.active)):
            attached = self.roster.adapters[name]
            penalty = attached.method.penalty(attached.placed) if name in here else None
            if penalty is not None:
                loss = loss + penalty.to(loss.dtype)
        output["loss"] = loss
        return output
