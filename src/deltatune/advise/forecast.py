"""Forecast: what a training will take, from an adapter on a model without values and the rows it will see."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from deltatune.advise import batches, memory
from deltatune.advise.counting import sized
from deltatune.advise.evidence import constants
from deltatune.advise.machine import Machine, machine
from deltatune.advise.memory import Range, Sizes
from deltatune.advise.passes import Pass, evaluation, step
from deltatune.advise.time import around, seconds_of
from deltatune.core.config import TrainingSettings
from deltatune.core.task import TRUNK, Batch, Example, Task
from deltatune.data.batch import collate
from deltatune.engine.handle import Handle
from deltatune.engine.tensors import folded_tensors
from deltatune.engine.trunk import trunk_of

Parts = Mapping[str, Sequence[Example]]
LEAST = 0.02
"""Share of a step that stays where the trunk is all of the model."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """What a training will take."""

    trained_parameters: int
    adapter_bytes: int
    """Size of the adapter's weights file."""
    peak_memory_bytes: Range
    sizes: Sizes
    """What the memory is made of, before slack and copies."""
    step_seconds: Range
    steps: int
    train_seconds: Range
    """All steps, without evaluations."""
    total_seconds: Range
    """With the evaluations before, between and after."""
    work: "Work"
    machine: Machine
    device: str

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "trained_parameters": self.trained_parameters,
            "adapter_bytes": self.adapter_bytes,
            "peak_memory_bytes": self.peak_memory_bytes.as_json(),
            "parts_bytes": {name: getattr(self.sizes, name) for name in Sizes.__dataclass_fields__},
            "step_seconds": self.step_seconds.as_json(),
            "steps": self.steps,
            "train_seconds": self.train_seconds.as_json(),
            "total_seconds": self.total_seconds.as_json(),
            "work": asdict(self.work),
            "machine": {name: float(f"{rate:.4g}") for name, rate in asdict(self.machine).items()},
            "device": self.device,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """The passes of a training and their batches."""

    step: Pass
    step_share: float
    """Cells of an average batch per cell of the one that was run."""
    evaluation: Pass
    evaluation_share: float
    evaluation_batches: int
    """Batches of one evaluation."""
    cells_ratio: float
    """Cells of the step per cell of the evaluation pass."""

    def deepened(self, less: "Work", blocks: int) -> "Work":
        """The work with so many more blocks; `less` is that with one block less."""
        return replace(
            self,
            step=self.step.scaled(less.step, blocks),
            evaluation=self.evaluation.scaled(less.evaluation, blocks),
        )


def work_of(handle: Handle, task: Task, processor: Any, parts: Parts, settings: TrainingSettings, device: str) -> Work:
    """The largest step and the largest pass over validation rows, run without values."""
    training = batches.of_training(parts["train"], settings)
    scored = batches.of_evaluation(parts["validation"], settings)
    return Work(
        step=step(handle, task, _batch(task, processor, parts["train"], training.rows), device),
        step_share=training.share,
        evaluation=evaluation(handle, task, _batch(task, processor, parts["validation"], scored.rows), device),
        evaluation_share=scored.share,
        evaluation_batches=scored.count,
        cells_ratio=training.cells / scored.cells,
    )


