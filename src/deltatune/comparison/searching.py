"""Searching: the trials of a search by Optuna, breadth first, with time kept for longer trials of the best."""

import time
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

from deltatune.comparison import rates
from deltatune.comparison.choice import Choice, Tried, leading
from deltatune.comparison.clock import expected
from deltatune.comparison.search import Search
from deltatune.comparison.study import Contender, Study
from deltatune.train.signals import Stopped

FINALISTS = 2
PATIENCE = 3.0
"""Times the longest trial so far that one of another process may still take when there are no more to give."""
POLL = 0.2


@dataclass(frozen=True)
class Searching:
    """Settles the choices: so many short trials of every entry, then longer ones of its best."""

    search: Search
    trials: int

    def __call__(self, study: Study, contenders: list[Contender]) -> None:
        """Trials of all entries in turn until none has any left or the time is over; others may join meanwhile."""
        part = Part(self.search, study)
        with self.search.opened([one.entry for one in contenders], self.trials):
            part.learn(contenders)
            waiting = [one for one in contenders if one.settled is None]
            while waiting:
                waiting = [one for one in waiting if self._time_for(study, one, contenders) and part.take(one)]
            self._wait(study, contenders)
        part.learn(contenders)
        _longer(study, contenders)

    @staticmethod
    def _time_for(study: Study, contender: Contender, contenders: Sequence[Contender]) -> bool:
        """Whether one more trial leaves time for the longer ones of all."""
        short, long = (rates.share(rung, study.steps) for rung in (1, 2))
        kept = sum(FINALISTS * expected(one.seconds, long) for one in contenders) if long > short else 0.0
        if study.clock.tunes(expected(contender.seconds, short) + kept):
            return True
        study.leave_out(f"further trials of {contender.entry.name} (the time for tuning is over)")
        return False

    def _wait(self, study: Study, contenders: Sequence[Contender]) -> None:
        """Waits for trials that other processes are at, not for ever."""
        longest = max((each for one in contenders for known in one.seconds.values() for each in known), default=0.0)
        end = time.monotonic() + PATIENCE * longest
        while any(self.search.waits(one.entry) for one in contenders) and time.monotonic() < end:
            if study.signals.noted is not None:
                raise Stopped(study.signals.noted, study.folder)
            if not study.clock.tunes(0.0):
                break
            time.sleep(POLL)


class Part:
    """What one process does of a search."""

    def __init__(self, search: Search, study: Study) -> None:
        self.search, self.study = search, study
        self.share = rates.share(1, study.steps)
        self.known: set[str] = set()

    def learn(self, contenders: Sequence[Contender]) -> None:
        """What other processes have found, and this one before it was stopped."""
        for contender in contenders:
            for one in self.search.found(contender.entry):
                if one.name not in self.known:
                    self.known.add(one.name)
                    self.study.learns(contender, Tried(one.choice, self.share, one.score), one.seconds)

    def take(self, contender: Contender) -> bool:
        """Makes the next trial of an entry; false when it has had all of its trials, or there is no time."""
        asked = self.search.ask(contender.entry)
        if asked is None:
            return False
        started = time.monotonic()
        try:
            tried = self.study.tries(contender, asked.name, asked.choice, self.share)
        except Stopped:
            self.search.put_back(asked)
            raise
        if tried is None:
            self.search.put_back(asked)
            return False
        self.known.add(asked.name)
        self.search.tell(asked, tried.score, time.monotonic() - started)
        return True


def _longer(study: Study, contenders: Sequence[Contender]) -> None:
    """The best choices of every entry again, for longer: all best ones before any second best one."""
    share = rates.share(2, study.steps)
    if share == rates.share(1, study.steps):
        return
    best = {one.entry.name: leading(one.tried, one.own, FINALISTS) for one in contenders}
    for place in range(FINALISTS):
        for one in contenders:
            for choice in best[one.entry.name][place : place + 1]:
                study.tries(one, f"{one.entry.name}-longer-{_mark(choice)}", choice, share)


def _mark(choice: Choice) -> str:
    """A choice as part of a name."""
    return f"{zlib.crc32(f'{choice.rate:g} {sorted(choice.changes.items())}'.encode()):08x}"
