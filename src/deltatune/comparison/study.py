"""Study: the trials and runs of a comparison, in an order in which the budget may end it at any time.

    every entry onto the base once: refusals, sizes
    every entry at its own rate, then at others, while there is time for tuning
    a whole run of every entry with the first seed, then with the second, ...

What is done is in the ledger and in the run folders, so a study that was killed goes on where it was.
"""

import gc
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from deltatune.comparison import rates
from deltatune.comparison.clock import Clock, expected
from deltatune.comparison.entry import Entry
from deltatune.comparison.ledger import Ledger, Outcome
from deltatune.core.config import RunSettings
from deltatune.core.errors import DeltatuneError, StorageError
from deltatune.finetuning import Run
from deltatune.ground import attached
from deltatune.many import Base, plan, sweep
from deltatune.many import Plan as Planned
from deltatune.train.plan import Plan
from deltatune.train.signals import Signals, Stopped

TRUNK = "trunk"
"""Folder of a comparison for what leaves the frozen blocks, which all its runs share; it goes when all are done."""


@dataclass
class Contender:
    """An entry with what became of it."""

    entry: Entry
    trainable: int = 0
    refused: str | None = None
    rungs: dict[int, dict[int, float]] = field(default_factory=lambda: {1: {}, 2: {}})
    """Rung -> exponent of the rate -> score, more is better."""
    seconds: dict[float, list[float]] = field(default_factory=dict)
    """Share of the training -> seconds that trials took."""
    seeds: dict[int, Outcome] = field(default_factory=dict)

    @property
    def rate(self) -> float:
        """The learning rate to train with, by what is known."""
        return rates.rate(self.entry.centre, rates.chosen(self.rungs[1], self.rungs[2]))

    @property
    def runs(self) -> list[int]:
        """Seeds whose runs ended well."""
        return [seed for seed, outcome in self.seeds.items() if outcome.error is None]


Watch = Callable[["Study", str], None]
"""Told of every change, with what is going on now."""


