"""Study: the trials and runs of a comparison, in an order in which the budget may end it at any time.

    every entry onto the base once: refusals, sizes
    trials of every entry, while there is time for tuning (`halving.py`, `searching.py`)
    a whole run of every entry with the first seed, then with the second, ...

What is done is in the ledger and in the run folders, so a study that was killed goes on where it was.
"""

import gc
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from deltatune.comparison.choice import Choice, Tried, best
from deltatune.comparison.clock import Clock, expected
from deltatune.comparison.entry import Entry
from deltatune.comparison.ledger import Ledger, Outcome
from deltatune.core.config import RunSettings, read_yaml
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
    tried: list[Tried] = field(default_factory=list)
    seconds: dict[float, list[float]] = field(default_factory=dict)
    """Share of the training -> seconds that trials took."""
    seeds: dict[int, Outcome] = field(default_factory=dict)
    settled: Choice | None = None
    """What its whole runs are trained with, when one has begun."""

    @property
    def own(self) -> Choice:
        """The method as it is."""
        return Choice(self.entry.centre)

    @property
    def choice(self) -> Choice:
        """What to train with, by what is known."""
        return self.settled or best(self.tried, self.own)

    @property
    def runs(self) -> list[int]:
        """Seeds whose runs ended well."""
        return [seed for seed, outcome in self.seeds.items() if outcome.error is None]


Watch = Callable[["Study", str], None]
"""Told of every change, with what is going on now."""
Tuning = Callable[["Study", list[Contender]], None]
"""What settles the choice of every contender."""


def as_it_is(study: "Study", contenders: list[Contender]) -> None:
    """Every method at its own rate and size."""


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
        watch: Watch,
        signals: Signals,
        ledger: Ledger | None = None,
    ) -> None:
        self.settings, self.folder, self.watch, self.signals = settings, folder, watch, signals
        self.seeds = [settings.training.seed + number for number in range(seeds)]
        self.contenders = [Contender(entry) for entry in entries]
        self.ledger = ledger or Ledger(folder / "trials.jsonl")
        self.clock = Clock(budget, self.ledger.seconds)
        self.left_out: list[str] = []
        self.base = Base(settings)
        task = self.base.ground.splits.task
        self.metric = settings.training.metric_for_best_model or task.metric
        self.steps = Plan.of(self.base.ground.examples["train"], settings.training).total
        self.sign = -1.0 if self.metric in task.lower_is_better else 1.0

    def run(self, tune: Tuning) -> None:
        """All of it, as far as the budget goes."""
        open_ones = self.accepted()
        for contender in open_ones:
            contender.settled = self._settled(contender)
        tune(self, open_ones)
        for seed in self.seeds:
            for contender in open_ones:
                self._train(contender, seed)

    # -- before anything is trained

    def accepted(self) -> list[Contender]:
        """Those that the model does not refuse."""
        for contender in self.contenders:
            self._try_on(contender)
        return [one for one in self.contenders if one.refused is None]

    def _try_on(self, contender: Contender) -> None:
        """Attaches and detaches: what the model refuses shows before the budget is spent."""
        ground, name = self.base.ground, contender.entry.name
        try:
            adapter = attached(ground, self._plan(contender, name, 0, 1.0, contender.own).method, self.seeds[0], name)
        except DeltatuneError as error:
            contender.refused = str(error)
            self.watch(self, f"{name} is refused: {error}")
            return
        contender.trainable = adapter.trainable_parameters
        adapter.detach()

    def _settled(self, contender: Contender) -> Choice | None:
        """The choice of whole runs that have begun: all seeds have the same."""
        configs = (self.folder / "runs" / f"{contender.entry.name}-seed{seed}" / "config.yaml" for seed in self.seeds)
        for config in configs:
            if config.is_file():
                values = read_yaml(config)
                entry = contender.entry.settings
                changes = {key: value for key, value in values["method"].items() if value != entry.get(key, value)}
                return Choice(float(values["training"]["learning_rate"]), changes)
        return None

    # -- trials

    def tries(self, contender: Contender, name: str, choice: Choice, share: float) -> Tried | None:
        """Tries a choice, unless that is done; None where it does not fit into the time."""
        if name not in self.ledger.known:
            if contender.settled is not None:
                self.leave_out(f"{said(choice)} of {contender.entry.name} (its whole runs have begun)")
                return None
            if not self.clock.tunes(expected(contender.seconds, share)):
                self.leave_out(f"{said(choice)} of {contender.entry.name} (the time for tuning is over)")
                return None
            self._do(self._plan(contender, name, self.seeds[0], share, choice, trial=True))
        outcome = self.ledger.known[name]
        score = float("-inf") if outcome.value is None else self.sign * outcome.value
        return self.learns(contender, Tried(choice, share, score), outcome.seconds)

    def learns(self, contender: Contender, tried: Tried, seconds: float) -> Tried:
        """A trial is known, whoever made it."""
        contender.tried.append(tried)
        contender.seconds.setdefault(tried.share, []).append(seconds)
        return tried

    # -- whole runs

    def _train(self, contender: Contender, seed: int) -> None:
        name = f"{contender.entry.name}-seed{seed}"
        if name not in self.ledger.known:
            needed = expected(contender.seconds, 1.0)
            if needed > self.clock.left:
                known = f"needs about {needed:.0f} s" if needed else "was never tried"
                took = f"{known}, {max(0.0, self.clock.left):.0f} s are left"
                self.leave_out(f"{contender.entry.name} with seed {seed} ({took})")
                return
            self._do(self._plan(contender, name, seed, 1.0, contender.choice))
        contender.seeds[seed] = outcome = self.ledger.known[name]
        contender.seconds.setdefault(1.0, []).append(outcome.seconds)

    def leave_out(self, what: str) -> None:
        """Notes what the budget had no room for."""
        self.left_out.append(what)
        self.watch(self, f"left out: {what}")

    # -- one training

    def _plan(
        self, contender: Contender, name: str, seed: int, share: float, choice: Choice, *, trial: bool = False
    ) -> Planned:
        """The run of an entry: the config's, with this seed, choice and share of its length."""
        given = self.settings.model_dump(mode="json")
        training = given["training"]
        length = {"num_train_epochs": training["num_train_epochs"] * share}
        if training["max_steps"] is not None:
            length["max_steps"] = max(1, round(training["max_steps"] * share))
        common = {key: given[key] for key in ("task", "model", "data", "forgetting")}
        own = {
            "method": {**contender.entry.settings, **choice.changes},
            "training": {
                "seed": seed,
                "learning_rate": choice.rate,
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


def said(choice: Choice) -> str:
    """A choice in words.

    >>> said(Choice(1e-3)), said(Choice(2e-3, {"r": 4}))
    ('learning rate 0.001', 'learning rate 0.002 with r=4')
    """
    changes = ", ".join(f"{name}={value}" for name, value in choice.changes.items())
    return f"learning rate {choice.rate:g}" + (f" with {changes}" if changes else "")
