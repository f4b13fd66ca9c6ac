"""Ctrl-C and SIGTERM: the step is finished and the state saved; a second signal ends at once."""

import os
import signal
import threading
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from accelerate import Accelerator

from deltatune.core.errors import DeltatuneError

NOTICE = b"\nfinishing the step and saving the state; once more to stop at once\n"


class Stopped(DeltatuneError):
    """Training was stopped by a signal with its state saved; exit code 128 + the signal's number."""

    def __init__(self, number: int, folder: Path, command: str = "the same command and --resume") -> None:
        super().__init__(
            f"stopped by {signal.Signals(number).name}; the state is saved in {folder}", hint=f"go on with {command}"
        )
        self.number, self.folder = number, folder
        self.exit_code = 128 + number


class Signals:
    """Notes SIGINT and SIGTERM while a training runs; the handlers before are put back."""

    def __init__(self) -> None:
        self.noted: int | None = None
        self.before: dict[int, Any] = {}

    def __enter__(self) -> "Signals":
        if threading.current_thread() is threading.main_thread():  # elsewhere Python does not allow it
            for number in (signal.SIGINT, signal.SIGTERM):
                self.before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def received(self, accelerator: Accelerator) -> int | None:
        """The signal that any process got: all of them have to stop at the same step."""
        if accelerator.num_processes == 1:
            return self.noted
        own = torch.tensor([self.noted or 0], device=accelerator.device)
        return int(accelerator.gather(own).max()) or None

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.noted is not None:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        self.noted = number
        os.write(2, NOTICE)  # print is not safe in a handler
