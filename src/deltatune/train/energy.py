"""Energy: joules of a training, from a meter where the machine has one, else estimated from CPU time.

    RAPL        counters of the processor's packages in /sys/class/powercap, in microjoules, wrapping at a maximum
    NVML        the total of every GPU that is visible, in millijoules (nvidia-ml-py)
    estimate    CPU seconds of this process x watts per core; what the setting `training.watts_per_core` says

The source is always named. Meters see the whole machine, other programs included; the estimate this process alone.
"""

import math
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from deltatune.core.config import RunSettings
from deltatune.core.task import Task

POWERCAP = Path("/sys/class/powercap")
JOULES_PER_KWH = 3.6e6
NO_COUNTER = "the GPU's energy is not counted: no counter, or nvidia-ml-py is missing (pip install 'deltatune[energy]')"


class Meter(Protocol):
    """Something that counts joules upwards."""

    source: str
    """Where its numbers come from, for people."""

    def joules(self) -> float:
        """The count now; only differences mean something."""


class Rapl:
    """Counters of the processor's packages; a counter that falls has wrapped around."""

    source = "RAPL (processor packages, whole machine)"

    def __init__(self, zones: Sequence[Path]) -> None:
        self.zones = zones
        self.ranges = [_number(zone / "max_energy_range_uj") for zone in zones]
        self.last = [_number(zone / "energy_uj") for zone in zones]
        self.total = 0

    @classmethod
    def found(cls, folder: Path = POWERCAP) -> "Rapl | None":
        """The packages' counters that can be read; None where there are none (most kernels let only root read them)."""
        zones = [zone for zone in sorted(folder.glob("intel-rapl:*")) if zone.name.count(":") == 1]
        try:
            return cls(zones) if zones else None
        except (OSError, ValueError):
            return None

    def joules(self) -> float:
        """Joules since the meter was made; called at least once per wrap (about an hour at full load) it is exact."""
        for index, zone in enumerate(self.zones):
            now = _number(zone / "energy_uj")
            moved = now - self.last[index]
            self.total += moved if moved >= 0 else moved + self.ranges[index]
            self.last[index] = now
        return self.total / 1e6


class Nvml:
    """The energy counters of the visible GPUs."""

    source = "NVML (GPUs alone)"

    def __init__(self, library: Any, handles: Sequence[Any]) -> None:
        self.library, self.handles = library, handles

    @classmethod
    def found(cls) -> "Nvml | None":
        """None without a GPU, without nvidia-ml-py, or where the card has no counter."""
        try:
            import pynvml  # type: ignore[import-not-found]

            pynvml.nvmlInit()
            handles = [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(pynvml.nvmlDeviceGetCount())]
            meter = cls(pynvml, handles)
            meter.joules()
        except Exception:  # no library, no driver, no counter: each has errors of its own
            return None
        return meter if handles else None

    def joules(self) -> float:
        """Joules of all cards since their drivers were loaded."""
        return float(sum(self.library.nvmlDeviceGetTotalEnergyConsumption(handle) for handle in self.handles)) / 1e3


class Estimate:
    """CPU seconds of this process times watts per core."""

    def __init__(self, watts_per_core: float) -> None:
        self.watts = watts_per_core
        self.source = f"estimate: CPU time x {watts_per_core:g} W per core (training.watts_per_core)"

    def joules(self) -> float:
        """Joules since the process began."""
        return time.process_time() * self.watts


def meters(watts_per_core: float, folder: Path = POWERCAP) -> list[Meter]:
    """What this machine has: the GPUs' meter, and the processor's or its estimate.

    None at all where a GPU trains that has no meter: the processor's share alone would pass for the whole.
    """
    cards = Nvml.found()
    if cards is None and torch.cuda.is_available():
        return []
    return [*filter(None, [cards]), Rapl.found(folder) or Estimate(watts_per_core)]


@dataclass(frozen=True, slots=True)
class Spent:
    """Energy of a part of a run."""

    joules: float
    sources: tuple[str, ...]
    """None where nothing could count."""

    def shares(self, seconds: Sequence[float]) -> list["Spent"]:
        """What each of several trainings spent that took so long at once; equal parts when none took any time.

        >>> [one.joules for one in Spent(120.0, ("a meter",)).shares([1.0, 3.0])]
        [30.0, 90.0]
        """
        whole = sum(seconds)
        parts = [own / whole if whole else 1 / len(seconds) for own in seconds]
        return [Spent(self.joules * part, self.sources) for part in parts]

    def of_run(self, settings: RunSettings, task: Task, results: Mapping[str, Any]) -> dict[str, Any]:
        """The same from what a run reports; examples are those that its steps have shown.

        Of a resumed run it is what came after: its examples are counted from there, its points have no price. Where
        nothing could count it says why.
        """
        if not self.sources:
            return {"why": NO_COUNTER}
        training, metric, train = settings.training, task.metric, results["train"]
        gained = results["test"][metric] - results["baseline"].get(metric, math.nan)
        if metric in task.lower_is_better:
            gained = -gained
        if train["resumed_at"]:
            gained = math.nan
        return self.as_json(rows=train["examples"], points=100 * gained, kg_co2_per_kwh=training.kg_co2_per_kwh)

    def as_json(self, *, rows: int, points: float, kg_co2_per_kwh: float | None) -> dict[str, Any]:
        """Joules in all, per thousand examples shown, per point gained; CO2 only with a factor.

        `points` are hundredths of the metric over the baseline; none gained has no price.

        >>> Spent(7200.0, ("a meter",)).as_json(rows=4000, points=12.0, kg_co2_per_kwh=None)["joules_per_point"]
        600.0
        """
        found: dict[str, Any] = {
            "joules": round(self.joules, 1),
            "source": "; ".join(self.sources),
            "joules_per_thousand_examples": round(1000 * self.joules / max(1, rows), 1),
            "joules_per_point": round(self.joules / points, 1) if points > 0 else None,
        }
        if kg_co2_per_kwh is not None:
            found["kg_co2"] = float(f"{self.joules / JOULES_PER_KWH * kg_co2_per_kwh:.3g}")
        return found


@contextmanager
def measuring(found: Sequence[Meter], every_s: float = 60.0) -> Iterator[Callable[[], Spent]]:
    """Counts inside the block; what it gives tells the energy since the block began, once the block has ended.

    The meters are asked every so many seconds, so that none wraps around unseen.
    """
    over = threading.Event()

    def ask() -> None:
        while not over.wait(every_s):
            for meter in found:
                meter.joules()

    start = [meter.joules() for meter in found]
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    counted: list[float] = []
    try:
        yield lambda: Spent(sum(counted), tuple(meter.source for meter in found))
    finally:
        over.set()
        thread.join()
        counted += [meter.joules() - begun for meter, begun in zip(found, start, strict=True)]


def _number(file: Path) -> int:
    return int(file.read_text())
