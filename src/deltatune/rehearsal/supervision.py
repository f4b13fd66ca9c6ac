"""Supervision: whether every row has something that the loss counts."""

from deltatune.rehearsal.line import Line, judged, passed
from deltatune.rehearsal.stage import Stage

LOOKED_AT = 200
"""Training examples."""
NOTHING = (0.0, 0.01)
"""Shares of examples of which the loss counts nothing."""
LARGE = (10_000.0, float("inf"))
"""Trained values per counted unit of the training rows."""


def supervised_line(stage: Stage) -> Line:
    """Counted units (rows, tokens, words, boxes) of examples one by one."""
    examples = stage.running.examples["train"][:LOOKED_AT]
    counts = [stage.task.weight(stage.batch([example])) for example in examples]
    mean, nothing = sum(counts) / len(counts), sum(count == 0 for count in counts)
    seen = f"the loss counts {mean:.1f} answers or tokens a row, {min(counts)} to {max(counts)}"
    if not nothing:
        return passed("supervision", seen, mean=mean, smallest=min(counts))
    text = f"in {nothing} of {len(counts)} rows the loss counts nothing: {seen}"
    fix = "look at what is learned with --show-mask 5; the answers may be cut off or left out by the template"
    return judged("supervision", nothing / len(counts), NOTHING, text, fix, rows=nothing)


def size_line(stage: Stage) -> Line:
    """Trained values against what there is to learn from."""
    examples = stage.running.examples["train"][:LOOKED_AT]
    each = sum(stage.task.weight(stage.batch([example])) for example in examples) / len(examples)
    units = max(1.0, each * len(stage.splits.train))
    trained = stage.adapter.trainable_parameters
    seen = f"{trained:,} trained values for {units:,.0f} counted answers or tokens: {trained / units:,.0f} each"
    fix = "take a smaller rank or size, or a method with fewer values (ia3, bitfit, prompt), or add rows"
    return judged("adapter size", trained / units, LARGE, seen, fix, trained=trained, units=units)
