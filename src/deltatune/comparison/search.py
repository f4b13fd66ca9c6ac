"""Search: settings of every method that are worth a trial, by Optuna (Akiba et al. 2019, arXiv:1907.10902).

    search.db         one Optuna study per method, in SQLite: tree-structured Parzen estimators (Bergstra et al. 2011)
    .search/open      held while the search runs, by the process that began it
    .search/<name>    held by every process that takes part: the trials of one that died are given to another

A trial is a learning rate within a decade of the method's own and one of the sizes that the method names. The first is
the method as it is.
"""

import json
import sqlite3
import uuid
import warnings
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from deltatune.comparison.choice import Choice
from deltatune.comparison.entry import Entry
from deltatune.core import registry
from deltatune.core.errors import SettingsError
from deltatune.store.lock import alone, held

FILE, PLACE = "search.db", ".search"
RANDOM = 4
"""Trials of a method before its results guide the next."""
DECADE = 10.0
DEATHS = 2
"""Processes that a trial may take with it; then it counts as the worst."""
OWN = "own"


@dataclass(frozen=True, slots=True)
class Asked:
    """A trial that was given to this process."""

    entry: Entry
    name: str
    choice: Choice
    trial: Any
    """Optuna's."""


@dataclass(frozen=True, slots=True)
class Found:
    """A trial that ended, in whatever process."""

    name: str
    choice: Choice
    score: float
    seconds: float


class Search:
    """The search of one comparison, as one of its processes sees it."""

    def __init__(self, folder: Path, seed: int) -> None:
        """Raises `SettingsError` without Optuna (extra `hpo`) and for a database that is damaged."""
        if find_spec("optuna") is None:
            raise SettingsError("--tune needs Optuna", hint="pip install 'deltatune[hpo]', or leave --tune out")
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.path, self.place, self.seed = folder / FILE, folder / PLACE, seed
        self.process = uuid.uuid4().hex[:12]
        _sound(self.path)
        with alone(self.place / "lock"):
            self.storage = optuna.storages.RDBStorage(f"sqlite:///{self.path}")
        self.studies: dict[str, Any] = {}

    # -- who takes part

    @contextmanager
    def opened(self, entries: list[Entry], trials: int) -> Iterator[None]:
        """Inside, the search runs: this process has begun it, and others can join."""
        for entry in entries:
            self._study(entry).set_user_attr("trials", trials)
        with alone(self.place / "open"), self.joined():
            yield

    @contextmanager
    def joined(self) -> Iterator[None]:
        """Inside, trials can be asked for."""
        try:
            with alone(self.place / self.process):
                yield
        finally:
            (self.place / self.process).unlink(missing_ok=True)

    @property
    def runs(self) -> bool:
        """Whether the process that began the search is in it."""
        return held(self.place / "open")

    # -- trials

    def ask(self, entry: Entry) -> Asked | None:
        """The next trial of an entry; None when it has had all of its trials."""
        with alone(self.place / "lock"):
            study = self._study(entry)
            self._bury(study)
            given = [one for one in study.get_trials(deepcopy=False) if one.state.name in ("RUNNING", "COMPLETE")]
            if len(given) >= study.user_attrs["trials"]:
                return None
            trial = study.ask()
            trial.set_user_attr("process", self.process)
            name = trial.user_attrs.get("name") or f"{entry.name}-trial-{uuid.uuid4().hex[:8]}"
            trial.set_user_attr("name", name)
            rate = trial.suggest_float("learning_rate", entry.centre / DECADE, entry.centre * DECADE, log=True)
            size = trial.suggest_categorical("size", self._sizes(study, entry))
        return Asked(entry, name, _choice(rate, size), trial)

    @staticmethod
    def _sizes(study: Any, entry: Entry) -> Sequence[str]:
        """Those of the trials before, as the search of an earlier version may have had others: Optuna takes no new."""
        known = [one.distributions["size"] for one in study.get_trials(deepcopy=False) if "size" in one.distributions]
        return known[0].choices if known else sizes(entry)

    def tell(self, asked: Asked, score: float, seconds: float) -> None:
        """What a trial came to; nothing where it was given up meanwhile."""
        with alone(self.place / "lock"):
            study = self._study(asked.entry)
            if study.get_trials(deepcopy=False)[asked.trial.number].state.name == "RUNNING":
                asked.trial.set_user_attr("seconds", seconds)
                study.tell(asked.trial, score)

    def put_back(self, asked: Asked) -> None:
        """A trial that a signal stopped is nobody's fault: the next that asks goes on with it."""
        with alone(self.place / "lock"):
            trial = self._study(asked.entry).get_trials(deepcopy=False)[asked.trial.number]
            if trial.state.name == "RUNNING":
                _again(self._study(asked.entry), trial, trial.user_attrs.get("deaths", 0))

    def found(self, entry: Entry) -> list[Found]:
        """The trials of an entry that ended, whatever process made them."""
        return [
            Found(one.user_attrs["name"], _choice(**one.params), one.value, one.user_attrs.get("seconds", 0.0))
            for one in self._study(entry).get_trials(deepcopy=False)
            if one.state.name == "COMPLETE"
        ]

    def waits(self, entry: Entry) -> bool:
        """Whether another process that lives is at a trial of the entry."""
        running = [one for one in self._study(entry).get_trials(deepcopy=False) if one.state.name == "RUNNING"]
        return any(held(self.place / one.user_attrs["process"]) for one in running if "process" in one.user_attrs)

    def _study(self, entry: Entry) -> Any:
        """Optuna's study of an entry."""
        import optuna

        if entry.name not in self.studies:
            known = entry.name in optuna.get_all_study_names(self.storage)
            # a process that goes on or joins must not draw what another has drawn
            seed = None if known else (self.seed + zlib.crc32(entry.name.encode())) % 2**32
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
                sampler = optuna.samplers.TPESampler(n_startup_trials=RANDOM, constant_liar=True, seed=seed)
            study = optuna.create_study(
                storage=self.storage, study_name=entry.name, direction="maximize", sampler=sampler, load_if_exists=True
            )
            if not known:
                study.enqueue_trial({"learning_rate": entry.centre, "size": OWN})
            self.studies[entry.name] = study
        return self.studies[entry.name]

    def _bury(self, study: Any) -> None:
        """Gives the trials of dead processes to the next that asks, from where they stand."""
        from optuna.trial import TrialState

        for one in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            process = one.user_attrs.get("process")  # none: it died between two writes
            if process == self.process or (process is not None and held(self.place / process)):
                continue
            deaths = one.user_attrs.get("deaths", 0) + 1
            if deaths < DEATHS:
                _again(study, one, deaths)
            else:
                study.tell(one.number, float("-inf"))


