"""Worker: a further process at the search of a comparison that another one began; it ends with the search."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from deltatune.comparison.entry import Entry
from deltatune.comparison.ledger import Ledger
from deltatune.comparison.opening import measuring_forgetting, opened_before
from deltatune.comparison.search import PLACE, Search
from deltatune.comparison.searching import POLL, Part
from deltatune.comparison.study import Contender, Study, Watch
from deltatune.core.config import RunSettings
from deltatune.core.errors import SettingsError
from deltatune.train.signals import Signals, Stopped

LOOK = 1.0
"""Seconds between two looks at whether the search still runs."""


def join(settings: RunSettings, folder: Path, watch: Watch) -> int:
    """Makes trials of the search in `folder` until it ends; how many.

    Raises `SettingsError` where no search of these settings runs, `Stopped` after a signal.
    """
    settings = measuring_forgetting(settings)
    asked = opened_before(settings, folder)
    entries = [_entry(name, {**own}) for name, own in asked["methods"].items()]
    search = Search(folder, settings.training.seed)
    if asked["tune"] != "settings" or not search.runs:
        raise SettingsError(f"no search runs in {folder}", hint="begin one there: deltatune compare CONFIG --tune")
    with search.joined(), Signals() as signals:
        ledger = Ledger(folder / PLACE / f"{search.process}.jsonl")
        study = Study(settings, entries, folder, seeds=1, budget=None, watch=watch, signals=signals, ledger=ledger)
        contenders = study.accepted()
        try:
            with _ends_with(search):
                _work(Part(search, study), contenders)
        except Stopped:
            if search.runs:
                raise
        finally:
            ledger.path.unlink(missing_ok=True)
        return len(ledger.known)


def _work(part: Part, contenders: list[Contender]) -> None:
    """Trials of all entries in turn while the search runs."""
    while part.search.runs:
        if part.study.signals.noted is not None:
            raise Stopped(part.study.signals.noted, part.study.folder)
        if not any([part.take(one) for one in contenders]):
            time.sleep(POLL)


@contextmanager
def _ends_with(search: Search) -> Iterator[None]:
    """Inside, the end of the search stops the step that this process is at, as Ctrl-C would."""
    done = threading.Event()

    def look() -> None:
        while not done.wait(LOOK):
            if not search.runs:
                if not done.is_set():
                    os.kill(os.getpid(), signal.SIGINT)
                return

    watching = threading.Thread(target=look, daemon=True)
    watching.start()
    try:
        yield
    finally:
        done.set()
        watching.join()


def _entry(name: str, own: dict[str, object]) -> Entry:
    """An entry as comparison.yaml has it."""
    centre = own.pop("learning_rate")
    return Entry(name, own, float(str(centre)))
