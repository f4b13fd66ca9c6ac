"""Longest batch: forward and backward over the first batch of the training, which holds its longest row."""

import math
import time

import psutil
import torch

from deltatune.rehearsal.line import Line, failed, passed, warned
from deltatune.rehearsal.practice import practising
from deltatune.rehearsal.stage import Stage
from deltatune.train.memory import forget_peak, peak_memory_bytes
from deltatune.train.plan import Plan, Position

WARM_S = 2.0
"""Seconds of a pass, from which on what only the first one does is no part to speak of."""
NEARLY_FULL = 0.9
"""Share of the memory, above which another process may be the last straw."""


def longest_line(stage: Stage) -> Line:
    """Seconds and peak memory; tensors that get no gradient."""
    training, examples = stage.running.settings.training, stage.running.examples["train"]
    rows = next(Plan.of(examples, training).steps(Position()))[0]
    length = max(int(examples[row]["length"]) for row in rows)
    forget_peak()
    with practising(stage, 1) as practice:
        loss, norm = 0.0, 0.0
        for _ in range(2):  # the first pass warms up
            began = time.perf_counter()
            loss, norm = practice.pass_over(rows)
            seconds = time.perf_counter() - began
            if seconds > WARM_S:
                break
        without = practice.without
    stage.pace_s = seconds / (len(rows) * length)
    peak, room = peak_memory_bytes(), _memory()
    memory = f"{peak / 1e9:.2f} of {room / 1e9:.1f} GB"
    seen = f"{len(rows)} rows of up to {length:,} took {seconds:.1f} s, peak memory {memory}"
    details = {"rows": len(rows), "length": length, "seconds": seconds, "peak_memory_bytes": peak, "memory_bytes": room}
    if not math.isfinite(loss + norm):
        fix = "load the base in float32 (training.bf16: false), or look for numbers that are not finite in the data"
        return failed("longest batch", f"{seen}; loss {loss:g} with gradient norm {norm:g}", fix, **details)
    if norm == 0 or len(without) == len(stage.adapter.parameters()):
        fix = (
            "the adapter acts nowhere on the way to the loss: look at method.target_modules and deltatune inspect MODEL"
        )
        return failed("longest batch", f"{seen}; no gradient reaches the adapter", fix, **details)
    if without:
        fix = "these tensors will not train: look at method.target_modules"
        return warned("longest batch", f"{seen}; no gradient for {', '.join(without[:3])}", fix, **details)
    if peak > NEARLY_FULL * room:
        fix = "lower training.per_device_train_batch_size, or set training.gradient_checkpointing: true"
        return warned("longest batch", seen, fix, **details)
    return passed("longest batch", seen, **details)


def _memory() -> int:
    """Bytes of the device."""
    if torch.cuda.is_available():
        return int(torch.cuda.get_device_properties(0).total_memory)
    return int(psutil.virtual_memory().total)
