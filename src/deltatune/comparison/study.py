"""Study: the trials and runs of a comparison, in an order in which the budget may end it at any time.

    every entry onto the base once: refusals, sizes
    first rung of rates for every entry, then the second, while there is time for tuning
    a whole run of every entry with the first seed, then with the second, ...

What is done is in the ledger and in the run folders, so a study that was killed goes on where it was.
"""

import gc
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
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

HEAVY = 0.2
"""Share of the base from which on a method's runs do not stand on the base side by side."""


@dataclass
class Contender:
    """An entry with what became of it."""

    entry: Entry
    trainable: int = 0
    heavy: bool = False
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
        for number, seed in enumerate(self.seeds):
            for contender in open_ones:
                self._train(contender, seed, first=number == 0)

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
        size = sum(p.numel() for path, p in ground.loaded.model.named_parameters() if path in adapter.roster.frozen)
        contender.heavy = contender.trainable > HEAVY * size
        adapter.detach()

    # -- learning rates

    def _tune(self, contenders: Sequence[Contender]) -> None:
        waiting = list(contenders)
        while waiting:  # breadth first: every entry has its three rates before one goes on past an edge
            waiting = [one for one in waiting if self._rung(one, 1, rates.first(one.rungs[1]))]
        for contender in contenders:
            self._rung(contender, 2, rates.second(contender.rungs[1]))

    def _rung(self, contender: Contender, rung: int, exponents: Sequence[int]) -> bool:
        """Tries rates of an entry; false when there was nothing to try, or no time."""
        share = rates.share(rung, self.steps)
        if rung > 1 and share == rates.share(rung - 1, self.steps):
            return False  # as long as those that are known
        trials = {f"{contender.entry.name}-rung{rung}-{_word(k)}": k for k in exponents}
        new = {name: k for name, k in trials.items() if name not in self.ledger.known}
        if new and not self.clock.tuning:
            self._leave_out(f"further learning rates of {contender.entry.name} (time for tuning is over)")
            return False
        make = partial(self._plan, contender, share=share, trial=True)
        plans = [make(name, self.seeds[0], rate=rates.rate(contender.entry.centre, k)) for name, k in new.items()]
        for group in [[one] for one in plans] if contender.heavy else [plans]:
            self._do(group)
        for name, exponent in trials.items():
            outcome = self.ledger.known[name]
            worst = float("-inf")
            contender.rungs[rung][exponent] = worst if outcome.value is None else self.sign * outcome.value
            contender.seconds.setdefault(share, []).append(outcome.seconds)
        return bool(trials)

    # -- whole runs

    def _train(self, contender: Contender, seed: int, *, first: bool) -> None:
        name = f"{contender.entry.name}-seed{seed}"
        if name not in self.ledger.known:
            needed = expected(contender.seconds) or 0.0
            if needed > self.clock.left:
                took = f"needs about {needed:.0f} s, {max(0.0, self.clock.left):.0f} s are left"
                self._leave_out(f"{contender.entry.name} with seed {seed} ({took})")
                return
            self._do([self._plan(contender, name, seed, 1.0, rate=contender.rate if self.tune else None)])
        contender.seeds[seed] = outcome = self.ledger.known[name]
        contender.seconds.setdefault(1.0, []).append(outcome.seconds)

    def _leave_out(self, what: str) -> None:
        self.left_out.append(what)
        self.watch(self, f"left out: {what}")

    # -- one or several trainings

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
        common = {key: given[key] for key in ("task", "model", "data")}
        common["forgetting"] = given["forgetting"] or {}
        own = {
            "method": contender.entry.settings,
            "training": {"seed": seed, "learning_rate": rate or contender.entry.centre, **length},
        }
        place = self.folder / ("trials" if trial else "runs")
        return plan(name, own, common, training, place, resume=True, trial=trial)

    def _do(self, plans: Sequence[Planned]) -> None:
        """Runs what is not done yet and notes what became of it."""
        if self.signals.noted is not None:  # between two trainings
            raise Stopped(self.signals.noted, self.folder)
        for name, run, seconds in self._finished(plans):
            value = None if isinstance(run, DeltatuneError) else run.results["validation"][self.metric]
            error = str(run) if isinstance(run, DeltatuneError) else None
            self.ledger.add(Outcome(name, round(seconds, 2), value, error))
            self.watch(self, f"{name}: {error or f'validation {self.metric} {value:.4f}'}")

    def _finished(self, plans: Sequence[Planned]) -> Iterator[tuple[str, Run | DeltatuneError, float]]:
        for one in plans:
            if one.finished:  # a kill came between its results and the ledger
                run = Run.read(one.folder.path)
                yield one.name, run, run.results["train"]["seconds"]
        started = time.monotonic()
        self.watch(self, f"training {', '.join(one.name for one in plans)}")
        for name, done in self._swept([one for one in plans if not one.finished]):
            yield name, done, time.monotonic() - started
            started = time.monotonic()

    def _swept(self, plans: Sequence[Planned]) -> Iterator[tuple[str, Run | DeltatuneError]]:
        try:
            for name, done in sweep(self.base, plans, quiet=True):
                next(one.folder for one in plans if one.name == name).drop_checkpoints()
                yield name, done
        except Stopped as stopped:
            raise Stopped(stopped.number, self.folder) from None
        except StorageError:
            raise
        except DeltatuneError as error:  # what only a step shows: this entry is out, the others go on
            for one in plans:
                if one.name not in self.ledger.known:
                    yield one.name, error
        finally:
            gc.collect()


def _word(exponent: int) -> str:
    """An exponent as part of a name.

    >>> _word(-2), _word(0), _word(1)
    ('down2', 'same', 'up1')
    """
    return "same" if exponent == 0 else f"{'up' if exponent > 0 else 'down'}{abs(exponent)}"
