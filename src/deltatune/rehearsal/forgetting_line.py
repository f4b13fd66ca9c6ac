"""Forgetting: whether what the base knew can be looked at before and after, where the config asks for it."""

from collections.abc import Iterator

from deltatune.evaluate.forgetting import Known
from deltatune.rehearsal.line import Line, passed
from deltatune.rehearsal.stage import Stage


def forgetting_lines(stage: Stage) -> Iterator[Line]:
    """Rows, texts and the old task; raises what a training would raise before its first step."""
    known = Known.of(stage.settings, stage.ground.splits, stage.model)
    if known is None:
        return
    rows = min(known.rows, len(stage.splits.validation))
    seen = f"before and after: what the base makes of {rows:,} validation rows and of {len(known.texts):,} texts"
    if known.old is not None:
        old = known.old
        seen += f"; {old.task.metric} of {old.task.type} on {len(old.rows):,} rows of the old task"
    yield passed("forgetting", seen)