def _again(study: Any, trial: Any, deaths: int) -> None:
    """A trial that did not end is there for the next that asks, from where it stands."""
    from optuna.trial import TrialState

    study.tell(trial.number, state=TrialState.FAIL)
    kept = {"deaths": deaths, **{key: trial.user_attrs[key] for key in ("name",) if key in trial.user_attrs}}
    study.enqueue_trial(trial.params, user_attrs=kept)


def sizes(entry: Entry) -> list[str]:
    """Its own size, then the others that its method names, as JSON."""
    method = registry.method(entry.settings)
    others = [one for one in method.sizes() if any(getattr(method, key) != value for key, value in one.items())]
    return [OWN, *(json.dumps(one, sort_keys=True) for one in others)]


def _choice(learning_rate: float, size: str) -> Choice:
    """From Optuna's parameters, the rate with three digits."""
    changes: Mapping[str, Any] = {} if size == OWN else json.loads(size)
    return Choice(float(f"{learning_rate:.3g}"), changes)


def _sound(path: Path) -> None:
    """Raises `SettingsError` for a database that is not whole."""
    if not path.exists():
        return
    try:
        with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as database:
            (said,) = database.execute("PRAGMA quick_check").fetchone()
    except sqlite3.DatabaseError as error:
        said = str(error)
    if said != "ok":
        raise SettingsError(f"{path} is damaged: {said}", hint="remove it: trials are made anew, whole runs stay")
