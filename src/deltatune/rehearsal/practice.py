"""Practice: optimizer steps of the adapter as a training takes them, at rates of one's own, and back to its start."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from accelerate import Accelerator

from deltatune.rehearsal.stage import Stage
from deltatune.train.gradient import accumulate, clip, gradient_norm
from deltatune.train.optimizer import make_optimizer


class Practice:
    """Takes steps; the weights before are put back by `Stage.reset`."""

    def __init__(self, stage: Stage, steps: int) -> None:
        training = stage.running.settings.training
        self.stage, self.job = stage, stage.running.job
        self.accelerator = Accelerator(cpu=not torch.cuda.is_available())
        stage.adapter.expect_steps(steps)
        self.optimizer = make_optimizer(stage.adapter, training, 1.0)
        self.paces = [float(group["lr"]) for group in self.optimizer.param_groups]
        self.limit = training.max_grad_norm
        self.number = 0
        self.without: list[str] = []
        """Trained tensors that the last pass gave no gradient."""

    def pass_over(self, rows: Sequence[int]) -> tuple[float, float]:
        """Forward and backward over training examples; loss, and the norm of the gradient, which stays."""
        (loss,) = accumulate([self.job], self.accelerator, self.stage.model, 0, [list(rows)])
        named = self.stage.adapter.named_parameters()
        self.without = [name for name, parameter in named.items() if parameter.grad is None]
        return float(loss), float(gradient_norm(list(named.values())))

    def step(self, rows: Sequence[int], rate: float) -> float:
        """One step; the loss before it. Where loss or gradient is not finite the weights stay."""
        loss, norm = self.pass_over(rows)
        if math.isfinite(loss + norm):
            clip(self.stage.adapter.parameters(), self.limit, torch.tensor(norm))
            for group, pace in zip(self.optimizer.param_groups, self.paces, strict=True):
                group["lr"] = pace * rate
            self.optimizer.step()
        else:
            loss = math.nan
        self.optimizer.zero_grad(set_to_none=True)
        return loss


@contextmanager
def practising(stage: Stage, steps: int) -> Iterator[Practice]:
    """The network in the mode of a training; afterwards asleep, and the adapter as it was attached."""
    stage.reset()
    stage.model.train(stage.settings.training.base_dropout)
    stage.adapter.train_mode(True)
    try:
        yield Practice(stage, steps)
    finally:
        stage.model.eval()
        stage.reset()
