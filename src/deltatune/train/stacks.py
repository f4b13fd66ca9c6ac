"""Stacks: what every thread is doing, written once, while a step takes ten times as long as the others."""

import faulthandler
import logging
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import IO

logger = logging.getLogger("deltatune")

TIMES = 10
"""How much slower than the median a step has to be."""
FLOOR_S = 10.0
"""Seconds that every step may take."""
FEWEST = 10
"""Steps before one can be slow."""


class Stacks:
    """Watches steps from a thread of C, which runs although Python hangs."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.seconds: deque[float] = deque(maxlen=100)
        self.file: IO[str] | None = None
        self.written = False

    def __enter__(self) -> "Stacks":
        return self

    def __exit__(self, *_: object) -> None:
        if self.file is not None:
            self.file.close()
            if not self.written:
                self.path.unlink(missing_ok=True)

    @contextmanager
    def step(self, number: int) -> Iterator[None]:
        """Around one step."""
        armed = self._arm()
        began = time.perf_counter()
        try:
            yield
        finally:
            if armed:
                faulthandler.cancel_dump_traceback_later()
        took = time.perf_counter() - began
        if armed:
            self._report(number, took)
        self.seconds.append(took)

    def _arm(self) -> bool:
        if self.written or len(self.seconds) < FEWEST:
            return False
        if self.file is None:
            try:
                self.file = self.path.open("w", encoding="utf-8")
            except OSError:  # a disk that refuses is spoken of elsewhere
                self.written = True
                return False
        faulthandler.dump_traceback_later(max(FLOOR_S, TIMES * median(self.seconds)), file=self.file)
        return True

    def _report(self, number: int, took: float) -> None:
        if self.path.stat().st_size:
            self.written = True
            said = (number, took, median(self.seconds), self.path)
            logger.warning("step %d took %.1f s, others %.2f s; what it did stands in %s", *said)
