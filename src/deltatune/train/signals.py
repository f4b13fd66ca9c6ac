"""Ctrl-C and SIGTERM: the step is finished and the state saved; a second signal ends at once."""

import signal
import threading
from pathlib import Path
from types import FrameType
from typing import Any

from deltatune.core.errors import DeltatuneError


class Stopped(DeltatuneError):
    """Training was stopped by a signal with its state saved; exit code 128 + the signal's number."""

    def __init__(self, number: int, folder: Path) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}; the state is saved in {folder}",
                         hint="go on with the same command and --resume")
        self.exit_code = 128 + number


class Signals:
    """Notes SIGINT and SIGTERM while a training runs; the handlers before are put back."""

    def __init__(self) -> None:
        self.received: int | None = None
        self.before: dict[int, Any] = {}

    def __enter__(self) -> "Signals":
        if threading.current_thread() is threading.main_thread():  # elsewhere Python does not allow it
            for number in (signal.SIGINT, signal.SIGTERM):
                self.before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def stop(self, folder: Path) -> None:
        """Raises `Stopped` for the signal that was received."""
        assert self.received is not None
        raise Stopped(self.received, folder)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        self.received = number
