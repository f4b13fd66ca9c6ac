"""Window: loss and gradient norm since the last line of the log, summed on the device and read once per line."""

from typing import Any

import torch
from torch import Tensor

from deltatune.train.plan import Position


class Window:
    """Sums over the steps since the last line."""

    def __init__(self, device: torch.device) -> None:
        self.sums = torch.zeros(2, device=device)
        self.steps = 0

    def add(self, loss: Tensor, norm: Tensor) -> None:
        """One step."""
        self.sums += torch.stack([loss, norm.to(loss.dtype)])
        self.steps += 1

    def line(self, position: Position, rate: float) -> dict[str, Any]:
        """Means since the last line, and a fresh start."""
        loss, norm = (self.sums / max(1, self.steps)).tolist()
        self.sums.zero_()
        self.steps = 0
        return {
            "step": position.step,
            "loss": loss,
            "gradient_norm": norm,
            "learning_rate": rate,
            "tokens": position.tokens,
            "seconds": round(position.seconds, 3),
        }

    def state_dict(self) -> dict[str, Any]:
        """The sums: a resumed training writes the same next line."""
        return {"sums": self.sums, "steps": self.steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes back what `state_dict` gave."""
        self.sums.copy_(state["sums"])
        self.steps = state["steps"]
