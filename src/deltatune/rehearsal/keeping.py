"""Keeping: the trained adapter saved and loaded onto a fresh base, and merged into the base, gives the same answers."""

from collections.abc import Mapping

from torch import Tensor

from deltatune.adapters import load
from deltatune.core.errors import AdapterError
from deltatune.engine.attention_by_shape import choose_attention
from deltatune.engine.precision import base_dtype
from deltatune.rehearsal.equal import difference, output_of
from deltatune.rehearsal.line import Line, failed, left_out, passed, warned
from deltatune.rehearsal.stage import Stage
from deltatune.store import adapter as folders

ROWS = 4
CLOSE = {"float32": 1e-3, "bfloat16": 0.1, "float16": 1e-2}
"""Largest difference of merged answers, as a share of the largest value, by the dtype of the base."""


def saving_line(stage: Stage, moved: Mapping[str, Tensor]) -> Line:
    """Saves the adapter as a run does and loads it onto the model, loaded anew."""
    stage.adapter.load_state_dict(moved)
    batch = stage.batch(stage.running.examples["train"][:ROWS])
    with stage.adapter.roster.activated(stage.adapter.name):
        before = output_of(stage.model, batch)
    stage.running.save()
    stage.reset()
    size = folders.size(stage.running.folder.adapter)
    fresh = stage.task.load(stage.settings.model, base_dtype(stage.settings.training.bf16)).model
    fresh.to(next(stage.model.parameters()).device)
    choose_attention(fresh)
    load(fresh, stage.running.folder.adapter)
    found = difference(before, output_of(fresh, batch))
    seen = f"{size / 1e6:.2f} MB saved; on a fresh base the answers are "
    details = {"bytes": size, "difference": found.absolute}
    if found.absolute == 0:
        return passed("save and load", f"{seen}equal to the bit", **details)
    if found.relative < CLOSE["float32"]:
        return passed("save and load", f"{seen}equal up to {found.absolute:.1e}", **details)
    fix = "please report this as a bug, with the config"
    return failed("save and load", f"{seen}others (difference {found.absolute:.2g})", fix, **details)


def merging_line(stage: Stage, moved: Mapping[str, Tensor]) -> Line:
    """Folds the adapter into the base and takes it out again."""
    if not stage.adapter.method.can.merge:
        return left_out("merge", f"{stage.adapter.method.type} cannot be merged: it is served beside the base")
    stage.adapter.load_state_dict(moved)
    batch = stage.batch(stage.running.examples["train"][:ROWS])
    with stage.adapter.roster.activated(stage.adapter.name):
        before = output_of(stage.model, batch)
    try:
        stage.adapter.merge()
    except AdapterError as error:
        return warned("merge", error.what, error.hint or "serve the adapter beside the base")
    merged = output_of(stage.model, batch)
    stage.adapter.unmerge()
    stage.reset()
    found = difference(before, merged)
    dtype = str(next(stage.model.parameters()).dtype).removeprefix("torch.")
    seen = f"merged answers differ by {found.absolute:.1e} (values up to {found.scale:.2g}, {dtype})"
    if found.relative <= CLOSE.get(dtype, CLOSE["float32"]):
        return passed("merge", seen, difference=found.absolute, relative=found.relative)
    fix = "merge in float32 (training.bf16: false), or serve the adapter beside the base"
    return failed("merge", seen, fix, difference=found.absolute, relative=found.relative)
