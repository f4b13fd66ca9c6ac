"""Energy: counters that wrap, folders that cannot be read, estimates, and what is made of joules."""

import json
import threading
import time

import pytest

from deltatune.core import registry
from deltatune.core.config import RunSettings
from deltatune.train import energy
from deltatune.train.energy import Estimate, Nvml, Rapl, Spent, measuring, meters

RUN = {"task": "text-classification", "model": "m", "data": {"train": "t.csv"}, "output_dir": "o"}


def zone(folder, name, joules, most=262_143_328_850):
    path = folder / name
    path.mkdir(parents=True, exist_ok=True)
    new = folder / "new"
    new.write_text(f"{round(joules * 1e6)}\n")
    new.replace(path / "energy_uj")  # as a counter of the kernel: never half written
    (path / "max_energy_range_uj").write_text(f"{most}\n")
    return path


def test_packages_add_up_and_what_lies_inside_them_does_not(tmp_path):
    zone(tmp_path, "intel-rapl:0", 100)
    zone(tmp_path, "intel-rapl:1", 50)
    zone(tmp_path, "intel-rapl:0:0", 7)
    meter = Rapl.found(tmp_path)
    zone(tmp_path, "intel-rapl:0", 130)
    zone(tmp_path, "intel-rapl:1", 55)
    zone(tmp_path, "intel-rapl:0:0", 9)
    assert meter.joules() == 35


def test_a_counter_that_falls_has_wrapped_around_at_its_maximum(tmp_path):
    zone(tmp_path, "intel-rapl:0", 990, most=1_000_000_000)
    meter = Rapl.found(tmp_path)
    zone(tmp_path, "intel-rapl:0", 5, most=1_000_000_000)
    assert meter.joules() == 15
    zone(tmp_path, "intel-rapl:0", 8, most=1_000_000_000)
    assert meter.joules() == 18


def test_a_counter_that_wraps_twice_is_asked_in_between(tmp_path):
    zone(tmp_path, "intel-rapl:0", 0, most=1_000_000_000)
    meter = Rapl.found(tmp_path)
    with measuring([meter], every_s=0.01) as spent:
        for joules in (600, 200, 800, 400):  # 600 + 600 + 600 + 600
            zone(tmp_path, "intel-rapl:0", joules, most=1_000_000_000)
            deadline = time.monotonic() + 20
            while meter.last[0] != joules * 1_000_000 and time.monotonic() < deadline:
                time.sleep(0.005)
    assert spent().joules == 2400


def test_nothing_counts_on_when_a_training_breaks_off():
    before = threading.active_count()
    with pytest.raises(RuntimeError), measuring([Estimate(5.0)]):
        assert threading.active_count() == before + 1
        raise RuntimeError
    assert threading.active_count() == before


def test_a_resumed_run_has_the_joules_of_what_came_after():
    settings = RunSettings.parse(RUN, "")
    results = {"train": {"examples": 400, "resumed_at": 0}, "test": {"accuracy": 0.9}, "baseline": {"accuracy": 0.5}}
    task, spent = registry.task(settings.task), Spent(120.0, ("a meter",))
    whole = spent.of_run(settings, task, results)
    assert (whole["joules_per_thousand_examples"], whole["joules_per_point"]) == (300.0, 3.0)
    results["train"] |= {"examples": 40, "resumed_at": 90}
    rest = spent.of_run(settings, task, results)
    assert (rest["joules_per_thousand_examples"], rest["joules_per_point"]) == (3000.0, None)


@pytest.mark.parametrize("content", [None, "", "not a number"])
def test_a_counter_that_cannot_be_read_is_no_meter(tmp_path, content):
    path = zone(tmp_path, "intel-rapl:0", 1)
    (path / "energy_uj").unlink()
    if content is None:
        (path / "energy_uj").mkdir()  # what reading as another user than root is like: an OSError
    else:
        (path / "energy_uj").write_text(content)
    assert Rapl.found(tmp_path) is None
    (meter,) = meters(8.0, tmp_path)
    assert "estimate" in meter.source and "8 W per core" in meter.source


def test_where_a_gpu_trains_unseen_there_is_no_energy_and_it_is_said_why(tmp_path, monkeypatch):
    zone(tmp_path, "intel-rapl:0", 1)
    monkeypatch.setattr(energy.Nvml, "found", lambda: None)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    assert meters(8.0, tmp_path) == []
    with measuring([]) as spent:
        pass
    settings = RunSettings.parse(RUN, "")
    said = spent().of_run(settings, registry.task(settings.task), {})
    assert list(said) == ["why"] and "nvidia-ml-py is missing" in said["why"]


def test_trainings_at_once_that_took_no_time_share_alike():
    assert [one.joules for one in Spent(6.0, ("a meter",)).shares([0.0, 0.0, 0.0])] == [2.0, 2.0, 2.0]


def test_without_counters_the_estimate_follows_cpu_time(tmp_path, monkeypatch):
    (meter,) = meters(5.0, tmp_path / "none")
    now = iter([10.0, 14.0])
    monkeypatch.setattr(energy.time, "process_time", lambda: next(now))
    before = meter.joules()
    assert isinstance(meter, Estimate) and meter.joules() - before == 20.0


def test_the_counters_of_cards_add_up():
    class Library:
        def nvmlDeviceGetTotalEnergyConsumption(self, handle):
            return {"a": 1500, "b": 500}[handle]

    assert Nvml(Library(), ["a", "b"]).joules() == 2.0


def test_a_point_that_was_not_gained_has_no_price_and_co2_needs_a_factor():
    spent = Spent(3.6e6, ("a meter", "another"))
    said = spent.as_json(rows=2000, points=-1.0, kg_co2_per_kwh=None)
    assert said == {
        "joules": 3.6e6,
        "source": "a meter; another",
        "joules_per_thousand_examples": 1.8e6,
        "joules_per_point": None,
    }
    assert spent.as_json(rows=2000, points=2.0, kg_co2_per_kwh=0.4)["kg_co2"] == 0.4
    json.dumps(said)