def forecast(
    handle: Handle,
    work: Work,
    settings: TrainingSettings,
    parts: Parts,
    *,
    steps: int,
    process: int,
    stored: int,
    device: str,
    sample: float = 1.0,
) -> Forecast:
    """What the training of this adapter takes; the model may be one without values.

    `process` are the bytes that are there before the model, `stored` those of its checkpoint; `parts` are this
    `sample` of all rows.
    """
    fitted, own = constants(), list(handle.parameters())
    blocks, of = _trunk(handle) if not settings.base_dropout and settings.trunk_cache_gb else (0, 1)
    sizes = Sizes(
        process=process,
        weights=_weights(handle),
        stored=stored,
        adapter=sized(own),
        rows=round(_rows(parts) / sample) if device == "cpu" else 0,
        trunk=_trunk_bytes(handle, parts, settings, sample) if blocks else 0,
        step=work.step.peak_bytes,
        evaluation=work.evaluation.peak_bytes,
    )
    rates = machine(_dtype(handle.model), width_of(handle.model), device)
    scored = seconds_of(work.evaluation, rates, fitted)
    left_out = scored * work.cells_ratio * blocks / of  # the trunk's share of a forward pass
    whole = seconds_of(work.step, rates, fitted)
    each = max(whole - left_out, LEAST * whole) * work.step_share * settings.gradient_accumulation_steps
    once = scored * max(1 - blocks / of, LEAST) * work.evaluation_share * work.evaluation_batches / sample
    evaluations = once * fitted.evaluation * _evaluations(settings, steps)
    rows = sum(map(len, parts.values())) / sample  # of which each passes the trunk once
    below = scored * blocks / of * work.evaluation_share * rows / settings.per_device_eval_batch_size
    return Forecast(
        trained_parameters=handle.trainable_parameters,
        adapter_bytes=file_bytes(folded_tensors(handle.attached.placed, handle.attached.saved)),
        peak_memory_bytes=memory.peak(sizes, device, fitted),
        sizes=sizes,
        step_seconds=around(each, fitted),
        steps=steps,
        train_seconds=around(each * steps, fitted),
        total_seconds=around(each * steps + evaluations + below, fitted),
        work=work,
        machine=rates,
        device=device,
    )


def file_bytes(tensors: Mapping[str, Tensor]) -> int:
    """Size of a safetensors file: eight bytes, a table of names, the values.

    >>> file_bytes({"a": torch.zeros(2, 3)})
    96
    """
    table, place = {}, 0
    for name, tensor in tensors.items():
        end = place + tensor.numel() * tensor.element_size()
        kind = {torch.float32: "F32", torch.int64: "I64", torch.int32: "I32"}.get(tensor.dtype, "BF16")
        table[name] = {"dtype": kind, "shape": list(tensor.shape), "data_offsets": [place, end]}
        place = end
    header = len(json.dumps(table, separators=(",", ":")))
    return 8 + -(-header // 8) * 8 + place


def _batch(task: Task, processor: Any, examples: Sequence[Example], rows: Sequence[int]) -> Batch:
    return {name: t for name, t in collate(task, [examples[row] for row in rows], processor).items() if name != TRUNK}


def _weights(handle: Handle) -> int:
    """Bytes of the base."""
    own = {id(parameter) for parameter in handle.parameters()}
    everything = [*handle.model.parameters(), *handle.model.buffers()]
    return sized(tensor for tensor in everything if id(tensor) not in own)


def _rows(parts: Parts) -> int:
    """Bytes of arrays in the encoded rows; lists of numbers count eight bytes a number."""
    return sum(_bytes(value) for part in parts.values() for example in part for value in example.values())


def _bytes(value: Any) -> int:
    if isinstance(value, list):
        return 8 * len(value)
    size = getattr(value, "nbytes", 0)
    return int(size)


def _trunk(handle: Handle) -> tuple[int, int]:
    """Frozen blocks below, and all blocks."""
    stacks = handle.roster.anatomy.stacks
    return len(trunk_of(handle)), max(1, sum(len(stack.blocks) for stack in stacks))


def _trunk_bytes(handle: Handle, parts: Parts, settings: TrainingSettings, sample: float) -> int:
    lengths = sum(example["length"] for part in parts.values() for example in part)
    size = round(lengths / sample) * width_of(handle.model) * _dtype(handle.model).itemsize
    return size if size <= settings.trunk_cache_gb * 1e9 else 0


def width_of(model: Any) -> int:
    """Width of the hidden states, or of the largest matrix where no config says it."""
    config = getattr(model, "config", None)
    told = getattr(config, "hidden_size", None) or getattr(config, "d_model", None)
    return int(told or max(min(p.shape) for p in model.parameters() if p.ndim == 2))


def _dtype(model: nn.Module) -> torch.dtype:
    return next(parameter.dtype for parameter in model.parameters() if parameter.is_floating_point())


def _evaluations(settings: TrainingSettings, steps: int) -> int:
    """Evaluations of a training: before it, in it, at its end."""
    inside = steps // settings.eval_steps if settings.eval_steps else int(settings.num_train_epochs)
    return 2 + max(1, inside)