class Study:
    """A comparison while it runs."""

    def __init__(
        self,
        settings: RunSettings,
        entries: Sequence[Entry],
        folder: Path,
        *,
        seeds: int,
        budget: float | None,
        tune: bool,
        watch: Watch,
        signals: Signals,
    ) -> None:
        self.settings, self.folder, self.tune, self.watch, self.signals = settings, folder, tune, watch, signals
        self.seeds = [settings.training.seed + number for number in range(seeds)]
        self.contenders = [Contender(entry) for entry in entries]
        self.ledger = Ledger(folder / "trials.jsonl")
        self.clock = Clock(budget, self.ledger.seconds)
        self.left_out: list[str] = []
        self.base = Base(settings)
        task = self.base.ground.splits.task
        self.metric = settings.training.metric_for_best_model or task.metric
        self.steps = Plan.of(self.base.ground.examples["train"], settings.training).total
        self.sign = -1.0 if self.metric in task.lower_is_better else 1.0

    def run(self) -> None:
        """All of it, as far as the budget goes."""
        for contender in self.contenders:
            self._try_on(contender)
        open_ones = [one for one in self.contenders if one.refused is None]
        if self.tune:
            self._tune(open_ones)
        for seed in self.seeds:
            for contender in open_ones:
                self._train(contender, seed)

    # -- before anything is trained

    def _try_on(self, contender: Contender) -> None:
        """Attaches and detaches: what the model refuses shows before the budget is spent."""
        ground, name = self.base.ground, contender.entry.name
        try:
            adapter = attached(ground, self._plan(contender, name, 0, 1.0).method, self.seeds[0], name)
        except DeltatuneError as error:
            contender.refused = str(error)
            self.watch(self, f"{name} is refused: {error}")
            return
        contender.trainable = adapter.trainable_parameters
        adapter.detach()

    # -- learning rates

    def _tune(self, contenders: Sequence[Contender]) -> None:
        """Breadth first: every entry at its own rate before any at others, all of these before one passes an edge."""
        waiting = [one for one in contenders if self._rung(one, 1, [0])]
        while waiting:
            waiting = [one for one in waiting if self._rung(one, 1, rates.first(one.rungs[1]))]
        for contender in contenders:
            self._rung(contender, 2, rates.second(contender.rungs[1]))

    def _rung(self, contender: Contender, rung: int, exponents: Sequence[int]) -> bool:
        """Tries rates of an entry; false when there was nothing to try, or no time."""
        share = rates.share(rung, self.steps)
        if rung > 1 and share == rates.share(rung - 1, self.steps):
            return False  # as long as those that are known
        return all([self._trial(contender, rung, exponent, share) for exponent in exponents]) and bool(exponents)

    def _trial(self, contender: Contender, rung: int, exponent: int, share: float) -> bool:
        """Tries one rate, unless that is done or does not fit into the time; whether its score is known."""
        name = f"{contender.entry.name}-rung{rung}-{_word(exponent)}"
        if name not in self.ledger.known:
            rate = rates.rate(contender.entry.centre, exponent)
            if not self.clock.tunes(expected(contender.seconds, share)):
                self._leave_out(f"learning rate {rate:g} of {contender.entry.name} (the time for tuning is over)")
                return False
            self._do(self._plan(contender, name, self.seeds[0], share, rate=rate, trial=True))
        outcome = self.ledger.known[name]
        score = float("-inf") if outcome.value is None else self.sign * outcome.value
        contender.rungs[rung][exponent] = score
        contender.seconds.setdefault(share, []).append(outcome.seconds)
        return True

    # -- whole runs

    def _train(self, contender: Contender, seed: int) -> None:
        name = f"{contender.entry.name}-seed{seed}"
        if name not in self.ledger.known:
            needed = expected(contender.seconds, 1.0)
            if needed > self.clock.left:
                took = f"needs about {needed:.0f} s, {max(0.0, self.clock.left):.0f} s are left"
                self._leave_out(f"{contender.entry.name} with seed {seed} ({took})")
                return
            self._do(self._plan(contender, name, seed, 1.0, rate=contender.rate if self.tune else None))
        contender.seeds[seed] = outcome = self.ledger.known[name]
        contender.seconds.setdefault(1.0, []).append(outcome.seconds)

    def _leave_out(self, what: str) -> None:
        self.left_out.append(what)
        self.watch(self, f"left out: {what}")

    # -- one training

    def _plan(
        self,
        contender: Contender,
        name: str,
        seed: int,
        share: float,
        *,
        rate: float | None = None,
        trial: bool = False,
    ) -> Planned:
        """The run of an entry: the config's, with this seed, rate and share of its length."""
        given = self.settings.model_dump(mode="json")
        training = given["training"]
        length = {"num_train_epochs": training["num_train_epochs"] * share}
        if training["max_steps"] is not None:
            length["max_steps"] = max(1, round(training["max_steps"] * share))
        common = {key: given[key] for key in ("task", "model", "data", "forgetting")}
        own = {
            "method": contender.entry.settings,
            "training": {
                "seed": seed,
                "learning_rate": rate or contender.entry.centre,
                "trunk_cache_dir": training["trunk_cache_dir"] or str(self.folder / TRUNK),
                **length,
            },
        }
        place = self.folder / ("trials" if trial else "runs")
        return plan(name, own, common, training, place, resume=True, trial=trial)

    def _do(self, planned: Planned) -> None:
        """One training, from where it stands to its outcome in the ledger."""
        if self.signals.noted is not None:  # between two trainings
            raise Stopped(self.signals.noted, self.folder)
        self.watch(self, f"training {planned.name}")
        started = time.monotonic()
        done = Run.read(planned.folder.path) if planned.finished else self._trained(planned)
        error = str(done) if isinstance(done, DeltatuneError) else None
        value = None if isinstance(done, DeltatuneError) else done.results["validation"][self.metric]
        self.ledger.add(Outcome(planned.name, round(time.monotonic() - started, 2), value, error))
        self.watch(self, f"{planned.name}: {error or f'validation {self.metric} {value:.4f}'}")

    def _trained(self, planned: Planned) -> Run | DeltatuneError:
        """Its run, or what only a step shows: then this one is out, and the others go on."""
        try:
            ((_, done),) = sweep(self.base, [planned], quiet=True)
        except Stopped as stopped:
            raise Stopped(stopped.number, self.folder) from None
        except StorageError:
            raise
        except DeltatuneError as error:
            return error
        finally:
            gc.collect()
        planned.folder.drop_checkpoints()
        return done


def _word(exponent: int) -> str:
    """An exponent as part of a name.

    >>> _word(-2), _word(0), _word(1)
    ('down2', 'same', 'up1')
    """
    return "same" if exponent == 0 else f"{'up' if exponent > 0 else 'down'}{abs(exponent)}"
