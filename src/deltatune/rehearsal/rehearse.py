"""Rehearse: all checks in order, from the rows to a resumed training, each a line; what one dies of is its line too."""

import gc
import logging
import tempfile
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from deltatune.core import registry
from deltatune.core.config import RunSettings, override, read_yaml
from deltatune.core.errors import DataError, DeltatuneError, SettingsError, did_you_mean
from deltatune.core.method import Method
from deltatune.data.load import Splits
from deltatune.data.load import load as load_splits
from deltatune.engine.fingerprint import exact_hash
from deltatune.rehearsal.beginning import beginning_line
from deltatune.rehearsal.clock import Clock
from deltatune.rehearsal.evaluation import evaluation_line
from deltatune.rehearsal.forgetting_line import forgetting_lines
from deltatune.rehearsal.keeping import merging_line, saving_line
from deltatune.rehearsal.kept_rows import answers_lines, rows_line, splits_line
from deltatune.rehearsal.labels_line import labels_lines
from deltatune.rehearsal.leaks import leak_line
from deltatune.rehearsal.lengths import lengths_line
from deltatune.rehearsal.line import Line, failed, passed, warned
from deltatune.rehearsal.longest import longest_line
from deltatune.rehearsal.overfit import overfit_line
from deltatune.rehearsal.rate_line import rate_line
from deltatune.rehearsal.resuming import resuming_line
from deltatune.rehearsal.rows import masked
from deltatune.rehearsal.stage import Stage, stage_of
from deltatune.rehearsal.supervision import size_line, supervised_line
from deltatune.rehearsal.tokens_seen import tokens_lines

logger = logging.getLogger("deltatune")

BUDGET_S = 60.0
NAMES = (
    *("rows", "splits", "classes", "contradictions", "answers", "leaks", "model", "encoded rows", "lengths", "tokens"),
    *("special tokens", "answer ends", "supervision", "adapter size", "signal", "label errors", "first loss"),
    *("longest batch", "learning rate", "one batch", "evaluation", "save and load", "kill and resume", "merge"),
    *("base", "forgetting", "notices"),
)
"""Of all lines."""
KNOWN = ("checkpoint", "rows rejected", "nearly repeat")
"""Words of notices that a line says already, and of the rehearsal's own training."""
Lines = Line | Iterable[Line]


@dataclass
class Rehearsal:
    """The lines of one rehearsal."""

    task: str
    method: str
    model: str
    lines: list[Line] = field(default_factory=list)
    shown: list[dict[str, Any]] = field(default_factory=list)
    """Training rows in pieces that the loss counts or not."""
    seconds: float = 0.0

    @property
    def failures(self) -> list[Line]:
        """Lines that failed."""
        return [line for line in self.lines if line.status == "fail"]

    def as_json(self) -> dict[str, Any]:
        """All of it, plain values."""
        return {
            "task": self.task,
            "method": self.method,
            "model": self.model,
            "passed": not self.failures,
            "seconds": round(self.seconds, 1),
            "lines": [line.as_json() for line in self.lines],
            "shown": self.shown,
        }


def rehearse(
    path: str | Path,
    overrides: Mapping[str, str] | None = None,
    *,
    budget_s: float = BUDGET_S,
    plot: str | Path | None = None,
    accept: Collection[str] = (),
    show_mask: int = 0,
    say: Callable[[Line], None] = lambda _: None,
) -> Rehearsal:
    """Tries what a YAML file describes on some of its rows; nothing of it is kept.

    Reading all rows takes as long as it takes, what comes then about `budget_s` seconds.

    `plot` is where the picture of the range test goes, `accept` names lines that may fail (they become warnings), `say`
    hears every line as it comes. Raises `SettingsError` for settings that no run could have.
    """
    if unknown := sorted(set(accept) - set(NAMES)):
        raise SettingsError(f"there is no line {unknown[0]!r}", hint=did_you_mean(unknown[0], NAMES))
    settings = RunSettings.parse(override(read_yaml(Path(path)), overrides or {}), "")
    task, method = registry.task(settings.task), registry.method(settings.method)
    done = Rehearsal(task.type, method.type, settings.model)
    whole = Clock(budget_s)

    def add(line: Line) -> None:
        done.lines.append(line.accepted() if line.name in accept else line)
        say(done.lines[-1])

    with _notices() as notices, tempfile.TemporaryDirectory(prefix="deltatune-check-") as folder:
        for line in _lines(settings, method, budget_s, Path(folder), plot, done, show_mask):
            add(line)
    if notices:
        add(warned("notices", "; ".join(notices[:3]), "a training would say this too", notices=notices))
    done.seconds = whole.elapsed_s
    return done


