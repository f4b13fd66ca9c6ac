"""The training loop, from top to bottom.

    for every optimizer step:
        for every micro-batch:  loss = task.loss(model(batch)) * rows / rows of the step;  backward
        add the gradient of the method's penalty
        stop before the weights if loss or gradient is not finite
        clip, step, schedule
        now and then: log, evaluate, keep the best adapter, write a checkpoint, stop early
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from deltatune.core.config import TrainingSettings
from deltatune.core.errors import DeltatuneError
from deltatune.core.task import Batch, Example, Task
from deltatune.data.batch import Batches
from deltatune.engine.attach import Handle
from deltatune.store.run import RunFolder
from deltatune.train import checkpoint
from deltatune.train.memory import peak_memory_bytes
from deltatune.train.optimizer import make_optimizer, make_schedule
from deltatune.train.progress import Progress
from deltatune.train.signals import Signals
from deltatune.train.stopping import Best


@dataclass(frozen=True, slots=True)
class Trained:
    """What a training amounted to."""

    steps: int
    seconds: float
    tokens: int
    """Real tokens, without padding."""
    peak_memory_bytes: int
    best_step: int
    best_metric: float
    stopped: str
    """`done`, or why it ended earlier."""
    learning_rate: float
    """Peak rate that was used."""


@dataclass(slots=True)
class State:
    """Where the training stands; with the tensors of `checkpoint` all that a resume needs."""

    step: int = 0
    epoch: int = 0
    batch: int = 0
    """Micro-batches done in this epoch."""
    tokens: int = 0
    seconds: float = 0.0


@dataclass(frozen=True)
class Job:
    """Everything a training works on."""

    handle: Handle
    task: Task
    processor: Any
    examples: Sequence[Example]
    settings: TrainingSettings
    evaluate: Callable[[], dict[str, Any]]
    """Metrics on the validation rows."""
    save_best: Callable[[], None]
    """Writes the adapter of the best evaluation so far."""
    folder: RunFolder
    quiet: bool = False


def train(job: Job, *, resume: bool = False) -> Trained:
    """Trains an attached adapter; the best one by the validation metric is in the handle at the end.

    Raises `Stopped` after Ctrl-C or SIGTERM, with the state saved, and `DeltatuneError` for a loss that is not finite.
    """
    settings, handle = job.settings, job.handle
    accelerator = Accelerator(cpu=not torch.cuda.is_available())
    rows = settings.per_device_train_batch_size * accelerator.num_processes
    batches = Batches([example["length"] for example in job.examples], rows, settings.seed)
    total = _total_steps(batches, settings)
    rate = settings.learning_rate or handle.method.learning_rate
    handle.expect_steps(total)
    optimizer = make_optimizer(handle.named_parameters(), rate, settings.weight_decay)
    schedule = make_schedule(optimizer, settings, total)
    network = _prepared(accelerator, handle, settings)
    state, best = State(), Best.of(settings, job.task)
    saved = checkpoint.Saved(handle, optimizer, schedule, state, best)
    if resume:
        checkpoint.restore(job.folder, saved)
    window = Window(accelerator.device)
    with Signals() as signals, Progress(total, state.step, quiet=job.quiet) as progress:
        for micro in _steps(batches, state, settings, total):
            started = time.perf_counter()
            tensors = [_batch(job, accelerator, indices) for indices in micro]
            loss = _accumulate(job, accelerator, network, tensors)
            norm = _clip(handle, settings.max_grad_norm)
            _check_finite(loss, norm, state.step + 1, micro)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad(set_to_none=True)
            state.step += 1
            state.tokens += sum(job.examples[i]["length"] for indices in micro for i in indices)
            state.seconds += time.perf_counter() - started
            window.add(loss, norm)
            last = state.step == total
            if state.step % settings.logging_steps == 0 or last:
                line = window.line(state, schedule.get_last_lr()[0])
                job.folder.log(line)
                progress.log(state.step, line, state)
            if _evaluates(state, batches, settings) or last:
                metrics = job.evaluate()
                _mode(handle, settings)
                job.folder.log({"step": state.step, "validation": metrics})
                if best.better(metrics, state.step):
                    best.keep(handle)
                    job.save_best()
                progress.evaluated(metrics, best)
                checkpoint.write(job.folder, saved, settings.save_total_limit)
            if signals.received:
                checkpoint.write(job.folder, saved, settings.save_total_limit)
                signals.stop(job.folder.path)
            if best.patience_over:
                break
    best.restore(handle)
    return Trained(state.step, state.seconds, state.tokens, peak_memory_bytes(), best.step, best.value,
                   "no better metric for a while" if best.patience_over and state.step < total else "done", rate)


def _prepared(accelerator: Accelerator, handle: Handle, settings: TrainingSettings) -> nn.Module:
    """The network on its device, wrapped for several processes when there are several."""
    handle.model.to(accelerator.device)
    if settings.gradient_checkpointing:
        handle.checkpoint()
    _mode(handle, settings)
    network: nn.Module = accelerator.prepare(handle.model) if accelerator.num_processes > 1 else handle.model
    return network


def _mode(handle: Handle, settings: TrainingSettings) -> None:
    """The frozen base without its dropout, unless asked for; the adapter with its own."""
    handle.model.train(settings.base_dropout)
    handle.train_mode(True)


def _total_steps(batches: Batches, settings: TrainingSettings) -> int:
    """Optimizer steps in all; the last step of an epoch may have fewer micro-batches."""
    per_epoch = math.ceil(len(batches) / settings.gradient_accumulation_steps)
    total = max(1, math.ceil(per_epoch * settings.num_train_epochs))
    return min(total, settings.max_steps) if settings.max_steps else total


def _steps(batches: Batches, state: State, settings: TrainingSettings, total: int) -> Iterator[list[list[int]]]:
    """The micro-batches of every optimizer step from the state on; the state's position moves along."""
    size = settings.gradient_accumulation_steps
    while state.step < total:
        micro: list[list[int]] = []
        for indices in batches.epoch(state.epoch, state.batch):
            micro.append(indices)
            if len(micro) == size or state.batch + len(micro) == len(batches):
                state.batch += len(micro)
                step, micro = micro, []
                if state.batch == len(batches):
                    state.epoch, state.batch = state.epoch + 1, 0
                yield step
                if state.step >= total or state.batch == 0:
                    break


