"""Lengths: how long the rows are as the model reads them, and how many of them are cut off."""

import numpy as np

from deltatune.rehearsal.line import Line, judged, passed
from deltatune.rehearsal.stage import Stage

TRUNCATED = (0.05, 0.6)
"""Shares of the training rows that lose something to the limit."""
QUANTILES = {"shortest": 0.0, "median": 0.5, "95 %": 0.95, "longest": 1.0}


def lengths_line(stage: Stage) -> Line:
    """Quantiles of the lengths, and truncated rows."""
    examples = stage.ground.examples["train"]
    lengths = np.array([example["length"] for example in examples])
    found = {name: int(np.quantile(lengths, q)) for name, q in QUANTILES.items()}
    cut = {name: stage.task.truncated(part) for name, part in stage.ground.examples.items()}
    seen = f"of {len(lengths):,} rows: " + ", ".join(f"{name} {value:,}" for name, value in found.items())
    if lengths.min() == lengths.max():
        seen = f"{len(lengths):,} rows of one length, {lengths.max():,}"
    if not cut["train"]:
        return passed("lengths", f"{seen}; none is cut off", lengths=found, truncated=cut)
    share = cut["train"] / len(lengths)
    fix = "raise the length limit of the task (task.max_length or its like), or shorten the texts"
    text = f"{seen}; {cut['train']:,} ({share:.1%}) are cut off"
    return judged("lengths", share, TRUNCATED, text, fix, lengths=found, truncated=cut)