def _lines(
    settings: RunSettings,
    method: Method,
    budget_s: float,
    folder: Path,
    plot: str | Path | None,
    done: Rehearsal,
    show_mask: int,
) -> Iterator[Line]:
    """Data first; the model only when the rows can be read."""
    splits: list[Splits] = []
    stages: list[Stage] = []

    def read() -> Line:
        splits.append(load_splits(settings.data, registry.task(settings.task), Path.cwd()))
        return rows_line(splits[0])

    def load() -> Line:
        try:
            stages.append(stage_of(settings, method, splits[0], Clock(budget_s), folder))
        except DataError as error:
            return unusable_line(error)
        return model_line(stages[0])

    yield from tried("rows", read)
    if not splits:
        return
    yield from tried("splits", lambda: splits_line(splits[0]))
    yield from tried("answers", lambda: answers_lines(splits[0]))
    yield from tried("leaks", lambda: leak_line(splits[0]))
    yield from tried("model", load)
    if not stages:
        return
    stage = stages[0]
    done.shown = masked(splits[0], stage.task, stage.ground.loaded.processor, show_mask)
    yield from _of_rows(stage)
    yield from _of_training(stage, None if plot is None else Path(plot))


def _of_rows(stage: Stage) -> Iterator[Line]:
    """What the rows are to the model."""
    yield from tried("lengths", lambda: lengths_line(stage))
    yield from tried("tokens", lambda: tokens_lines(stage))
    yield from tried("supervision", lambda: supervised_line(stage))
    yield from tried("adapter size", lambda: size_line(stage))
    yield from tried("signal", lambda: labels_lines(stage))


def _of_training(stage: Stage, plot: Path | None) -> Iterator[Line]:
    """What a training does, in the order it would; the trained state of one check is what the next ones save."""
    rate: list[float | None] = [None]
    moved: dict[str, Tensor] = dict(stage.start)

    def rates() -> Line:
        line, rate[0] = rate_line(stage, plot)
        return line

    def overfit() -> Line:
        line, tensors = overfit_line(stage, rate[0])
        moved.update(tensors)
        return line

    yield from tried("first loss", lambda: beginning_line(stage))
    yield from tried("longest batch", lambda: longest_line(stage))
    yield from tried("learning rate", rates)
    yield from tried("one batch", overfit)
    yield from tried("evaluation", lambda: evaluation_line(stage))
    yield from tried("save and load", lambda: saving_line(stage, moved))
    yield from tried("kill and resume", lambda: resuming_line(stage))
    yield from tried("merge", lambda: merging_line(stage, moved))
    yield from tried("base", lambda: base_line(stage))
    yield from tried("forgetting", lambda: forgetting_lines(stage))


def model_line(stage: Stage) -> Line:
    """What was loaded and attached."""
    trained = stage.adapter.trainable_parameters
    total = sum(p.numel() for n, p in stage.model.named_parameters() if n in stage.adapter.roster.frozen)
    new = f"; new in it: {', '.join(stage.ground.loaded.new)}" if stage.ground.loaded.new else ""
    share = f"{trained:,} are trained ({trained / total:.2%})"
    seen = f"{type(stage.model).__name__}, {total / 1e6:.1f} million values; {share}{new}"
    return passed("model", seen, total=total, trained=trained, new=list(stage.ground.loaded.new))


def unusable_line(error: DataError) -> Line:
    """Rows that turned out to be of no use only as the model reads them."""
    fix = "look at a row with --data-only --show-mask 3; the limits and the template are settings of task"
    return failed("encoded rows", error.what, f"{fix}; or {error.hint}" if error.hint else fix)


def base_line(stage: Stage) -> Line:
    """Whether all this has left the base as it was."""
    if exact_hash(stage.model, stage.running.base) == stage.running.hash_before:
        return passed("base", "unchanged, hash equal before and after")
    return failed("base", "the base's weights have changed", "please report this as a bug, with the config")


def tried(name: str, check: Callable[[], Lines]) -> Iterator[Line]:
    """The lines of a check; one that raises is a failed line that says what a training would die of."""
    began = time.perf_counter()
    try:
        found = check()
        for line in [found] if isinstance(found, Line) else found:
            now = time.perf_counter()
            yield replace(line, seconds=now - began)
            began = now
    except DeltatuneError as error:
        yield replace(failed(name, error.what, error.hint or ""), seconds=time.perf_counter() - began)
    except (torch.OutOfMemoryError, MemoryError) as error:
        gc.collect()
        fix = "lower training.per_device_train_batch_size, or set training.gradient_checkpointing: true"
        yield replace(failed(name, f"no memory left: {_first(error)}", fix), seconds=time.perf_counter() - began)
    except Exception as error:  # whatever it is, a training would die of it hours later
        fix = "a training would stop here; please report it with the config"
        said = f"{type(error).__name__}: {_first(error)}"
        yield replace(failed(name, said, fix), seconds=time.perf_counter() - began)


def _first(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]


@contextmanager
def _notices() -> Iterator[list[str]]:
    """What the log says meanwhile, once each, instead of the screen; of the checks' own trainings nothing."""
    said: list[str] = []

    class Noting(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            """Remembers it."""
            message = record.getMessage()
            if record.levelno >= logging.WARNING and not any(word in message for word in (*KNOWN, *said)):
                said.append(message)

    handlers, propagate = logger.handlers, logger.propagate
    logger.handlers, logger.propagate = [Noting()], False
    try:
        yield said
    finally:
        logger.handlers, logger.propagate = handlers, propagate