def _batch(job: Job, accelerator: Accelerator, indices: Sequence[int]) -> Batch:
    """This process's share of a batch, on its device."""
    share = indices[accelerator.process_index :: accelerator.num_processes] or indices[:1]
    batch = job.task.collate([job.examples[i] for i in share], job.processor)
    return {name: tensor.to(accelerator.device) for name, tensor in batch.items()}


def _accumulate(job: Job, accelerator: Accelerator, network: nn.Module, batches: Sequence[Batch]) -> Tensor:
    """Backward through every micro-batch; the loss is the mean over all supervised units of the step."""
    units = _all(accelerator, sum(job.task.weight(batch) for batch in batches))
    total = torch.zeros((), device=accelerator.device)
    for batch in batches:
        given = {name: tensor for name, tensor in batch.items() if name != "labels"}
        loss = job.task.loss(network(**given), batch) * (job.task.weight(batch) / units)
        accelerator.backward(loss * accelerator.num_processes)  # processes average their gradients
        total += loss.detach()
    total = torch.as_tensor(_all(accelerator, total))
    penalty = job.handle.penalty()
    if penalty is not None:
        accelerator.backward(penalty)
        total += penalty.detach()
    return total


def _all(accelerator: Accelerator, value: Any) -> Any:
    """The sum over all processes."""
    if accelerator.num_processes == 1:
        return value
    return accelerator.reduce(torch.as_tensor(value, device=accelerator.device), reduction="sum")


def _clip(handle: Handle, limit: float | None) -> Tensor:
    """Scales the gradients down to the limit; returns their norm before."""
    return torch.nn.utils.clip_grad_norm_(handle.parameters(), limit if limit is not None else math.inf)


def _check_finite(loss: Tensor, norm: Tensor, step: int, micro: Sequence[Sequence[int]]) -> None:
    """Raises before the weights change; the gradients of a bad step are never applied."""
    if bool(torch.isfinite(loss + norm)):
        return
    rows = [index for indices in micro for index in indices]
    raise DeltatuneError(
        f"step {step}: loss {float(loss):g}, gradient norm {float(norm):g}; training rows {rows[:8]}"
        + (" ..." if len(rows) > 8 else ""),
        hint="lower training.learning_rate, or look at these rows; the weights are those of the step before",
    )


def _evaluates(state: State, batches: Batches, settings: TrainingSettings) -> bool:
    if settings.eval_steps:
        return state.step % settings.eval_steps == 0
    return state.batch == 0


class Window:
    """Loss and gradient norm since the last line of the log, summed on the device."""

    def __init__(self, device: torch.device) -> None:
        self.sums = torch.zeros(2, device=device)
        self.steps = 0

    def add(self, loss: Tensor, norm: Tensor) -> None:
        """One step."""
        self.sums += torch.stack([loss, norm.to(loss.dtype)])
        self.steps += 1

    def line(self, state: State, rate: float) -> dict[str, Any]:
        """Means since the last line, and a fresh start."""
        loss, norm = (self.sums / max(1, self.steps)).tolist()
        self.sums.zero_()
        self.steps = 0
        return {"step": state.step, "loss": loss, "gradient_norm": norm, "learning_rate": rate,
                "tokens": state.tokens, "seconds": round(state.seconds, 3)}
